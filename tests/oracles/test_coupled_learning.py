"""Coupled learning: its published formula, the order of its bias, the objective that it follows."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

import bpeq
from bpeq import layers
from bpeq.core import trees
from bpeq.costs import squared_error
from bpeq.layers import chain, dense
from bpeq.rules import contrastive_hebbian, coupled_learning
from bpeq.solvers import fixed_point
from bpeq.systems import from_energy, from_field, hopfield, predictive
from bpeq.types import Batch

KEY = jax.random.key(0)
TIGHT = fixed_point(1e-15, 3000)
NUDGINGS = ["positive", "negative", "centered"]


def gradient(rule, params, batch, **settings):
    params, state = rule.init(KEY, params)
    assert set(settings) <= set(state or {})
    state = {**state, **{k: jnp.asarray(v) for k, v in settings.items()}} if settings else state
    return jax.jit(rule.estimate)(params, batch, state, KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


# A flow network: node pressures p_0 … p_6, edges of conductance k; 0 and 1 are held by the input,
# 5 and 6 are the outputs. E is the power ½ Σ k (Δp)² that it dissipates.
EDGES = np.array([(0, 2), (0, 3), (1, 3), (1, 4), (2, 3), (3, 4), (2, 5), (3, 5), (3, 6), (4, 6)])


def flow_network():
    starts, ends = EDGES.T

    def energy(k, s, x):
        p = jnp.concatenate([x, s])
        return 0.5 * jnp.sum(k * (p[starts] - p[ends]) ** 2)

    def init(key, shape):
        return jax.random.uniform(key, (len(EDGES),), minval=0.5, maxval=1.5), (2,)

    system = from_energy(
        energy, lambda k, x: jnp.zeros(5), lambda k, s: s[3:], init,
        step_size=0.2, write=lambda s, o: s.at[3:].set(o),
    )  # fmt: skip
    x = jax.random.normal(jax.random.key(1), (6, 2))
    y = jax.random.normal(jax.random.key(2), (6, 2))
    return system, system.init(KEY, (2,))[0], Batch(x, y)


def pressures(k, held):
    """All pressures when those of `held` are given: Kirchhoff's law, by a dense solve."""
    incidence = np.zeros((len(EDGES), 7))
    incidence[np.arange(len(EDGES)), EDGES[:, 0]] = 1.0
    incidence[np.arange(len(EDGES)), EDGES[:, 1]] = -1.0
    laplacian = incidence.T @ (np.asarray(k)[:, None] * incidence)
    free, p = [i for i in range(7) if i not in held], np.zeros(7)
    p[list(held)] = list(held.values())
    p[free] = np.linalg.solve(laplacian[np.ix_(free, free)], -(laplacian @ p)[free])
    return p


@pytest.mark.parametrize("eta", [0.5, 1e-3])
@pytest.mark.parametrize("nudging", NUDGINGS)
def test_in_a_flow_network_it_is_stern_and_others_update_with_the_sign_turned(nudging, eta):
    """dk/dt ∝ (1/2η) ( [Δp²]_free − [Δp²]_clamped ), the outputs clamped at o + η(y − o)."""
    system, k, batch = flow_network()
    update = np.zeros(len(EDGES))
    for x, y in zip(np.asarray(batch.x), np.asarray(batch.y), strict=True):
        inputs = {0: x[0], 1: x[1]}
        o = pressures(k, inputs)[5:]

        def drops(share, inputs=inputs, o=o, y=y):
            held = {} if share is None else dict(zip((5, 6), o + share * (y - o), strict=True))
            p = pressures(k, inputs | held)
            return (p[EDGES[:, 0]] - p[EDGES[:, 1]]) ** 2

        if nudging == "positive":
            update += (drops(None) - drops(eta)) / (2 * eta)
        elif nudging == "negative":
            update += (drops(-eta) - drops(None)) / (2 * eta)
        else:
            update += (drops(-eta) - drops(eta)) / (4 * eta)
    rule = coupled_learning(system, squared_error(), TIGHT, TIGHT, nudging=nudging)
    ours = gradient(rule, k, batch, eta=eta)
    np.testing.assert_allclose(ours.grads, -update / 6, rtol=0, atol=1e-10)
    assert ours.info["clamped"].converged.shape == ((2 if nudging == "centered" else 1), 6)
    assert ours.info["clamped"].converged.all()


