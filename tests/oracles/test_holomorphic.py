"""EP on a circle in the complex plane, its online form, and β chosen by the estimates."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.analysis.equilibrium import curvature
from bpeq.analysis.gradient_fidelity import closeness, exact_gradient, gradient_fidelity
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten, shifted_sigmoid, tanh
from bpeq.rules import eqprop
from bpeq.rules._betas import half_circle
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import from_energy, hopfield
from bpeq.types import Batch

NETWORK = chain(dense(8), tanh(), dense(6), tanh(), dense(3))
SYSTEM, COST = hopfield(NETWORK), squared_error()
SETTLE = fixed_point(1e-14, 800)
KEY = jax.random.key(2)


def case(dtype=jnp.float64, scale=0.25, seed=0, network=NETWORK, shape=(4,)):
    params, _ = network.init(jax.random.key(seed), shape)
    x = jax.random.normal(jax.random.key(seed + 100), (5, *shape))
    y = jax.random.normal(jax.random.key(seed + 200), (5, 3))
    return trees.cast((trees.scale(scale, params), Batch(x, y)), dtype)


def error(rule, params, batch, beta=None):
    state = None if beta is None else {"beta": jnp.asarray(beta, batch.x.dtype)}
    return gradient_fidelity(rule, params, batch, key=KEY, state=state).total.relative_error


def holomorphic(points, system=SYSTEM, cost=COST, settle=SETTLE, **settings):
    return eqprop(system, cost, settle, settle, nudging="holomorphic", points=points, **settings)


@pytest.mark.parametrize("points", [2, 3, 4, 5, 8])
def test_half_the_circle_sums_like_the_whole_one(points):
    """Re Σ w_n f(β_n) = (1/N) Σ_{n<N} f(β_n)/β_n for f with f(β*) = f(β)*."""
    f = lambda b: 1.5 + 2 * b - 0.7 * b**2 + 0.3 * np.exp(b)  # noqa: E731
    betas, weights = half_circle(points, jnp.asarray(0.3))
    assert len(betas) == points // 2 + 1
    whole = 0.3 * np.exp(2j * np.pi * np.arange(points) / points)
    expected = np.mean(f(whole) / whole)
    np.testing.assert_allclose(np.sum((weights * f(np.asarray(betas))).real), expected.real)
    np.testing.assert_allclose(expected.imag, 0, atol=1e-15)


def test_two_points_are_centered_nudging():
    params, batch = case()
    ours, centered = (
        jax.jit(rule.estimate)(params, batch, {"beta": jnp.asarray(0.1)}, KEY)[0].grads
        for rule in (holomorphic(2), eqprop(SYSTEM, COST, SETTLE, SETTLE, nudging="centered"))
    )
    assert closeness(ours, centered).relative_error < 1e-12


@pytest.mark.parametrize("points", [3, 4, 6])
def test_bias_of_n_points_is_of_order_n(points):
    params, batch = case(scale=0.4)
    rule, betas = holomorphic(points), np.array([0.1, 0.07, 0.05])
    errors = [error(rule, params, batch, b) for b in betas]
    slope = np.polyfit(np.log(betas), np.log(errors), 1)[0]
    assert abs(slope - points) < 0.1, (slope, errors)


def test_eight_points_are_exact_where_the_curvature_is_large():
    params, batch = case()
    assert curvature(SYSTEM, params, batch.x).smallest.min() >= 0.5
    assert error(holomorphic(8), params, batch, 0.05) <= 1e-6
    single, batch32 = trees.cast((params, batch), jnp.float32)
    assert error(holomorphic(8, settle=fixed_point(1e-7, 300)), single, batch32, 0.05) <= 1e-4


def test_error_falls_geometrically_in_n_by_beta_over_one_radius():
    """log error against N is a line of slope log(β/R), with the same R at two β."""
    params, batch = case(scale=0.4)
    radii, n = [], np.array([2, 4, 6, 8])
    rules = [holomorphic(int(k)) for k in n]
    for beta in (0.1, 0.2):
        errors = [error(rule, params, batch, beta) for rule in rules]
        slope, intercept = np.polyfit(n, np.log(errors), 1)
        assert np.abs(np.log(errors) - slope * n - intercept).max() < 0.7
        radii.append(beta * np.exp(-slope))
    assert abs(radii[0] / radii[1] - 1) < 0.3


@pytest.mark.parametrize("pooling", ["avg_pool", "soft_pool"])
def test_a_convolutional_net_is_holomorphic_through_average_and_soft_pooling(pooling):
    network = chain(
        layers.conv(3, 3), getattr(layers, pooling)(2), tanh(),
        layers.conv(2, 3), tanh(), flatten(), dense(3),
    )  # fmt: skip
    params, batch = case(network=network, shape=(4, 4, 1), scale=0.3)
    rule = holomorphic(6, hopfield(network, schedule="synchronous"))
    assert error(rule, params, batch, 0.1) < 1e-5


def test_the_readouts_weights_and_cross_entropy_are_holomorphic_too():
    system = hopfield(NETWORK, output="readout")
    params, batch = case()
    batch = Batch(batch.x, jnp.array([0, 1, 2, 0, 1]))
    rule = holomorphic(6, system, softmax_cross_entropy())
    found = gradient_fidelity(rule, params, batch, key=KEY, network=NETWORK)
    assert max(row.relative_error for row in found.layers.values()) < 1e-6


@pytest.mark.parametrize("nudging", ["holomorphic", "online"])
@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([dense(4), layers.hard_sigmoid(), dense(3)], r"layer 1 \('hard_sigmoid'\)"),
        (
            [layers.conv(2, 3), layers.max_pool(2), layers.sigmoid(), flatten(), dense(3)],
            r"layer 1 \('max_pool'\)",
        ),
    ],
)
def test_what_is_not_holomorphic_is_refused_by_name_and_place(parts, message, nudging):
    with pytest.raises(ValueError, match=message):
        eqprop(hopfield(chain(*parts)), COST, nudging=nudging)


def test_online_error_falls_as_the_points_are_set_closer():
    params, batch = case()
    online = [
        error(
            eqprop(SYSTEM, COST, SETTLE, fixed_steps(1), nudging="online", points=n, turns=2),
            params,
            batch,
            0.1,
        )
        for n in (16, 64, 256)
    ]
    assert online[0] > 2 * online[1] > 4 * online[2]
    assert online[2] < 0.02


def test_online_settled_at_each_point_is_the_holomorphic_estimate():
    params, batch = case()
    state = {"beta": jnp.asarray(0.1)}
    online = eqprop(SYSTEM, COST, SETTLE, SETTLE, nudging="online", points=12)
    ours, _ = jax.jit(online.estimate)(params, batch, state, KEY)
    theirs, _ = jax.jit(holomorphic(12).estimate)(params, batch, state, KEY)
    assert closeness(ours.grads, theirs.grads).relative_error < 1e-10
    np.testing.assert_allclose(ours.output, theirs.output, atol=1e-8)  # the mean over a turn


def test_online_stays_on_the_free_phases_branch():
    """A double well: nudged at once, s = 0 falls to the left; the free phase, to the right."""

    system = from_energy(
        energy=lambda params, s, x: jnp.sum((s**2 - 1) ** 2 / 4 - params["tilt"] * x * s),
        init_state=lambda params, x: jnp.zeros_like(x),
        readout=lambda params, s: s,
        init=lambda key, shape: ({"tilt": jnp.asarray(0.05)}, shape),
        step_size=0.2,
    )
    params, batch = {"tilt": jnp.asarray(0.05)}, Batch(jnp.ones((1, 1)), jnp.full((1, 1), -1.0))
    rule = eqprop(system, COST, SETTLE, SETTLE, nudging="online", points=12, beta=0.1)
    made, _ = rule.estimate(params, batch, {"beta": jnp.asarray(0.1)}, KEY)
    free = rule.apply(params, batch.x)
    assert free > 1.0
    np.testing.assert_allclose(made.output, free, atol=1e-6)
    exact = exact_gradient(rule, params, batch, key=KEY).grads["tilt"]
    np.testing.assert_allclose(made.grads["tilt"], exact, rtol=1e-4)


def test_online_lag_of_the_start_falls_with_the_turns():
    """A sweep a point: what is left of the start shrinks turn by turn, down to the lag."""
    params, batch = case()
    outputs = [
        eqprop(SYSTEM, COST, SETTLE, fixed_steps(1), nudging="online", points=4, turns=turns)
        .estimate(params, batch, {"beta": jnp.asarray(0.1)}, KEY)[0].output
        for turns in (2, 3, 12)
    ]  # fmt: skip
    two, three = (np.abs(out - outputs[2]).max() for out in outputs[:2])
    assert two > 3 * three > 0


NETS = [(seed, scale) for seed, scale in enumerate((0.2, 0.3, 0.4, 0.5, 0.6))]
GRID = np.logspace(0, -5, 21)


@pytest.mark.parametrize("dtype", [jnp.float64, pytest.param(jnp.float32, marks=pytest.mark.long)])
def test_auto_beta_is_near_the_best_of_a_grid_and_its_bar_covers_the_error(dtype):
    """Five nets, two batches, three nudgings: 30 cases a dtype, 60 in all."""
    settle = fixed_point(1e-9 if dtype == jnp.float64 else 1e-6, 500)
    ratios, covered, wide = [], [], []
    for nudging in ("one-sided", "centered", "holomorphic"):
        auto, plain = (
            eqprop(SYSTEM, COST, settle, settle, nudging=nudging, beta=beta)
            for beta in ("auto", 0.1)
        )
        for seed, scale in NETS:
            for batch_seed in (0, 50):
                params, _ = case(dtype, scale, seed)
                _, batch = case(dtype, scale, seed + batch_seed)
                exact = exact_gradient(auto, params, batch, key=KEY)
                state = auto.init(KEY, params)[1]
                found, _ = jax.jit(auto.estimate)(params, batch, state, KEY)
                true = closeness(found.grads, exact.grads).relative_error
                bar = float(found.info["error_bar"])
                covered.append(bar >= true)
                wide.append(bar / true)
                if batch_seed == 0:
                    step = jax.jit(plain.estimate)
                    on_grid = [
                        closeness(
                            step(params, batch, {"beta": jnp.asarray(b, dtype)}, KEY)[0].grads,
                            exact.grads,
                        ).relative_error
                        for b in GRID
                    ]
                    ratios.append(true / np.nanmin(on_grid))
    assert len(covered) == 30
    assert max(ratios) <= 3.0, ratios
    assert np.mean(covered) >= 0.9, wide
    assert np.median(wide) <= 5.0, wide
    each = np.median(np.reshape(wide, (3, -1)), axis=1)
    assert max(each) <= 4.5, each


@pytest.mark.parametrize("nudging", ["one-sided", "centered"])
def test_the_bar_covers_what_phases_lack_that_were_cut_short(nudging):
    """The same error at every β: no difference between two β shows it."""
    network = chain(dense(12), shifted_sigmoid(), dense(3), shifted_sigmoid())
    system = hopfield(network)
    for steps in ((20, 10), (10, 5), (40, 20)):
        rule = eqprop(system, COST, *map(fixed_steps, steps), nudging=nudging, beta="auto")
        settled = eqprop(system, COST, SETTLE, SETTLE)
        for seed in range(3):
            params, batch = case(jnp.float64, 1.0, seed, network)
            exact = exact_gradient(settled, params, batch, key=KEY)
            state = rule.init(KEY, params)[1]
            found, _ = jax.jit(rule.estimate)(params, batch, state, KEY)
            true = closeness(found.grads, exact.grads).relative_error
            assert true <= float(found.info["error_bar"]) <= 20 * true, (steps, seed)


def test_auto_beta_starts_near_the_last_one():
    params, batch = case()
    rule = eqprop(SYSTEM, COST, SETTLE, SETTLE, beta="auto")
    first, state = jax.jit(rule.estimate)(params, batch, rule.init(KEY, params)[1], KEY)
    np.testing.assert_allclose(float(state["beta"]), min(4 * float(first.info["beta"]), 1.0))
    second, _ = jax.jit(rule.estimate)(params, batch, state, KEY)
    assert float(second.info["beta"]) == float(first.info["beta"])


def test_a_beta_below_the_floor_of_the_dtype_earns_a_warning():
    rule = eqprop(SYSTEM, COST, beta=1e-5)
    params, _ = case(jnp.float32)
    with pytest.warns(UserWarning, match=r"beta = 1e-05 is below 0.0001, where round-off in float"):
        rule.init(KEY, params)
    rule.init(KEY, case()[0])  # in float64 it is fine


def test_auto_with_online_is_refused():
    with pytest.raises(ValueError, match="must be a number with nudging"):
        eqprop(SYSTEM, COST, nudging="online", beta="auto")


@pytest.mark.parametrize("nudging", ["holomorphic", "online", "centered"])
def test_a_changed_beta_compiles_nothing(nudging):
    params, batch = case(jnp.float32)
    steps = fixed_steps(3)
    for beta in (0.1, "auto"):
        if beta == "auto" and nudging == "online":
            continue
        rule = eqprop(SYSTEM, COST, steps, steps, nudging=nudging, beta=beta)
        estimate = jax.jit(rule.estimate)
        state = rule.init(KEY, params)[1]
        for _ in range(2):
            made, state = estimate(params, batch, state, KEY)
            assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(made.grads))
            state = {"beta": jnp.asarray(0.3, jnp.float32)}
        assert estimate._cache_size() == 1
