"""Curvature, saturation, jumps and nudge amplitude against closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.analysis.equilibrium import curvature, jumped, nudge_amplitude
from bpeq.costs import squared_error
from bpeq.layers import chain, dense, linear, tanh
from bpeq.rules._asymmetric_eqprop import transposed
from bpeq.solvers import anderson, fixed_point
from bpeq.systems import from_energy, from_field, hopfield
from bpeq.types import Batch

SETTLE = fixed_point(1e-12, 5000)


def linear_net(w2):
    """E = ½|s₁|² + ½|s₂|² − s₁·x − s₂·(s₁w): its Hessian is [[1, −w], [−wᵀ, 1]]."""
    n, m = w2.shape
    system = hopfield(chain(dense(n, bias=False), linear(), dense(m, bias=False)))
    return system, ({"w": jnp.eye(n)}, (), {"w": jnp.asarray(w2)})


def test_curvature_of_a_linear_net_is_its_hessians_smallest_eigenvalue():
    w = np.array([[0.3, 0.2], [0.1, -0.4], [0.0, 0.5]])
    system, params = linear_net(w)
    hessian = np.block([[np.eye(3), -w], [-w.T, np.eye(2)]])
    found = curvature(system, params, jnp.ones((2, 3)))
    np.testing.assert_allclose(found.smallest, np.linalg.eigvalsh(hessian).min(), rtol=1e-12)
    np.testing.assert_allclose(found.output, np.linalg.eigvalsh(np.eye(2) - w.T @ w).min())
    np.testing.assert_allclose(found.asymmetry, 0, atol=1e-15)
    assert found.saturated == [0.0, 0.0]
    assert found.settled.all()


def test_a_negative_nudge_loses_its_curvature_at_the_output_curvature():
    """K − β reaches 0 at β = K: the response of a linear net has its pole there."""
    system, params = linear_net(np.array([[0.6], [0.3]]))
    k = curvature(system, params, jnp.ones((1, 2))).output[0]
    batch = Batch(jnp.ones((1, 2)), jnp.zeros((1, 1)))
    for beta, bounded in ((0.98 * k, True), (1.02 * k, False)):
        moved = nudge_amplitude(system, squared_error(), params, batch, -beta, SETTLE, SETTLE)
        assert (moved.residual <= 1e-12) is bounded


def test_saturated_units_are_counted_and_left_out():
    system = hopfield(chain(dense(3), layers.hard_sigmoid(), dense(2), tanh()))
    params = (
        {"w": jnp.zeros((1, 3)), "b": jnp.array([0.5, 3.0, -3.0])}, (),
        {"w": 0.2 * jnp.ones((3, 2)), "b": jnp.zeros(2)}, (),
    )  # fmt: skip
    found = curvature(system, params, jnp.ones((1, 1)))
    np.testing.assert_allclose(found.saturated, [2 / 3, 0.0])
    # one live hidden unit s with E = ½s² and two tanh outputs o: A″ = 1/(1 − o²)
    s, o = 0.5, 0.0
    for _ in range(200):
        o = np.tanh(0.2 * (s + 1.0))
        s = 0.5 + 2 * 0.2 * o
    bent = 1 / (1 - o**2)
    hessian = np.array([[1, -0.2, -0.2], [-0.2, bent, 0], [-0.2, 0, bent]])
    np.testing.assert_allclose(found.smallest, np.linalg.eigvalsh(hessian).min(), rtol=1e-9)


def test_asymmetry_of_a_field_by_hand():
    matrix = jnp.array([[1.0, 0.5], [0.1, 2.0]])
    system = from_field(
        lambda p, s, x: p @ (x - s), lambda p, x: jnp.zeros(2), lambda p, s: s,
        lambda key, shape: (matrix, (2,)), step_size=0.3,
    )  # fmt: skip
    found = curvature(system, matrix, jnp.ones((1, 2)))
    h = np.asarray(matrix)
    np.testing.assert_allclose(found.asymmetry, np.linalg.norm(h - h.T) / np.linalg.norm(h))
    np.testing.assert_allclose(found.smallest, np.linalg.eigvals(h).real.min())


def double_well():
    """E = (s² − 1)²/4 from s = 0.9, pulled over the hill by a strong nudge toward −2."""
    return from_energy(
        lambda p, s, x: jnp.sum((s**2 - 1) ** 2) / 4 + 0 * jnp.sum(p * x),
        lambda p, x: 0.9 * jnp.ones(1), lambda p, s: s,
        lambda key, shape: (jnp.ones(1), (1,)), step_size=0.2,
    )  # fmt: skip


def test_a_nudge_over_the_hill_is_a_jump_and_a_small_one_is_not():
    system, batch = double_well(), Batch(jnp.ones((2, 1)), jnp.array([[-2.0], [0.9]]))
    far = jumped(system, squared_error(), jnp.ones(1), batch, [0.01, 0.5])
    assert far.tolist() == [[False, False], [True, False]]


def test_a_nudge_that_runs_away_is_a_jump_though_the_free_phase_would_come_back():
    """At β > 1 a linear output is pushed to infinity; bounded hidden units bring it home."""
    system = hopfield(chain(dense(2, bias=False), tanh(), dense(1, bias=False)))
    params = ({"w": jnp.eye(2)}, (), {"w": jnp.array([[0.6], [0.3]])})
    batch = Batch(jnp.ones((1, 2)), jnp.zeros((1, 1)))
    assert jumped(system, squared_error(), params, batch, [0.5, 1.2]).tolist() == [[False], [True]]


def test_nudge_amplitude_is_the_linear_response_of_each_state():
    """(H + β P) Δs = β P (y − s₀) on the outputs, P their projection."""
    w = np.array([[0.3], [0.4]])
    system, params = linear_net(w)
    x, y, beta = np.array([[1.0, -0.5]]), 0.7, 0.1
    hessian = np.block([[np.eye(2), -w], [-w.T, np.eye(1)]])
    free = np.linalg.solve(hessian, np.array([*x[0], 0.0]))
    hessian[2, 2] += beta
    nudged = np.linalg.solve(hessian, np.array([*x[0], beta * y]))
    batch = Batch(jnp.asarray(x), jnp.array([[y]]))
    found = nudge_amplitude(system, squared_error(), params, batch, beta, SETTLE, SETTLE)
    gap = np.abs(nudged - free)
    np.testing.assert_allclose(found.amplitude, [gap[:2].max(), gap[2]], rtol=1e-8)
    assert found.residual <= 1e-12


def test_the_nudge_of_asymmetric_ep_moves_the_states_by_the_adjoints_response():
    """Of f = M (x − s): M s moves by Mᵀ's response, Δs = −(β P + Mᵀ)⁻¹ β ∂C/∂s, not by M's."""
    m, x, y, beta = np.array([[1.0, 0.5], [-0.7, 2.0]]), np.array([[1.0, -0.5]]), 0.7, 0.1
    system = from_field(
        lambda p, s, x: p @ (x - s), lambda p, x: jnp.zeros(2), lambda p, s: s[1:],
        lambda key, shape: (jnp.asarray(m), (2,)), step_size=0.3,
    )  # fmt: skip
    pull = np.array([0.0, beta * (y - x[0, 1])])
    batch, p = Batch(jnp.asarray(x), jnp.array([[y]])), beta * np.diag([0.0, 1.0])
    args = (system, squared_error(), jnp.asarray(m), batch, beta, SETTLE, SETTLE)
    for respond, matrix in ((None, m), (transposed, m.T)):
        found = nudge_amplitude(*args, respond)
        size = np.abs(np.linalg.solve(matrix + p, pull)).max()
        np.testing.assert_allclose(found.amplitude, [size], rtol=1e-8)
        many = Batch(jnp.repeat(batch.x, 64, axis=0), jnp.repeat(batch.y, 64, axis=0))
        found = nudge_amplitude(*args[:3], many, beta, SETTLE, anderson(1e-12), respond)
        np.testing.assert_allclose(found.amplitude, [size], rtol=1e-8)


def test_a_state_too_large_for_dense_algebra_is_refused():
    network = chain(dense(3001), tanh(), dense(1))
    params, _ = network.init(jax.random.key(0), (1,))
    with pytest.raises(ValueError, match="3002 units in the state of one example; at most 3000"):
        curvature(hopfield(network), params, jnp.ones((1, 1)))
