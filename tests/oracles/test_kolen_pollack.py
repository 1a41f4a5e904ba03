"""Kolen–Pollack in training: the gap decays as the closed form says, and the weights align."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.analysis.gradient_fidelity import gradient_fidelity
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense
from bpeq.optimizers import adamw, linear_decay, with_rates
from bpeq.rules import kolen_pollack
from bpeq.training import loops
from bpeq.types import Batch

KEY = jax.random.key(0)
NETWORK = chain(dense(8), layers.tanh(), dense(6), layers.tanh(), dense(3))
X = jax.random.normal(jax.random.key(1), (20, 5))
BATCH = Batch(X, jnp.argmax(X[:, :3], axis=1))


def trained(rule, optimizer, network, steps, batch=BATCH):
    """(params before, params after, their D before and after)."""
    carry = loops.start(rule, optimizer, network.init(KEY, batch.x.shape[1:])[0], KEY)
    step = loops.supervised(rule, optimizer)

    def one(carry, i):
        with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
            return step(carry, batch, jax.random.fold_in(KEY, i))[0], None

    after, _ = jax.jit(lambda c: jax.lax.scan(one, c, jnp.arange(steps)))(carry)
    return carry.params, after.params


def gap_of(params):
    return params[-1]["feedback"]


def degrees(a, b):
    cosine = jnp.sum(a * b) / jnp.linalg.norm(a) / jnp.linalg.norm(b)
    return float(jnp.rad2deg(jnp.arccos(jnp.clip(cosine, -1.0, 1.0))))


def test_after_n_steps_of_adamw_the_gap_is_the_closed_form_exactly():
    """D_n = (1 − ηλ)^n D_0 while the weights learn."""
    rule = kolen_pollack(NETWORK, squared_error())
    optimizer = adamw(0.01, weight_decay=0.5)
    before, after = trained(rule, optimizer, NETWORK, 100)
    expected = trees.scale((1 - 0.01 * 0.5) ** 100, gap_of(before))
    for ours, right in zip(*map(jax.tree.leaves, (gap_of(after), expected)), strict=True):
        np.testing.assert_allclose(ours, right, rtol=1e-13)
    moved = after[2]["w"] - (1 - 0.01 * 0.5) ** 100 * before[2]["w"]
    assert jnp.linalg.norm(moved) > 0.1 * jnp.linalg.norm(before[2]["w"])


def test_the_gap_follows_the_schedule_at_its_own_blocks_rate():
    """D_n = Π_t (1 − η_t λ) D_0, with η_t falling to zero; a block of rate 0 stays, its D too."""
    rule, steps, rates = kolen_pollack(NETWORK, squared_error()), 40, [0.0, 0.01, 0.04]
    optimizer = with_rates(
        adamw(0.02, weight_decay=0.5),
        learning_rate=0.02,
        total_steps=steps,
        schedule=linear_decay(),
        layer_rates=rates,
        network=NETWORK,
    )
    before, after = trained(rule, optimizer, NETWORK, steps)
    for i, rate in zip((0, 2, 4), rates, strict=True):
        factor = np.prod([1 - rate * (1 - t / steps) * 0.5 for t in range(steps)])
        first, last = gap_of(before)[i]["w"], gap_of(after)[i]["w"]
        np.testing.assert_allclose(last, factor * first, rtol=1e-12)
    np.testing.assert_array_equal(after[0]["w"], before[0]["w"])
    assert not np.allclose(after[2]["w"], before[2]["w"])


def test_the_angle_falls_to_zero_and_the_estimate_becomes_the_gradient():
    rule = kolen_pollack(NETWORK, softmax_cross_entropy())
    before, after = trained(rule, adamw(0.01, weight_decay=1.0), NETWORK, 1500)
    for i in (2, 4):
        (w, d), (w_after, d_after) = ((p[i]["w"], gap_of(p)[i]["w"]) for p in (before, after))
        assert abs(degrees(w, w + d) - 90) < 1e-5
        assert degrees(w_after, w_after + d_after) < 1e-3
    rows = [
        gradient_fidelity(rule, p, BATCH, key=KEY, network=NETWORK).layers for p in (before, after)
    ]
    assert list(rows[0]) == ["dense_1", "dense_2", "dense_3", "feedback"]
    for name in ("dense_1", "dense_2"):
        assert rows[0][name].relative_error > 0.5
        assert rows[1][name].relative_error < 1e-5
        assert rows[1][name].cosine > 1 - 1e-9
    assert rows[0]["dense_3"].relative_error < 1e-14
    for row in rows:  # what the optimizer alone moves has no gradient, neither ours nor the exact
        assert row["feedback"].relative_error == 0.0
        assert row["feedback"].norm_ratio == 1.0


def test_population_statistics_are_absorbed_and_not_decayed_beside_a_gap():
    """Under AdamW's decay: the running averages of the batches that were seen, and nothing else."""
    network = chain(dense(4), layers.batch_norm(decay=0.5), layers.tanh(), dense(3))
    rule = kolen_pollack(network, squared_error())
    rates = with_rates(
        adamw(0.01, weight_decay=0.5), learning_rate=0.01, total_steps=1, network=network
    )
    before, after = trained(rule, rates, network, 1)
    z = np.asarray(BATCH.x @ before[0]["w"] + before[0]["b"])
    np.testing.assert_allclose(after[1]["mean"], 0.5 * z.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(after[1]["variance"], 0.5 + 0.5 * z.var(axis=0), rtol=1e-12)
    for leaf in ("mean", "variance", "gain"):  # drawn alike in every init: B is the forward one
        np.testing.assert_array_equal(gap_of(after)[1][leaf], 0.0)
    np.testing.assert_allclose(gap_of(after)[3]["w"], 0.995 * gap_of(before)[3]["w"], rtol=1e-13)


def test_params_that_carry_a_gap_are_left_as_they_are():
    rule = kolen_pollack(NETWORK, squared_error())
    own, _ = NETWORK.init(KEY, (5,))
    params, _ = rule.init(KEY, own)
    again, _ = rule.init(jax.random.key(9), params)
    assert again is params
    other, _ = rule.init(jax.random.key(9), own)
    assert not np.allclose(gap_of(other)[2]["w"], gap_of(params)[2]["w"])
    closer, _ = kolen_pollack(NETWORK, squared_error(), angle=30.0).init(KEY, own)
    assert abs(degrees(own[2]["w"], own[2]["w"] + gap_of(closer)[2]["w"]) - 30) < 1e-9


@pytest.mark.parametrize("name", ["sgd", "momentum", "rmsprop", "adam"])
def test_only_decoupled_decay_is_an_optimizer_for_it(name):
    assert name not in kolen_pollack(NETWORK, squared_error()).info.optimizers
