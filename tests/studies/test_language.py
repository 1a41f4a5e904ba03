"""The language study: what it measures by, in closed form, and its smoke setting."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.networks import Network
from bpeq.registry import load_study
from bpeq.types import Layer


@pytest.fixture(scope="module")
def study(studies):
    return load_study("language/study.py", studies).__globals__


@pytest.mark.parametrize("length", [2, 5, 9, 50, 1003])
def test_held_out_bits_count_every_character_but_the_first_once(study, length):
    """By a net that looks at one character only, each pair stands once, whatever the windows."""
    rng = np.random.default_rng(0)
    table = rng.normal(size=(2, 7, 7)).astype(np.float32)  # two seeds
    forward = lambda params, x, key=None: (params[x], ())  # noqa: E731
    network = Network(Layer("pairs", lambda key, shape: ((), shape), forward, None), (8,), 7)
    text = rng.integers(0, 7, length).astype(np.int32)
    log_p = table - np.log(np.exp(table).sum(-1, keepdims=True))
    expected = -log_p[:, text[:-1], text[1:]].mean(-1) / math.log(2)
    found = study["held_out_bits"](network)(jnp.asarray(table), text)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_interpolated_bits_by_hand(study):
    """Witten and Bell on `abab`, then a and b: orders 1 and 2, alphabet of 2."""
    unigram = lambda n: (n + 2 * 0.5) / (4 + 2)  # noqa: E731
    after_a = (2 + 1 * unigram(2)) / (2 + 1)  # p(b | a)
    found = study["interpolated_bits"]([0, 1, 0, 1], [0, 1], 2, order=2)
    np.testing.assert_allclose(found, -math.log2(after_a))


@pytest.mark.slow  # half a minute of compiling
def test_smoke(call, studies, tmp_path):
    """Even so short, attention copies above chance, and nothing else does."""
    config = studies.parent / "configs" / "language.toml"
    said = call("run", config, "--seeds", 1, "--set", "study.smoke=true", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    mean = {name: metric["mean"] for name, metric in found.items()}
    assert mean["copy_accuracy"] > 0.12 > 0.1 > mean["copy_accuracy_without_attention"]
    assert 1.5 < mean["baseline_bits_per_character"] < mean["bits_per_character"] < math.log2(103)
    assert (tmp_path / "out" / "language.png").stat().st_size > 10_000
