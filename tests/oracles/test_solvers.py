"""Solvers on maps whose fixed points are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.solvers import fixed_point, fixed_steps

RATES = jnp.array([[0.1], [0.9], [0.5]])


def affine(s):
    """Fixed point 1/(1 − rate), approached at that rate, another for each example."""
    return RATES * s + 1.0


def test_fixed_point_certifies_the_very_state_that_it_returns():
    state, info = fixed_point(1e-9)(affine, jnp.zeros((3, 1)))
    residual = jnp.abs(affine(state) - state).max(axis=1)
    np.testing.assert_array_equal(info.residual, residual)
    assert (info.residual <= 1e-9).all()
    assert info.converged.all()
    np.testing.assert_allclose(state, 1 / (1 - RATES), rtol=1e-7)


def test_fixed_point_steps_are_those_that_each_example_needed():
    _, info = fixed_point(1e-9)(affine, jnp.zeros((3, 1)))
    # |sweep(s) − s| = rate^k after k sweeps: the first k with rate^k <= 1e-9, and its measurement
    expected = [int(np.ceil(np.log(1e-9) / np.log(r))) + 1 for r in (0.1, 0.9, 0.5)]
    assert np.abs(np.asarray(info.steps) - expected).max() <= 1


def test_a_settled_example_does_not_depend_on_its_batch_mates():
    alone, _ = fixed_point(1e-6)(lambda s: 0.1 * s + 1.0, jnp.zeros((1, 1)))
    among, _ = fixed_point(1e-6)(affine, jnp.zeros((3, 1)))
    assert float(alone[0, 0]) == float(among[0, 0])


def test_fixed_point_reports_failure_after_max_steps():
    _, info = fixed_point(1e-9, max_steps=20)(affine, jnp.zeros((3, 1)))
    assert info.converged.tolist() == [True, False, False]
    assert info.steps.tolist()[1:] == [20, 20]


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf])
def test_nan_and_infinity_never_count_as_settled(bad):
    _, info = fixed_point(1e-3, 50)(lambda s: s * bad, jnp.ones((2, 1)))
    assert not info.converged.any()
    _, info = fixed_steps(5)(lambda s: s * jnp.nan, jnp.ones((2, 1)))
    assert not info.converged.any()


def test_one_nan_example_does_not_spoil_the_others():
    start = jnp.array([[0.0], [jnp.nan], [0.0]])
    _, info = fixed_point(1e-6, 300)(affine, start)
    assert info.converged.tolist() == [True, False, True]


def test_a_start_at_the_fixed_point_takes_one_measurement():
    _, info = fixed_point(1e-6)(lambda s: s, jnp.ones((2, 3)))
    assert info.steps.tolist() == [1, 1]
    assert info.residual.tolist() == [0.0, 0.0]


def test_fixed_steps_is_plain_iteration_and_records_it():
    state, info = fixed_steps(4, record=True)(affine, jnp.zeros((3, 1)))
    s, path = jnp.zeros((3, 1)), []
    for _ in range(4):
        s = affine(s)
        path.append(s)
    np.testing.assert_array_equal(state, s)
    np.testing.assert_array_equal(info.trajectory, jnp.stack(path))
    np.testing.assert_allclose(info.residual, RATES[:, 0] ** 3, rtol=1e-12)


def test_damping_settles_a_two_cycle_with_the_undamped_residual():
    flip = lambda s: -s  # noqa: E731
    _, undamped = fixed_point(1e-6, 100)(flip, jnp.ones((1, 1)))
    state, damped = fixed_point(1e-6, 100, damping=0.4)(flip, jnp.ones((1, 1)))
    assert not undamped.converged[0]
    assert damped.converged[0]
    np.testing.assert_allclose(damped.residual, jnp.abs(2 * state[0]), atol=1e-18)


@pytest.mark.parametrize("solver", [fixed_steps(3), fixed_point(1e-4)])
def test_state_keeps_structure_dtype_and_solvers_work_under_jit_and_vmap(solver):
    start = {"a": jnp.zeros((2, 3, 1), jnp.float32), "b": (jnp.zeros((2, 3), jnp.float32),)}
    step = lambda s: jax.tree.map(lambda x: 0.5 * x + 1.0, s)  # noqa: E731
    state, info = jax.jit(jax.vmap(lambda s: solver(step, s)))(start)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, start)
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(state))
    assert info.steps.shape == (2, 3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: fixed_steps(0), "fixed_steps: steps = 0: must be a whole number >= 1"),
        (lambda: fixed_point(0.0), r"fixed_point: tolerance = 0.0: must be a number > 0"),
        (lambda: fixed_point(damping=1.0), r"damping = 1.0: must be a number >= 0 and < 1"),
        (lambda: fixed_point(max_steps=2.5), r"max_steps = 2.5: must be a whole number >= 1"),
    ],
)
def test_settings_out_of_range_are_refused_with_the_range(build, message):
    with pytest.raises(ValueError, match=message):
        build()
