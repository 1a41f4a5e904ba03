"""The sequence study: its task, how far errors reach back, and its smoke setting."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.config.problem import seed_keys
from bpeq.config.registry import load_study
from bpeq.experiment.runner import Runner
from bpeq.layers import chain, dense, lstm
from bpeq.training.loops import Carry
from bpeq.types import Layer


@pytest.fixture(scope="module")
def study(studies):
    return load_study("sequence/study.py", studies).__globals__


def test_the_sum_of_the_two_marked_numbers_is_asked_for(study):
    batch = study["adding"](jax.random.key(0), 4000, 10)
    x, y = np.asarray(batch.x), np.asarray(batch.y)
    marks = x[..., 1]
    assert set(np.unique(marks)) == {0.0, 1.0}
    assert (marks[:, :5].sum(axis=1) == 1).all()
    assert (marks[:, 5:].sum(axis=1) == 1).all()
    np.testing.assert_allclose(y[:, 0], (x[..., 0] * marks).sum(axis=1), rtol=1e-12)
    # 1/6, its standard error 0.167 √(1.4 / 4000): that of always answering 1
    assert abs(((y - 1) ** 2).mean() - 1 / 6) < 0.01


def test_reach_is_the_gradient_with_respect_to_each_steps_input(study):
    net = chain(lstm(3), dense(1))
    params = jax.vmap(lambda key: net.init(key, (6, 2))[0])(jax.random.split(jax.random.key(1), 2))
    batch = study["adding"](jax.random.key(0), 5, 6)
    found = study["reach"](net, params, batch)

    def cost(x, own):
        return 0.5 * jnp.sum((net.forward(own, x)[0] - batch.y) ** 2)

    for seed in range(2):
        dx = jax.grad(cost)(batch.x, jax.tree.map(lambda leaf: leaf[seed], params))  # noqa: B023
        expected = np.sqrt((np.asarray(dx) ** 2).sum(axis=-1).mean(axis=0))
        np.testing.assert_allclose(found[seed], expected, rtol=1e-9)


def test_the_error_on_the_way_is_the_mean_square_on_the_test_sequences(study, tmp_path):
    """Of a net that always says its one weight, which no step moves."""
    test, keys = study["adding"](jax.random.key(0), 300, 6), seed_keys(0, 2)
    forward = lambda w, x, key=None: (jnp.full((len(x), 1), w), ())  # noqa: E731
    net, carry = Layer("constant", None, forward, None), Carry(jnp.array([1.0, 0.25]), (), ())
    lengths = []

    def step(carry, batch, key):
        lengths.append(batch.x.shape)
        return carry, {"loss": jnp.zeros(())}

    runner = Runner(tmp_path, "here")
    curve = study["learn"](runner, "constant_6", net, carry, step, keys, test, 60, 4)
    expected = [np.mean((np.asarray(test.y) - w) ** 2) for w in (1.0, 0.25)]
    np.testing.assert_allclose(curve, np.broadcast_to(expected, (60, 2)), rtol=1e-12)
    assert set(lengths) == {(4, 6, 2)}


@pytest.mark.long
def test_smoke(call, studies, tmp_path):
    """Five steps, 200 updates: every net is already better than always answering 1."""
    config = studies.parent / "configs" / "sequence.toml"
    said = call("run", config, "--seeds", 1, "--set", "study.smoke=true", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    for name in ("rnn", "gru", "lstm"):
        assert found[f"mse_{name}_5"]["mean"] < 0.8 / 6
    assert found["reach_gru_5"]["mean"] < 0.6 < 1.2 < found["reach_rnn_5"]["mean"]
    assert (tmp_path / "out" / "sequence.png").stat().st_size > 10_000