def case(which):
    if which == "flow":
        return flow_network()
    act = layers.shifted_sigmoid if which == "squashed" else layers.tanh
    parts = [dense(6), act(), dense(5), act(), dense(3)]
    network = chain(*parts, *([act()] if which == "squashed" else []))
    if which == "predictive":
        system, scale = predictive(network), 0.6
    else:
        skips = {(0, 2): dense(5), (1, 3): dense(3)}
        system, scale = hopfield(network, skips=skips, gain=0.7), 0.5
    params = trees.scale(scale, system.init(KEY, (4,))[0])
    x = jax.random.normal(jax.random.key(1), (5, 4))
    y = jnp.array([0, 2, 1, 1, 0]) if which == "squashed" else jnp.cos(x[:, :3])
    return system, params, Batch(x, y)


CASES = ["flow", "linear", "squashed", "predictive"]


def dense_oracle(system, params, batch):
    """The gradient and the mean of ½(o−y)ᵀK(o−y), K held, by dense algebra in float64.

    H and ∂²E/∂s∂θ are JAX's, example by example; K = H_oo − H_oh H_hh⁻¹ H_ho and do/dθ, the output
    rows of −H⁻¹ ∂²E/∂s∂θ, are NumPy's.
    """
    clamped = system.clamp(params, batch.x)
    settled, info = TIGHT(
        lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped)
    )
    assert info.converged.all()
    theta, weights = ravel_pytree(params)
    total, value, examples = np.zeros(len(theta)), 0.0, len(batch.x)
    outputs = np.asarray(system.readout.forward(params, settled)[0])
    y = np.asarray(batch.y)
    y = np.eye(outputs.shape[1])[y] if y.ndim == 1 else y

    @jax.jit
    def derivatives(theta, x, state):
        flat, back = ravel_pytree(state)

        def energy(theta, flat):
            own = weights(theta)
            at = system.clamp(own, x[None])
            alone = jax.tree.map(lambda s: s[None], back(flat))
            return system.energy(own, at, alone)[0]

        slope = jax.grad(energy, argnums=1)
        return jax.jacfwd(slope, argnums=1)(theta, flat), jax.jacrev(slope)(theta, flat)

    for i in range(examples):
        state = jax.tree.map(lambda s, i=i: s[i], settled)
        h, mixed = map(np.asarray, derivatives(theta, batch.x[i], state))
        n = outputs.shape[1]  # the output is the last n units in every case here
        inner, cross = h[:-n, :-n], h[:-n, -n:]
        k = h[-n:, -n:] - cross.T @ np.linalg.solve(inner, cross)
        moved = -np.linalg.solve(h, mixed)[-n:]
        error = outputs[i] - y[i]
        total += error @ k @ moved / examples
        value += 0.5 * error @ k @ error / examples
    return weights(jnp.asarray(total)), value


@pytest.mark.parametrize("which", CASES)
def test_its_bias_falls_with_eta_and_centered_with_eta_squared(which):
    system, params, batch = case(which)
    exact, _ = dense_oracle(system, params, batch)
    etas = np.array([1e-1, 3e-2, 1e-2, 3e-3])
    for nudging in NUDGINGS:
        rule = coupled_learning(system, squared_error(), TIGHT, TIGHT, nudging=nudging)
        estimate = jax.jit(lambda eta, rule=rule: rule.estimate(params, batch, {"eta": eta}, KEY))
        errors = [distance(estimate(jnp.asarray(eta))[0].grads, exact) for eta in etas]
        if which == "flow" and nudging == "centered":  # E is quadratic: nothing of order η² is left
            assert max(errors) < 1e-10
            continue
        order = 2.0 if nudging == "centered" else 1.0
        slope = np.polyfit(np.log(etas[1:]), np.log(errors[1:]), 1)[0]
        assert abs(slope - order) <= 0.05, (nudging, errors)


@pytest.mark.parametrize("which", CASES)
def test_its_objective_is_the_dense_oracle(which):
    system, params, batch = case(which)
    exact, value = dense_oracle(system, params, batch)
    own = gradient(coupled_learning(system, squared_error()).info.objective, params, batch)
    assert all(solve.converged.all() for solve in own.info.values())
    assert set(own.info) == {"free", "response"}
    assert distance(own.grads, exact) < 1e-10
    np.testing.assert_allclose(own.loss, value, rtol=1e-10)
    assert value > 1e-3


