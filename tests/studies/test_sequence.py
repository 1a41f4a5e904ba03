"""The sequence study: its task, how far errors reach back, and its smoke setting."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.layers import chain, dense, lstm
from bpeq.registry import load_study


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


def test_smoke(call, studies, tmp_path):
    """Five steps, 200 updates: every net is already better than always answering 1."""
    config = studies.parent / "configs" / "sequence.toml"
    said = call("run", config, "--seeds", 1, "--set", "study.smoke=true", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    found = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    for name in ("rnn", "gru", "lstm"):
        assert found[f"mse_{name}_5"]["mean"] < 0.8 / 6
    assert (tmp_path / "out" / "sequence.png").stat().st_size > 10_000
