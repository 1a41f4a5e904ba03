"""Sweeps in a shorter floating type, contrasts in the weights' own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import costs, layers, rules, systems
from bpeq.analysis import gradient_fidelity
from bpeq.core import trees
from bpeq.layers import chain, dense
from bpeq.solvers import fixed_steps
from bpeq.systems.devices import imperfect
from bpeq.types import Batch

NET = chain(dense(8), layers.shifted_sigmoid(), dense(3), layers.shifted_sigmoid())
SYSTEM, COST = systems.hopfield(NET), costs.squared_error()
PARAMS = trees.scale(0.5, SYSTEM.init(jax.random.key(1), (5,))[0])
BATCH = Batch(jax.random.uniform(jax.random.key(2), (6, 5)), jnp.arange(6) % 3)


def short(tree, dtype):
    return jax.tree.map(lambda a: a.astype(dtype), tree)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_free_phase_is_swept_in_the_shorter_type(dtype):
    """By hand: everything cast, three sweeps, cast back."""
    rule = rules.eqprop(SYSTEM, COST, fixed_steps(3), fixed_steps(3), relaxation=dtype)
    params, clamped = short((PARAMS, SYSTEM.clamp(PARAMS, BATCH.x)), dtype)
    state = SYSTEM.init_state(params, clamped)
    for _ in range(3):
        state = SYSTEM.sweep(params, clamped, state)
    output = rule.apply(rule.init(jax.random.key(0), PARAMS)[0], BATCH.x)
    assert output.dtype == jnp.float64
    np.testing.assert_array_equal(output, state[-1].astype(jnp.float64))
    exact = rules.eqprop(SYSTEM, COST, fixed_steps(3), fixed_steps(3)).apply(PARAMS, BATCH.x)
    assert 1e-6 < float(jnp.abs(output - exact).max()) < 2e-2


def test_the_contrast_stays_in_the_weights_type_and_errs_by_the_grid_over_beta():
    """float16's grid is 2⁻¹¹, bfloat16's 2⁻⁸: eight times the error, and the less the larger β."""
    errors = {}
    for dtype in ("float16", "bfloat16"):
        for beta in (0.05, 0.2):
            made = {}
            for relaxation in ("same", dtype):
                solver = fixed_steps(40)
                rule = rules.eqprop(SYSTEM, COST, solver, solver, beta=beta, relaxation=relaxation)
                params, state = rule.init(jax.random.key(0), PARAMS)
                grads = rule.estimate(params, BATCH, state, jax.random.key(3))[0].grads
                assert all(g.dtype == jnp.float64 for g in jax.tree.leaves(grads))
                made[relaxation] = jnp.concatenate([g.ravel() for g in jax.tree.leaves(grads)])
            gap = jnp.linalg.norm(made[dtype] - made["same"]) / jnp.linalg.norm(made["same"])
            errors[dtype, beta] = float(gap)
    assert errors["float16", 0.2] < 0.05
    assert 3 < errors["bfloat16", 0.2] / errors["float16", 0.2] < 20
    assert 2 * errors["bfloat16", 0.2] < errors["bfloat16", 0.05]


def test_the_microscope_sees_what_a_short_type_costs():
    solver = fixed_steps(40)
    found = {
        name: gradient_fidelity.gradient_fidelity(
            rules.eqprop(SYSTEM, COST, solver, solver, beta=0.1, relaxation=name),
            PARAMS,
            BATCH,
            key=jax.random.key(0),
        ).total.relative_error
        for name in ("same", "float16", "bfloat16")
    }
    assert found["same"] < found["float16"] < found["bfloat16"]


@pytest.mark.parametrize("nudging", ["holomorphic", "online"])
def test_complex_phases_have_no_shorter_type(nudging):
    system = systems.hopfield(chain(dense(4), layers.tanh(), dense(2)))
    with pytest.raises(ValueError, match="with relaxation = 'float16' no state can be complex"):
        rules.eqprop(system, COST, nudging=nudging, relaxation="float16")


def test_a_noisy_device_sweeps_in_the_shorter_type_too():
    noisy = imperfect(SYSTEM, noise=0.01, seed=0)
    rule = rules.eqprop(noisy, COST, fixed_steps(2), fixed_steps(2), relaxation="bfloat16")
    params, state = rule.init(jax.random.key(0), PARAMS)
    output = rule.estimate(params, BATCH, state, jax.random.key(3))[0].output
    np.testing.assert_array_equal(output, output.astype(jnp.bfloat16).astype(jnp.float64))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_held_output_is_on_no_grid(dtype):
    """It is what the phase was given; the hidden units settle on the short type's grid."""
    clamped = SYSTEM.clamp(PARAMS, BATCH.x)
    state = SYSTEM.traits.forward(PARAMS, clamped)
    swept = rules.in_short_floats(SYSTEM, dtype).sweep(PARAMS, clamped, state, hold=True)
    np.testing.assert_array_equal(swept[-1], state[-1])
    assert bool((state[-1].astype(dtype).astype(float) != state[-1]).all())
    np.testing.assert_array_equal(swept[0], swept[0].astype(dtype).astype(float))


def test_the_reference_of_a_short_type_is_the_exact_gradient():
    found = []
    for relaxation in ("same", "bfloat16"):
        rule = rules.eqprop(SYSTEM, COST, relaxation=relaxation).info.reference
        found.append(rule.estimate(PARAMS, BATCH, (), jax.random.key(0))[0].grads)
    for ours, theirs in zip(*map(jax.tree.leaves, found), strict=True):
        np.testing.assert_array_equal(ours, theirs)
