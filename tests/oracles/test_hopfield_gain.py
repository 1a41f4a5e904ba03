"""The feedback gain γ of a Hopfield system: sweeps, its energy, and all that is derived from it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.analysis.equilibrium import curvature
from bpeq.analysis.gdu import gdu_mismatch
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, gradient_error
from bpeq.rules import asymmetric_eqprop, eqprop, recurrent_backprop, vector_field_eqprop
from bpeq.solvers import fixed_point
from bpeq.systems import hopfield
from bpeq.types import Batch

KEY = jax.random.key(0)
TIGHT = fixed_point(1e-14, 5000)


def net(name="tanh"):
    act = getattr(layers, name)
    return chain(dense(6), act(), dense(5), act(), dense(4), act(), dense(3), layers.linear())


def skipped(name="tanh", output="state", **settings):
    network = net(name) if output == "state" else chain(*net(name).parts[:-1])
    skips = {(0, 2): dense(5), (1, 3): dense(4, bias=False)}
    if output == "state":
        skips |= {(1, 4): dense(3)}
    return hopfield(network, output=output, skips=skips, **settings)


def at(system, scale=0.7, batch=5):
    params, _ = system.init(KEY, (4,))
    params = trees.scale(scale, params)
    x = jax.random.normal(jax.random.key(1), (batch, 4))
    clamped = system.clamp(params, x)
    start = system.init_state(params, clamped)
    state = tuple(jax.random.uniform(jax.random.key(9 + i), s.shape) for i, s in enumerate(start))
    return params, x, clamped, state


def gradient(rule, params, batch, **settings):
    params, state = rule.init(KEY, params)
    state = {**state, **{k: jnp.asarray(v) for k, v in settings.items()}} if settings else state
    return jax.jit(rule.estimate)(params, batch, state, KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


def test_a_sweep_with_a_gain_is_the_written_formula():
    """Down the chain by γ, down the skip 1-3 by γ²; a push on state l of 3 enters by γ^(3−l)."""
    g = 0.3
    network = chain(dense(4), layers.tanh(), dense(3), layers.tanh(), dense(2))
    system = hopfield(network, skips={(1, 3): dense(2)}, gain=g)
    params, x, clamped, (s1, s2, s3) = at(system)
    w1, w2, w3 = (np.asarray(params[i]["w"]) for i in (0, 2, 4))
    b1, b2, b3 = (np.asarray(params[i]["b"]) for i in (0, 2, 4))
    u, d = (np.asarray(params[-1]["skips"]["1_3"][k]) for k in ("w", "b"))
    swept = system.sweep(params, clamped, (s1, s2, s3), lambda s: (0.1 * s[0], None, -0.2 * s[2]))
    push = 0.1 * s1
    s1 = np.tanh(x @ w1 + b1 + g * (s2 @ w2.T) + g**2 * (s3 @ u.T) + g**2 * push)
    s2 = np.tanh(s1 @ w2 + b2 + g * (s3 @ w3.T))
    s3 = s2 @ w3 + b3 + s1 @ u + d - 0.2 * s3
    for ours, expected in zip(swept, (s1, s2, s3), strict=True):
        np.testing.assert_allclose(ours, expected, atol=1e-13)


def test_the_energy_with_a_gain_is_the_written_formula():
    """Σ_l γ^(l−3) (A_l(s_l) − ⟨s_l, f(s_below)⟩), with A = s²/2 of linear units, in NumPy."""
    g = 0.4
    network = chain(dense(4), layers.linear(), dense(3), layers.linear(), dense(2))
    system = hopfield(network, skips={(1, 3): dense(2)}, gain=g)
    params, x, clamped, (s1, s2, s3) = at(system)
    u = params[-1]["skips"]["1_3"]
    z1 = x @ params[0]["w"] + params[0]["b"]
    z2 = s1 @ params[2]["w"] + params[2]["b"]
    z3 = s2 @ params[4]["w"] + params[4]["b"] + s1 @ u["w"] + u["b"]
    terms = [np.sum(s * s / 2 - s * z, axis=1) for s, z in ((s1, z1), (s2, z2), (s3, z3))]
    expected = terms[0] / g**2 + terms[1] / g + terms[2]
    np.testing.assert_allclose(system.energy(params, clamped, (s1, s2, s3)), expected, rtol=1e-13)


def test_a_gain_of_one_is_no_gain_to_the_last_bit():
    plain, one = skipped(), skipped(gain=1.0)
    params, _, clamped, state = at(plain)
    jaxprs = [jax.make_jaxpr(s.sweep)(params, clamped, state) for s in (plain, one)]
    assert str(jaxprs[0]) == str(jaxprs[1])
    assert " mul " not in str(jax.make_jaxpr(hopfield(net()).sweep)(params, clamped, state))


@pytest.mark.parametrize("gain", [0.1, 0.5, 2.0])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "hard_sigmoid"])
def test_energy_never_rises_along_alternating_sweeps_with_a_gain(gain, name):
    system = skipped(name, gain=gain)
    params, _, clamped, state = at(system, scale=0.3 if gain > 1 else 0.8)
    sweep = jax.jit(lambda s: system.sweep(params, clamped, s))
    energy = jax.jit(lambda s: system.energy(params, clamped, s))
    found = [energy(state)]
    for _ in range(40):
        state = sweep(state)
        found.append(energy(state))
    found = np.stack(found)
    assert (np.diff(found, axis=0) / (1 + np.abs(found[:-1]))).max() <= 1e-12
    assert (found[0] - found[-1]).min() > 1e-2


@pytest.mark.long
@pytest.mark.parametrize("output", ["state", "readout"])
def test_force_denergy_and_dforce_are_derivatives_of_the_energy_with_a_gain(output):
    system = skipped(output=output, gain=0.3)
    params, x, clamped, state = at(system)
    slope = jax.grad(lambda s: system.energy(params, clamped, s).sum())(state)
    force = system.force(params, clamped, state)
    assert gradient_error(trees.scale(-1.0, force), slope) < 1e-13
    phases = jax.tree.map(lambda s: jnp.stack([s, 0.5 * s, s**2]), state)
    weights = jnp.array([0.5, -1.5, 0.7])

    def total(params):
        clamped = system.clamp(params, x)
        return weights @ jax.vmap(lambda s: system.energy(params, clamped, s).sum())(phases)

    exact = jax.grad(total)(params)
    assert gradient_error(system.denergy(params, clamped, phases, weights)[0], exact) < 1e-13
    v = jax.tree.map(jnp.cos, state)
    exact = jax.vjp(lambda p: system.force(p, system.clamp(p, x), state), params)[1](v)[0]
    assert gradient_error(system.dforce(params, clamped, state, v)[0], exact) < 1e-13


@pytest.mark.parametrize("schedule", ["alternating", "synchronous"])
def test_fixed_points_with_a_gain_are_stationary_points_of_the_energy(schedule):
    system = skipped(schedule=schedule, gain=0.4)
    params, _, clamped, start = at(system)
    state, info = TIGHT(lambda s: system.sweep(params, clamped, s), start)
    assert info.converged.all()
    slope = jax.grad(lambda s: system.energy(params, clamped, s).sum())(state)
    assert float(trees.max_abs(slope).max()) < 1e-11


def test_untied_feedback_with_a_gain_is_the_tied_one_at_angle_zero_and_its_dforce_the_pull_back():
    tied, system = skipped(gain=0.3), skipped(gain=0.3, feedback="untied", angle=0.0)
    params, x, clamped, state = at(tied)
    own = {"dense_2": params[2:3], "dense_3": params[4:5], "dense_4": params[6:7]}
    both = (*params, {"feedback": own | {n: params[-1]["skips"][n] for n in ("1_3", "1_4")}})
    for ours, theirs in (
        (system.sweep(both, clamped, state), tied.sweep(params, clamped, state)),
        (system.force(both, clamped, state), tied.force(params, clamped, state)),
    ):
        assert gradient_error(ours, theirs) < 1e-14
    other, _ = hopfield(
        net(), skips={(0, 2): dense(5), (1, 3): dense(4, bias=False), (1, 4): dense(3)},
        feedback="untied", gain=0.3,
    ).init(KEY, (4,))  # fmt: skip
    v = jax.tree.map(jnp.cos, state)
    exact = jax.vjp(lambda p: system.force(p, system.clamp(p, x), state), other)[1](v)[0]
    assert gradient_error(system.dforce(other, clamped, state, v)[0], exact) < 1e-13


@pytest.mark.parametrize(("nudging", "order"), [("one-sided", 1), ("centered", 2)])
@pytest.mark.parametrize("output", ["state", "readout"])
def test_ep_with_a_gain_errs_by_the_order_of_beta_against_implicit_differentiation(
    output, nudging, order
):
    system = skipped(output=output, gain=0.5)
    params, x, *_ = at(system)
    batch = Batch(x, jnp.array([0, 1, 2, 0, 1]))
    cost = squared_error() if output == "state" else softmax_cross_entropy()
    exact = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, batch).grads
    rule = eqprop(system, cost, TIGHT, TIGHT, nudging=nudging)
    betas = np.array([0.03, 0.01, 0.003])
    errors = [distance(gradient(rule, params, batch, beta=b).grads, exact) for b in betas]
    assert errors[-1] < 1e-2
    assert abs(np.polyfit(np.log(betas), np.log(errors), 1)[0] - order) <= 0.05


def test_without_symmetry_asymmetric_ep_stays_exact_with_a_gain_and_vector_field_ep_does_not():
    """The correction is a push on every state: it enters each by the weight that its force has."""
    system = hopfield(net(), feedback="untied", gain=0.4)
    params, x, *_ = at(system)
    batch, cost = Batch(x, jnp.array([0, 1, 2, 0, 1])), squared_error()
    exact = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, batch).grads
    near = gradient(asymmetric_eqprop(system, cost, TIGHT, TIGHT, beta=1e-3), params, batch)
    assert near.info["nudged"].converged.all()
    assert distance(near.grads, exact) < 1e-5
    biased = gradient(vector_field_eqprop(system, cost, TIGHT, TIGHT, beta=1e-3), params, batch)
    assert distance(biased.grads, exact) > 1e-2


def test_eps_updates_match_bptts_with_a_gain():
    system = hopfield(net(), schedule="synchronous", gain=0.5)
    params, x, *_ = at(system)
    batch = Batch(x, jnp.array([0, 1, 2, 0, 1]))
    found = gdu_mismatch(system, squared_error(), params, batch, sweeps=8)
    assert found.settled
    assert abs(found.slope - 1) < 0.05


@pytest.mark.long
def test_the_curvature_with_a_gain_is_that_of_the_energys_hessian():
    system = hopfield(net(), gain=0.5)
    params, x, *_ = at(system, batch=1)
    clamped = system.clamp(params, x)
    state, _ = TIGHT(lambda s: system.sweep(params, clamped, s), system.init_state(params, clamped))
    flat, back = jax.flatten_util.ravel_pytree(state)
    hessian = jax.hessian(lambda s: system.energy(params, clamped, back(s)).sum())(flat)
    found = curvature(system, params, x)
    np.testing.assert_allclose(found.smallest, np.linalg.eigvalsh(hessian)[0], rtol=1e-8)
    schur = np.linalg.inv(np.linalg.inv(hessian)[-3:, -3:])
    np.testing.assert_allclose(found.output, np.linalg.eigvalsh(schur)[0], rtol=1e-8)
    assert found.asymmetry[0] < 1e-12


def test_a_small_gain_makes_the_free_phase_the_forward_pass():
    params, x, *_ = at(hopfield(net()))
    forward, _ = net().forward(params, x)
    gaps = []
    for gain in (1e-1, 1e-2, 1e-3):
        system = hopfield(net(), gain=gain)
        clamped = system.clamp(params, x)
        start = system.init_state(params, clamped)
        state, _ = TIGHT(lambda s, m=system, c=clamped: m.sweep(params, c, s), start)
        gaps.append(float(jnp.abs(state[-1] - forward).max()))
    assert gaps[-1] < 1e-2
    assert abs(np.polyfit([-1, -2, -3], np.log10(gaps), 1)[0] - 1) < 0.05


@pytest.mark.parametrize(
    ("gain", "message"),
    [
        (0.0, "gain = 0.0: must be a number > 0"),
        (-1.0, "gain = -1.0: must be a number > 0"),
        (1e-9, r"gain = 1e-09: with 4 states γ\^4 must be 1e-30 to 1e30"),
        (1e200, r"gain = 1e\+200: with 4 states"),
    ],
)
def test_a_gain_out_of_range_is_refused(gain, message):
    with pytest.raises(ValueError, match=f"hopfield: {message}"):
        hopfield(net(), gain=gain)
