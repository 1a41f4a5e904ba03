"""Gradient descending updates: EP sweep by sweep against BPTT step by step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.analysis.gdu import _bptt_gradients, _ep_updates, alternating, gdu_mismatch
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense
from bpeq.rules import free_phase, recurrent_backprop
from bpeq.rules._bptt import bptt
from bpeq.solvers import fixed_point
from bpeq.systems import from_field, hopfield, resistive
from bpeq.types import Batch

TIGHT = fixed_point(1e-14, 5000)
KEY = jax.random.key(0)
BETAS = (1e-2, 1e-3, 1e-4, 1e-5)


def network(depth, output):
    blocks = [part for _ in range(depth - 1) for part in (dense(7), layers.tanh())]
    return chain(*blocks, dense(3), *([layers.tanh()] if output == "state" else []))


def drawn(net):
    params = trees.scale(0.6, net.init(KEY, (5,))[0])
    x = jax.random.normal(jax.random.key(1), (6, 5))
    return params, Batch(x, jax.random.randint(jax.random.key(2), (6,), 0, 3))


@functools.cache
def found(order, nudging="one-sided", output="state", depth=3, sweeps=12):
    """order: how free and nudged sweeps run, such as "alternating/reversed"."""
    net = network(depth, output)
    synchronous = hopfield(net, output=output, schedule="synchronous")
    ways = {
        "synchronous": synchronous,
        "alternating": hopfield(net, output=output),
        "reversed": alternating(synchronous, reverse=True),
    }
    free, nudged = order.split("/")
    cost = squared_error() if output == "state" else softmax_cross_entropy()
    return gdu_mismatch(
        ways[free],
        cost,
        *drawn(net),
        sweeps=sweeps,
        betas=BETAS,
        nudging=nudging,
        nudged=ways[nudged],
        network=net,
    )


MATCHING = ["synchronous/synchronous", "alternating/reversed", "reversed/alternating"]


@pytest.mark.parametrize("output", ["state", "readout"])
@pytest.mark.parametrize(("nudging", "order"), [("one-sided", 1.0), ("centered", 2.0)])
@pytest.mark.parametrize("sweep", MATCHING)
def test_the_mismatch_falls_with_the_order_of_the_nudging(sweep, nudging, order, output):
    gdu = found(sweep, nudging, output)
    assert gdu.settled
    assert abs(gdu.slope - order) <= 0.05
    assert gdu.mismatch[0].max() < 0.1
    # and in every single sweep, where round-off leaves a digit
    below = gdu.mismatch[1:3] < gdu.mismatch[:2] * 0.1**order * 2
    assert (below | (gdu.mismatch[1:3] < 1e-7)).all()


@pytest.mark.parametrize("depth", [3, 4])
@pytest.mark.parametrize("sweep", ["alternating/alternating", "reversed/reversed"])
def test_alternating_in_the_same_order_the_single_sweeps_are_off_at_any_beta(sweep, depth):
    gdu = found(sweep, depth=depth)
    assert gdu.mismatch[-1].max() > 0.5
    np.testing.assert_allclose(gdu.mismatch[-1].max(), gdu.mismatch[-2].max(), rtol=1e-2)
    assert abs(gdu.slope) < 0.05


def test_reversed_it_holds_with_the_output_in_the_other_half_too():
    assert abs(found("alternating/reversed", depth=4).slope - 1.0) <= 0.05


@pytest.mark.parametrize("output", ["state", "readout"])
def test_bptts_steps_sum_to_the_truncated_gradient_and_eps_sweeps_to_the_whole_one(output):
    """What the same order gets wrong is the single sweep: summed, either order is the gradient."""
    net = network(3, output)
    system, (params, batch) = hopfield(net, output=output), drawn(net)
    cost = squared_error() if output == "state" else softmax_cross_entropy()
    turned = alternating(hopfield(net, output=output, schedule="synchronous"), reverse=True)

    @jax.jit
    def summed(params, batch):
        rest = free_phase(system, TIGHT, params, batch.x)
        steps = _bptt_gradients(system, cost, params, batch, rest, 5)
        ways = [
            _ep_updates(system, way, cost, params, batch, rest, 60, 1e-5, "one-sided")
            for way in (system, turned)
        ]
        return jax.tree.map(lambda g: g.sum(axis=0), (steps, *ways))

    steps, same, other = summed(params, batch)
    gradient = lambda rule: jax.jit(rule.estimate)(params, batch, (), KEY)[0].grads  # noqa: E731
    cut = gradient(bptt(system, cost, sweeps=300, truncate=5))
    exact = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT))
    top = len(net.parts) if output == "state" else len(net.parts) - 1  # readouts are in no sweep
    for found, right, tolerance in [(steps, cut, 1e-13), (same, exact, 1e-4), (other, exact, 1e-4)]:
        for a, b in zip(jax.tree.leaves(found[:top]), jax.tree.leaves(right[:top]), strict=True):
            np.testing.assert_allclose(a, b, atol=tolerance * float(jnp.abs(b).max()))


def test_the_error_reaches_one_layer_more_with_every_synchronous_sweep():
    gdu = found("synchronous/synchronous", depth=4)
    assert gdu.layers == ("dense_1", "dense_2", "dense_3", "dense_4")
    for step in range(4):
        arrived = [layer >= 3 - step for layer in range(4)]
        assert (gdu.bptt[step] > 0).tolist() == arrived
        assert (gdu.ep[-1, step] > 1e-6).tolist() == arrived


def test_alternating_out_of_synchronous_is_hopfields_own():
    net = network(4, "state")
    params, batch = drawn(net)
    own = hopfield(net)
    built = alternating(hopfield(net, schedule="synchronous"))
    clamped = own.clamp(params, batch.x)
    state = own.init_state(params, clamped)
    push = lambda s: (None, None, None, 0.1 * (1.0 - s[3]))  # noqa: E731
    for _ in range(3):
        expected = own.sweep(params, clamped, state, push)
        for a, b in zip(built.sweep(params, clamped, state, push), expected, strict=True):
            np.testing.assert_array_equal(a, b)
        state = expected


def test_what_it_returns_fits_a_table_and_is_float64_whatever_the_params():
    net = network(3, "state")
    system = hopfield(net, schedule="synchronous")
    params, batch = trees.cast(drawn(net), jnp.float32)
    gdu = gdu_mismatch(system, squared_error(), params, batch, sweeps=4, network=net)
    assert gdu.mismatch.shape == gdu.ep.shape == (4, 4, 3)
    assert gdu.bptt.shape == (4, 3)
    assert gdu.total.shape == gdu.floor.shape == gdu.betas.shape == (4,)
    assert {a.dtype for a in (gdu.mismatch, gdu.ep, gdu.bptt)} == {np.dtype(np.float64)}
    assert abs(gdu.slope - 1.0) <= 0.05  # float32 could not show it
    np.testing.assert_allclose(gdu.ep[-1], gdu.bptt, atol=1e-4)


@pytest.mark.parametrize("betas", [(), (0.1, 0.0), (-1.0,), (float("nan"),)])
def test_betas_that_are_not_positive_are_refused(betas):
    net = network(3, "state")
    with pytest.raises(ValueError, match=r"gdu_mismatch: betas = .*> 0"):
        gdu_mismatch(hopfield(net), squared_error(), *drawn(net), betas=betas)


def test_a_system_without_an_energy_is_refused():
    system = from_field(
        lambda p, s, x: -s + p @ s + x,
        lambda p, x: jnp.zeros(2),
        lambda p, s: s,
        lambda key, shape: (jnp.zeros((2, 2)), (2,)),
    )
    batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 2)))
    with pytest.raises(ValueError, match="'from_field' has no energy"):
        gdu_mismatch(system, squared_error(), jnp.zeros((2, 2)), batch)


@pytest.mark.parametrize(
    "system",
    [
        hopfield(network(3, "state")),
        hopfield(network(3, "state"), skips={(1, 3): dense(3)}),  # three groups, not two halves
        resistive(chain(dense(7), layers.relu(), dense(6), layers.relu(), dense(3))),
    ],
    ids=["alternating", "skips", "resistive"],
)
def test_a_system_with_halves_is_nudged_in_their_reverse_order_by_itself(system):
    params = trees.scale(0.6, system.init(KEY, (5,))[0])
    batch = drawn(network(3, "state"))[1]
    gdu = gdu_mismatch(system, squared_error(), params, batch, sweeps=8, betas=BETAS)
    assert abs(gdu.slope - 1.0) <= 0.05
    same = gdu_mismatch(
        system, squared_error(), params, batch, sweeps=8, betas=BETAS, nudged=system
    )
    assert same.total[-1] > 1e4 * gdu.total[-1]


def test_updates_of_a_nudge_outside_sigma_are_another_costs_and_refused():
    system = hopfield(network(3, "state"), nudge="outside", schedule="synchronous")
    with pytest.raises(ValueError, match="nudged outside of its σ, and its updates follow the sl"):
        gdu_mismatch(system, squared_error(), *drawn(network(3, "state")))
