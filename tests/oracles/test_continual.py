"""Continual EP against one-sided EP, into which it turns as the rate inside the phase vanishes."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense
from bpeq.rules import eqprop, recurrent_backprop
from bpeq.rules._continual_eqprop import continual_eqprop
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import hopfield
from bpeq.types import Batch, Caution

TIGHT = fixed_point(1e-14, 5000)
KEY = jax.random.key(0)


def problem(output="state", schedule="alternating", dtype=jnp.float64):
    blocks = [dense(9), layers.tanh(), dense(7), layers.tanh(), dense(3)]
    network = chain(*blocks, *([layers.tanh()] if output == "state" else []))
    system = hopfield(network, output=output, schedule=schedule)
    params = trees.cast(trees.scale(0.8, system.init(KEY, (5,))[0]), dtype)
    x = jax.random.normal(jax.random.key(1), (6, 5), dtype)
    y = jax.random.randint(jax.random.key(2), (6,), 0, 3)
    return system, squared_error() if output == "state" else softmax_cross_entropy(), params, x, y


def gradient(rule, params, batch):
    params, state = rule.init(KEY, params)
    return jax.jit(rule.estimate)(params, batch, state, KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


@pytest.mark.parametrize(
    ("output", "schedule"),
    [("state", "alternating"), ("state", "synchronous"), ("readout", "alternating")],
)
def test_its_difference_from_one_sided_ep_is_first_order_in_the_rate(output, schedule):
    """With the same fixed number of nudged sweeps, in a phase that has not settled."""
    system, cost, params, x, y = problem(output, schedule)
    settings = {"beta": 0.1, "nudging": "one-sided"}
    ep = gradient(eqprop(system, cost, TIGHT, fixed_steps(6), **settings), params, Batch(x, y))
    rule = continual_eqprop(system, cost, TIGHT, beta=0.1, sweeps=6)
    params, state = rule.init(KEY, params)
    estimate = jax.jit(rule.estimate)  # rate is traced: one compilation serves the grid
    rates = np.geomspace(1e-3, 1e-6, 4)
    gaps = []
    for rate in rates:
        moved = {**state, "rate": jnp.asarray(rate)}
        gaps.append(distance(estimate(params, Batch(x, y), moved, KEY)[0].grads, ep.grads))
    assert 0.01 < gaps[0] < 0.2  # about 10 rate/β
    assert abs(np.polyfit(np.log(rates), np.log(gaps), 1)[0] - 1.0) <= 0.05


@pytest.mark.parametrize("output", ["state", "readout"])
def test_it_is_what_happens_to_weights_that_move_at_every_sweep(output):
    """θ itself stepped by hand, sweep by sweep; the first step leaves the free phase, β = 0."""
    system, cost, params, x, y = problem(output)
    beta, rate, sweeps = 0.1, 0.04, 4
    clamped = system.clamp(params, x)
    s, _ = TIGHT(lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped))

    def total(theta, s, b):  # F = E + βC, as a batch mean
        energy = system.energy(theta, system.clamp(theta, x), s)
        return jnp.mean(energy + b * cost.value(system.readout.forward(theta, s)[0], y))

    @jax.jit
    def one(theta, s, before):
        def push(s):
            pull = jax.grad(lambda s: cost.value(system.readout.forward(theta, s)[0], y).sum())
            return trees.scale(-beta, pull(s))

        new = system.sweep(theta, system.clamp(theta, x), s, push)
        parts = trees.sub(jax.grad(total)(theta, new, beta), jax.grad(total)(theta, s, before))
        return trees.sub(theta, trees.scale(rate / beta, parts)), new

    theta = params
    for sweep in range(sweeps):
        theta, s = one(theta, s, beta if sweep else 0.0)
    expected = trees.scale(1.0 / rate, trees.sub(params, theta))
    rule = continual_eqprop(system, cost, TIGHT, beta=beta, sweeps=sweeps, rate=rate)
    ours = gradient(rule, params, Batch(x, y))
    assert distance(ours.grads, expected) < 1e-12
    plain = gradient(
        eqprop(system, cost, TIGHT, fixed_steps(sweeps), beta=beta, nudging="one-sided"),
        params,
        Batch(x, y),
    )
    assert distance(ours.grads, plain.grads) > 1e-3  # at this rate the moving weights are felt


def test_at_small_rate_and_beta_it_is_the_exact_gradient():
    system, cost, params, x, y = problem()
    exact = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, Batch(x, y)).grads
    rule = continual_eqprop(system, cost, TIGHT, beta=1e-4, rate=1e-9, sweeps=150)
    ours = gradient(rule, params, Batch(x, y))
    assert distance(ours.grads, exact) < 1e-3
    assert ours.info["nudged"].converged.all()
    assert ours.info["nudged"].converged.shape == (1, 6)
    assert (ours.info["nudged"].steps == 150).all()


def test_float32_keeps_its_digits_at_a_small_rate():
    """The sum of the parts is carried: θ_0 − θ_end would be all round-off at this rate."""
    system, cost, params, x, y = problem()
    rule = continual_eqprop(system, cost, fixed_steps(60), beta=0.1, rate=1e-7, sweeps=20)
    double = gradient(rule, params, Batch(x, y)).grads
    single = gradient(rule, *trees.cast((params, Batch(x, y)), jnp.float32)).grads
    assert {leaf.dtype for leaf in jax.tree.leaves(single)} == {jnp.dtype(jnp.float32)}
    assert distance(trees.cast(single, jnp.float64), double) < 1e-4


def test_a_second_call_another_beta_and_another_rate_compile_nothing():
    system, cost, params, x, y = problem(dtype=jnp.float32)
    rule = continual_eqprop(system, cost, fixed_steps(5), sweeps=4)
    params, state = rule.init(KEY, params)
    assert set(state) == {"beta", "rate"}
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))
    first, after = estimate(params, Batch(x, y), state, KEY)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    for name in state:
        other, _ = estimate(params, Batch(x, y), {**state, name: 2 * state[name]}, KEY)
        assert distance(other.grads, first.grads) > 1e-5


def alone(beta):
    """One linear output driven by x: K = 1 + |x|²; EP's estimate, and continual EP's as f(rate)."""
    network = chain(dense(1))
    system, x = hopfield(network), jnp.array([[0.6, -0.3]])
    params, batch = network.init(KEY, (2,))[0], Batch(x, jnp.ones((1, 1)))
    ep = gradient(
        eqprop(system, squared_error(), TIGHT, TIGHT, beta=beta, nudging="one-sided"), params, batch
    )

    def of(rate, sweeps):
        rule = continual_eqprop(system, squared_error(), TIGHT, beta=beta, sweeps=sweeps)
        _, state = rule.init(KEY, params)
        return rule.estimate(params, batch, {**state, "rate": jnp.asarray(rate)}, KEY)[0].grads[0]

    return 1.0 + float(jnp.sum(x**2)), ep.grads[0], of


@pytest.mark.parametrize("part", [0.01, 0.3, 0.9])
def test_one_linear_outputs_estimate_is_eps_times_its_loop_gain(part):
    """(1 + β)/(1 + β − rate K/β), up to the pole at rate K = β (1 + β)."""
    beta = 0.2
    k, ep, of = alone(beta)
    rate = part * beta * (1 + beta) / k
    found = of(rate, 400)
    factor = (1 + beta) / (1 + beta - rate * k / beta)
    np.testing.assert_allclose(factor, 1 / (1 - part), rtol=1e-12)
    for name in ("w", "b"):
        np.testing.assert_allclose(found[name], factor * ep[name], rtol=1e-9)


def test_beyond_the_pole_the_phase_runs_away_and_before_it_not():
    beta = 0.2
    k, ep, of = alone(beta)
    size = [
        abs(float(of(part * beta * (1 + beta) / k, sweeps)["b"][0] / ep["b"][0]))
        for part in (0.98, 1.02)
        for sweeps in (400, 800)
    ]
    np.testing.assert_allclose(size[:2], 50.0, rtol=1e-2)
    assert size[2] > 1e3
    assert size[3] > 1e3 * size[2]


def test_a_rate_of_half_beta_or_more_earns_a_warning():
    system, cost, params, *_ = problem()
    with pytest.warns(Caution, match=r"rate = 0.05 is beta / 2 = 0.05 or more: the weights outrun"):
        continual_eqprop(system, cost, beta=0.1, rate=0.05).init(KEY, params)
    continual_eqprop(system, cost, beta=0.1, rate=0.049).init(KEY, params)


def test_it_names_sgd_as_its_only_optimizer():
    system, cost, *_ = problem()
    assert continual_eqprop(system, cost).info.optimizers == ("sgd",)


def test_a_system_without_an_energy_is_refused_with_the_rules_that_serve():
    system, cost, *_ = problem()
    bare = system._replace(energy=None, denergy=None)
    serve = "vector_field_eqprop, asymmetric_eqprop, recurrent_backprop"
    with pytest.raises(ValueError, match=f"'hopfield' has no energy; .*{serve}"):
        continual_eqprop(bare, cost)


@pytest.mark.parametrize("setting", [{"beta": 0.0}, {"rate": -1.0}, {"sweeps": 0}])
def test_a_setting_out_of_range_is_refused(setting):
    system, cost, *_ = problem()
    with pytest.raises(ValueError, match=f"continual_eqprop: {next(iter(setting))} = "):
        continual_eqprop(system, cost, **setting)
