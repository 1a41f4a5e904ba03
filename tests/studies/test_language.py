"""The language study: what it measures by, in closed form, and its smoke setting."""

import json
import math

import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.config.networks import Network
from bpeq.config.registry import load_study
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


def test_the_last_tenth_is_held_out_and_the_alphabet_is_not_of_it(study, monkeypatch):
    """Also under a Python whose text has more characters than the net has symbols."""
    monkeypatch.setattr("pydoc_data.topics.topics", {"a": "abcabbaaa", "b": "cd abcabz"})
    text = study["corpus"](9)  # 19 characters with the newline between: 17 and 2
    assert text.alphabet == "\n abcd"
    assert "".join((text.alphabet + "?")[i] for i in text.train) == "abcabbaaa\ncd abca"
    assert "".join((text.alphabet + "?")[i] for i in text.held) == "b?"
    assert (text.symbols, text.checksum[:4]) == (7, "be03")
    few = study["corpus"](4)
    assert (few.alphabet, few.symbols) == ("abc", 4)
    assert few.train.tolist() == [0, 1, 2, 0, 1, 1, 0, 0, 0, 3, 2, 3, 3, 0, 1, 2, 0]


def test_interpolated_bits_against_a_model_that_counts_afresh_for_every_character(study):
    rng = np.random.default_rng(0)
    train, held = "".join(rng.choice(list("aab c"), 300)), "".join(rng.choice(list("abcd"), 40))

    def p(context, character):
        if context is None:
            return 1 / 6
        found = [train[i + len(context)] for i in range(len(train) - len(context))
                 if train[i : i + len(context)] == context]  # fmt: skip
        below = p(context[1:] if context else None, character)
        kinds = len(set(found))
        return (found.count(character) + kinds * below) / (len(found) + kinds) if found else below

    whole = train + held
    bits = [-math.log2(p(whole[i - 4 : i], whole[i])) for i in range(301, len(whole))]
    found = study["interpolated_bits"]([ord(c) for c in train], [ord(c) for c in held], 6)
    np.testing.assert_allclose(found, np.mean(bits), rtol=1e-12)


def test_interpolated_bits_by_hand(study):
    """Witten and Bell on `abab`, then a and b: orders 1 and 2, alphabet of 2."""
    unigram = lambda n: (n + 2 * 0.5) / (4 + 2)  # noqa: E731
    after_a = (2 + 1 * unigram(2)) / (2 + 1)  # p(b | a)
    found = study["interpolated_bits"]([0, 1, 0, 1], [0, 1], 2, order=2)
    np.testing.assert_allclose(found, -math.log2(after_a))


@pytest.mark.long  # half a minute of compiling
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
