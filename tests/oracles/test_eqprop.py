"""EP against implicit differentiation in float64, and that against unrolling."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, gradient_error
from bpeq.rules import backprop, eqprop, recurrent_backprop
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import from_energy, hopfield
from bpeq.types import Batch

TIGHT = fixed_point(1e-14, 5000)
KEY = jax.random.key(0)


def problem(output="state", schedule="alternating", dtype=jnp.float64):
    blocks = [dense(12), layers.tanh(), dense(8), layers.tanh(), dense(3)]
    last = [layers.tanh()] if output == "state" else []
    system = hopfield(chain(*blocks, *last), output=output, schedule=schedule)
    params, _ = system.init(jax.random.key(0), (5,))
    params = trees.cast(trees.scale(0.8, params), dtype)
    x = jax.random.normal(jax.random.key(1), (7, 5), dtype)
    y = jax.random.randint(jax.random.key(2), (7,), 0, 3)
    cost = squared_error() if output == "state" else softmax_cross_entropy()
    return system, cost, params, Batch(x, y)


def gradient(rule, params, batch, key=KEY):
    params, state = rule.init(key, params)
    return jax.jit(rule.estimate)(params, batch, state, key)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


def slope_in_beta(output, nudging):
    """Slope of log error over log β, where the error is below 1 % and well above its floor."""
    system, cost, params, batch = problem(output)
    exact = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, batch).grads
    betas = np.geomspace(1e-1, 1e-4, 7)
    rule = eqprop(system, cost, TIGHT, TIGHT, nudging=nudging)
    params, state = rule.init(KEY, params)
    estimate = jax.jit(rule.estimate)  # β is traced: one compilation serves the grid
    errors = np.array(
        [
            distance(
                estimate(params, batch, {**state, "beta": jnp.asarray(b)}, KEY)[0].grads, exact
            )
            for b in betas
        ]
    )
    floor = 1e-13 / betas  # round-off of the contrast
    fit = (errors < 1e-2) & (errors > 100 * floor)
    assert fit.sum() >= 3
    return np.polyfit(np.log(betas[fit]), np.log(errors[fit]), 1)[0]


@pytest.mark.parametrize("output", ["state", "readout"])
def test_one_sided_error_is_first_order_in_beta(output):
    assert abs(slope_in_beta(output, "one-sided") - 1.0) <= 0.05


@pytest.mark.parametrize("output", ["state", "readout"])
def test_centered_error_is_second_order_in_beta(output):
    assert abs(slope_in_beta(output, "centered") - 2.0) <= 0.05


def test_random_sign_averages_to_the_centered_estimate():
    system, cost, params, batch = problem()
    rule = eqprop(system, cost, TIGHT, TIGHT, beta=0.01, nudging="random-sign")
    seen = [gradient(rule, params, batch, jax.random.key(i)).grads for i in range(8)]
    first = seen[0]
    other = next(g for g in seen if distance(g, first) > 1e-6)
    assert all(min(distance(g, first), distance(g, other)) < 1e-12 for g in seen)  # two signs only
    mean = trees.scale(0.5, trees.add(first, other))
    centered = gradient(eqprop(system, cost, TIGHT, TIGHT, beta=0.01), params, batch).grads
    assert distance(mean, centered) < 1e-11


@pytest.mark.parametrize("output", ["state", "readout"])
@pytest.mark.parametrize("schedule", ["alternating", "synchronous"])
def test_implicit_differentiation_equals_autodiff_through_many_sweeps(output, schedule):
    system, cost, params, batch = problem(output, schedule)
    long = fixed_steps(400)

    def loss(params):
        clamped = system.clamp(params, batch.x)
        state, _ = long(
            lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped)
        )
        return cost.value(system.readout.forward(params, state)[0], batch.y).mean()

    ours = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, batch)
    assert ours.info["adjoint"].converged.all()
    assert gradient_error(ours.grads, jax.grad(loss)(params)) < 1e-11


def test_readout_of_one_hidden_block_makes_ep_backprop_as_beta_vanishes():
    """Then the hidden state feels nothing from above, and the free phase is the forward pass."""
    network = chain(dense(6), layers.sigmoid(), dense(3))
    params, _ = network.init(KEY, (4,))
    batch = Batch(jax.random.normal(KEY, (5, 4)), jnp.array([0, 1, 2, 0, 1]))
    cost = softmax_cross_entropy()
    exact = gradient(backprop(network, cost), params, batch)
    ours = gradient(
        eqprop(hopfield(network, output="readout"), cost, TIGHT, TIGHT, beta=1e-4), params, batch
    )
    np.testing.assert_allclose(ours.output, exact.output, atol=1e-15)
    assert distance(ours.grads, exact.grads) < 1e-7


def test_dense_update_is_the_contrastive_hebbian_of_the_paper():
    """ΔW_ij = (1/β)(s_i^β s_j^β − s_i⁰ s_j⁰), from states settled by hand."""
    system, cost, params, batch = problem()
    beta = 0.05
    clamped = system.clamp(params, batch.x)
    target = jnp.eye(3)[batch.y]
    free, _ = TIGHT(lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped))
    push = lambda s: (None, None, -beta * (s[2] - target))  # noqa: E731
    nudged, _ = TIGHT(lambda s: system.sweep(params, clamped, s, push), free)
    n = batch.x.shape[0]
    hebbian = -(nudged[0].T @ nudged[1] - free[0].T @ free[1]) / (beta * n)
    rule = eqprop(system, cost, TIGHT, TIGHT, beta=beta, nudging="one-sided")
    np.testing.assert_allclose(gradient(rule, params, batch).grads[2]["w"], hebbian, atol=1e-12)


def test_gradients_and_losses_are_batch_means():
    system, cost, params, batch = problem()
    rule = eqprop(system, cost, TIGHT, TIGHT, beta=0.01)
    twice = Batch(jnp.concatenate([batch.x] * 2), jnp.concatenate([batch.y] * 2))
    once, double = gradient(rule, params, batch), gradient(rule, params, twice)
    assert distance(double.grads, once.grads) < 1e-11
    np.testing.assert_allclose(double.loss, once.loss, rtol=1e-14)


def test_float32_round_off_grows_as_one_over_beta_and_is_small():
    """At β = 0.003 the bias is 1e-4; float32 moves the estimate by less than that."""
    system, cost, params, batch = problem(dtype=jnp.float32)
    double = trees.cast(params, jnp.float64), Batch(batch.x.astype(jnp.float64), batch.y)
    settle = fixed_steps(60)
    gaps = []
    for beta in (0.03, 0.003, 0.0003):
        rule = eqprop(system, cost, settle, settle, beta=beta)
        ours = gradient(rule, params, batch).grads
        assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(ours))
        gaps.append(distance(trees.cast(ours, jnp.float64), gradient(rule, *double).grads))
    assert gaps[1] < 1e-4
    assert 4 < gaps[1] / gaps[0] < 25
    assert 4 < gaps[2] / gaps[1] < 25


def test_from_energy_with_the_hopfield_energy_is_hopfield():
    """The same equilibrium and gradient from the energy alone, written for one example."""
    system, cost, params, batch = problem()
    params = trees.scale(0.5, params)  # gradient flow is stiff where tanh saturates

    def energy(params, state, x):
        one = jax.tree.map(lambda s: s[None], state)
        return system.energy(params, system.clamp(params, x[None]), one)[0]

    def begin(params, x):
        return jax.tree.map(
            lambda s: s[0], system.init_state(params, system.clamp(params, x[None]))
        )

    edge = 1 - 1e-9
    twin = from_energy(
        energy,
        begin,
        lambda params, state: state[-1],
        system.init,
        step_size=0.05,
        project=lambda s: jax.tree.map(lambda u: jnp.clip(u, -edge, edge), s),
    )
    slow = fixed_point(1e-12, 20000)
    ours = gradient(eqprop(system, cost, TIGHT, TIGHT, beta=0.05), params, batch)
    theirs = gradient(eqprop(twin, cost, slow, slow, beta=0.05), params, batch)
    assert theirs.info["free"].converged.all()
    np.testing.assert_allclose(theirs.output, ours.output, atol=1e-6)
    assert distance(theirs.grads, ours.grads) < 1e-6
    implicit = gradient(recurrent_backprop(twin, cost, slow, slow), params, batch).grads
    assert (
        distance(
            implicit, gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, batch).grads
        )
        < 1e-6
    )


def test_from_energy_takes_a_dict_state_and_trains_weights_that_only_the_readout_knows():
    """A leaky unit s = Wx and a readout v·s: ∂C/∂v = e s, ∂C/∂W = vᵀe x, in closed form."""
    system = from_energy(
        lambda p, s, x: 0.5 * jnp.sum(s["u"] ** 2) - s["u"] @ (p["w"] @ x),
        lambda p, x: {"u": jnp.zeros(3)},
        lambda p, s: p["v"] @ s["u"],
        lambda key, shape: ({"w": jnp.zeros((3, *shape)), "v": jnp.zeros((1, 3))}, (1,)),
    )
    params = {
        "w": jax.random.normal(KEY, (3, 2)),
        "v": jax.random.normal(jax.random.key(1), (1, 3)),
    }
    x, y = jnp.array([[1.0, -2.0]]), jnp.array([[0.5]])
    s = params["w"] @ x[0]
    e = params["v"] @ s - y[0]
    exact = {"w": jnp.outer(params["v"].T @ e, x[0]), "v": jnp.outer(e, s)}
    for rule in (
        eqprop(system, squared_error(), TIGHT, TIGHT, beta=1e-4),
        recurrent_backprop(system, squared_error(), TIGHT, TIGHT),
    ):
        assert distance(gradient(rule, params, Batch(x, y)).grads, exact) < 1e-7


@pytest.mark.parametrize("beta", [0.0, -0.1, float("nan"), float("inf"), "0.1"])
def test_a_beta_that_is_not_positive_is_refused(beta):
    system, cost, _, _ = problem()
    with pytest.raises(ValueError, match=r"eqprop: beta = .*> 0"):
        eqprop(system, cost, beta=beta)


def test_an_unknown_nudging_names_the_permitted_ones():
    system, cost, _, _ = problem()
    with pytest.raises(ValueError, match=r"'one-sided' . 'centered' . 'random-sign'"):
        eqprop(system, cost, nudging="twosided")


def test_a_system_without_an_energy_is_refused():
    system, cost, _, _ = problem()
    with pytest.raises(ValueError, match="has no energy"):
        eqprop(system._replace(energy=None, denergy=None), cost)