def test_saturated_hidden_units_leave_the_objective_finite():
    """They do not answer, whatever the outputs do."""
    network = chain(dense(8), layers.tanh(), dense(6), layers.tanh(), dense(2))
    system = hopfield(network)
    params = trees.scale(0.5, system.init(KEY, (4,))[0])
    params = (trees.scale(200.0, params[0]), *params[1:])
    x = jax.random.normal(jax.random.key(1), (5, 4))
    clamped = system.clamp(params, x)
    state = system.sweep(params, clamped, system.init_state(params, clamped))
    assert 0.5 < float(jnp.mean(jnp.abs(state[0]) == 1.0)) < 1.0
    rule = coupled_learning(system, squared_error(), TIGHT, TIGHT, eta=1e-3)
    batch = Batch(x, jnp.ones((5, 2)))
    own = gradient(rule.info.objective, params, batch)
    assert jnp.isfinite(own.loss)
    assert own.loss > 0
    assert distance(gradient(rule, params, batch).grads, own.grads) < 1e-5


def test_at_eta_one_it_is_contrastive_hebbian():
    system, params, batch = case("linear")
    theirs = gradient(contrastive_hebbian(system, squared_error(), TIGHT, TIGHT), params, batch)
    rule = coupled_learning(system, squared_error(), TIGHT, TIGHT, eta=1.0, nudging="positive")
    assert distance(gradient(rule, params, batch).grads, theirs.grads) < 1e-13


@pytest.mark.parametrize("which", ["linear", "squashed"])
def test_fidelity_reports_its_distance_to_the_costs_gradient_and_to_its_own_objectives(which):
    system, params, batch = case(which)
    rule = coupled_learning(system, squared_error(), TIGHT, TIGHT, eta=1e-2)
    found = bpeq.gradient_fidelity(rule, params, batch, key=KEY)
    assert found.total.relative_error > 0.1
    assert found.own_objective.total.relative_error < 1e-3
    exact, _ = dense_oracle(system, params, batch)
    ours = gradient(rule, params, batch).grads
    np.testing.assert_allclose(
        found.own_objective.total.relative_error, distance(ours, exact), rtol=1e-6
    )
    assert found.own_objective.reference_settled == 1.0
    assert 0 < found.own_objective.reference_residual <= 1e-12


def test_eta_is_traced_and_float32_stays_float32():
    system, *rest = case("linear")
    params, batch = trees.cast(rest, jnp.float32)
    rule = coupled_learning(system, squared_error())
    _, state = rule.init(KEY, params)
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))
    first, after = estimate(params, batch, state, KEY)
    other, _ = estimate(params, batch, {"eta": state["eta"] / 4}, KEY)
    assert jax.tree.structure(after) == jax.tree.structure(state)
    leaves = jax.tree.leaves((first.grads, first.loss, first.output, after))
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("f4")}
    assert distance(other.grads, first.grads) > 1e-5


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"eta": 0.0}, "eta = 0.0: must be a number > 0 and <= 1"),
        ({"eta": 1.5}, "eta = 1.5: must be a number > 0 and <= 1"),
        ({"nudging": "one-sided"}, r"must be 'positive' \| 'negative' \| 'centered'"),
    ],
)
def test_a_setting_out_of_range_is_refused(settings, words):
    system, *_ = case("linear")
    with pytest.raises(ValueError, match=f"coupled_learning: .*{words}"):
        coupled_learning(system, squared_error(), **settings)


def test_systems_that_cannot_serve_are_refused_by_name_with_those_rules_that_do():
    field = from_field(
        lambda p, s, x: x - s, lambda p, x: x, lambda p, s: s, lambda k, shape: ((), shape)
    )
    with pytest.raises(ValueError, match="coupled_learning: the system 'from_field' has no energy"):
        coupled_learning(field, squared_error())
    hidden = chain(dense(4), layers.tanh(), dense(2))
    with pytest.raises(ValueError, match="'hopfield' cannot clamp its output, which is no state"):
        coupled_learning(hopfield(hidden, output="readout"), squared_error())
