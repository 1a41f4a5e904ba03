"""The microscope's own measures, and the exact references among each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpeq
from bpeq.analysis.bias_order import bias_order
from bpeq.analysis.gradient_fidelity import closeness, exact_gradient
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense, flatten, tanh
from bpeq.rules import (
    autodiff,
    backprop,
    contrastive_hebbian,
    eqprop,
    recurrent_backprop,
    stateless,
)
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import hopfield
from bpeq.types import Batch, Estimate

NETWORK = chain(flatten(), dense(7), tanh(), dense(6), tanh(), dense(3))
SYSTEM = hopfield(NETWORK)
SETTLE = fixed_point(1e-13, 3000)
KEY = jax.random.key(2)


def case(dtype=jnp.float64, scale=0.5):
    params, _ = NETWORK.init(jax.random.key(0), (4,))
    x, y = (jax.random.normal(jax.random.key(i), (5, n)) for i, n in ((1, 4), (2, 3)))
    return trees.cast((trees.scale(scale, params), Batch(x, y)), dtype)


def test_closeness_by_hand():
    """g = (3, 4, 0), g* = (3, 0, 4): ‖g − g*‖ = 4√2, g·g* = 9, norms 5; the last sign is missed."""
    found = closeness({"a": np.array([3.0, 4.0]), "b": np.array([0.0])}, {
        "a": np.array([3.0, 0.0]), "b": np.array([4.0])
    })  # fmt: skip
    np.testing.assert_allclose(found, (4 * np.sqrt(2) / 5, 9 / 25, 1.0, 0.5))


@pytest.mark.parametrize(
    ("ours", "exact", "expected"),
    [
        (np.zeros(2), np.zeros(2), (0.0, 1.0, 1.0, 1.0)),
        (np.ones(2), np.zeros(2), (np.inf, 0.0, np.inf, 0.0)),
        (np.zeros(2), np.ones(2), (1.0, 0.0, 0.0, 0.0)),
        (-np.ones(2), np.ones(2), (2.0, -1.0, 1.0, 0.0)),
    ],
)
def test_closeness_where_a_gradient_vanishes_or_turns_round(ours, exact, expected):
    np.testing.assert_allclose(closeness(ours, exact), expected, atol=1e-15)


def test_a_nan_is_never_close():
    found = closeness(np.array([np.nan, 1.0]), np.ones(2))
    assert np.isnan(found.relative_error)
    assert np.isnan(found.cosine)


def test_exact_references_agree():
    """Implicit by fixed point, Neumann series and GMRES, each on the same settled system."""
    params, batch = case()
    exact = exact_gradient(eqprop(SYSTEM, squared_error()), params, batch, key=KEY)
    assert exact.info["free"].converged.all()
    for how in (
        {"adjoint": SETTLE},
        {"method": "neumann", "terms": 600},
        {"method": "gmres", "tolerance": 1e-13},
    ):
        rule = recurrent_backprop(SYSTEM, squared_error(), SETTLE, **how)
        estimate, _ = jax.jit(rule.estimate)(params, batch, (), KEY)
        assert bool(estimate.info["adjoint"].residual.max() < 1e-9)
        error = closeness(estimate.grads, exact.grads).relative_error
        assert error < 1e-10, (how, error)


def test_gmres_restarts_of_a_small_space_reach_the_same_adjoint():
    params, batch = case()
    rule = recurrent_backprop(SYSTEM, squared_error(), SETTLE, method="gmres", terms=4)
    assert jax.jit(rule.estimate)(params, batch, (), KEY)[0].info["adjoint"].converged.all()
    found = bpeq.gradient_fidelity(rule, params, batch, key=KEY)
    assert found.total.relative_error < 1e-5


def test_a_cut_neumann_series_is_less_exact_and_says_so():
    params, batch = case()
    rule = recurrent_backprop(SYSTEM, squared_error(), SETTLE, method="neumann", terms=3)
    found = bpeq.gradient_fidelity(rule, params, batch, key=KEY)
    assert found.total.relative_error > 1e-3
    assert found.settled == 0.5  # the free phase did, the adjoint did not


@pytest.mark.parametrize("cost", [squared_error(), softmax_cross_entropy()])
def test_backprop_in_float32_is_exact_up_to_round_off_in_every_layer(cost):
    params, batch = case(jnp.float32)
    found = bpeq.gradient_fidelity(backprop(NETWORK, cost), params, batch, key=KEY, network=NETWORK)
    assert list(found.layers) == ["dense_1", "dense_2", "dense_3"]
    for row in (found.total, *found.layers.values()):
        assert 0 < row.relative_error < 1e-6
        assert row.cosine > 1 - 1e-12
    assert found.settled == 1.0
    assert found.sweeps == 0.0


def test_layers_are_judged_each_by_itself():
    """The second layer's gradient doubled: its row says 1.0, the others' nothing."""
    params, batch = case()
    rule = autodiff(NETWORK, squared_error())

    def twice(params, batch, key):
        estimate, _ = rule.estimate(params, batch, (), key)
        grads = list(estimate.grads)
        grads[3] = trees.scale(2.0, grads[3])
        return estimate._replace(grads=tuple(grads))

    wrong = stateless(rule.apply, twice)
    found = bpeq.gradient_fidelity(wrong, params, batch, key=KEY, network=NETWORK, reference=rule)
    np.testing.assert_allclose([row.relative_error for row in found.layers.values()], [0, 1, 0])
    np.testing.assert_allclose(found.layers["dense_2"].norm_ratio, 2.0)
    grads = rule.estimate(params, batch, (), KEY)[0].grads
    part, whole = (float(trees.dot(g, g)) for g in (grads[3], grads))
    np.testing.assert_allclose(found.total.relative_error, np.sqrt(part / whole))


def test_a_rule_without_a_reference_asks_for_one():
    params, batch = case()
    rule = stateless(lambda p, x, key=None: x, lambda p, b, k: Estimate(p, 0.0, b.x, {}), "mine")
    with pytest.raises(ValueError, match="mine: has no reference of its own; give reference ="):
        bpeq.gradient_fidelity(rule, params, batch, key=KEY)


def test_a_rule_that_follows_another_objective_is_set_against_both():
    """Here twice the cost: half of its gradient is missing to ∇C, nothing to its own objective."""
    params, batch = case()
    rule = autodiff(NETWORK, squared_error())

    def twice(params, batch, state, key):
        estimate, state = rule.estimate(params, batch, state, key)
        return estimate._replace(grads=trees.scale(2.0, estimate.grads)), state

    doubled = rule._replace(estimate=twice)
    plain = bpeq.gradient_fidelity(doubled, params, batch, key=KEY, network=NETWORK)
    assert plain.own_objective is None
    follows = doubled._replace(info=doubled.info._replace(objective=doubled))
    found = bpeq.gradient_fidelity(follows, params, batch, key=KEY, network=NETWORK)
    assert found._replace(own_objective=None) == plain
    np.testing.assert_allclose(found.total.relative_error, 1.0)
    np.testing.assert_allclose(found.own_objective.total, (0.0, 1.0, 1.0, 1.0), atol=1e-15)
    assert list(found.own_objective.layers) == list(found.layers)


def test_contrastive_hebbian_is_exact_to_its_own_objective_and_not_to_the_costs():
    params, batch = case()
    rule = contrastive_hebbian(SYSTEM, squared_error(), SETTLE, SETTLE)
    found = bpeq.gradient_fidelity(rule, params, batch, key=KEY, network=NETWORK)
    assert found.own_objective.total.relative_error < 1e-10
    assert found.own_objective.reference_settled == 1.0
    assert 0 < found.own_objective.reference_residual <= 1e-12
    assert found.total.relative_error > 0.1


def test_unsettled_phases_are_counted_and_sweeps_add_up():
    params, batch = case()
    rule = eqprop(SYSTEM, squared_error(), fixed_steps(7), fixed_steps(3, tolerance=1e-15))
    found = bpeq.gradient_fidelity(rule, params, batch, key=KEY)
    assert found.sweeps == 7 + 2 * 3
    assert 0.0 <= found.settled <= 1 / 3
    assert found.reference_settled == 1.0
    assert 0 < found.reference_residual <= 1e-12


def test_the_exact_gradient_is_in_float64_whatever_the_estimates_dtype():
    params, batch = case(jnp.float32)
    rule = eqprop(SYSTEM, squared_error(), beta=0.01)
    exact = exact_gradient(rule, params, batch, key=KEY)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(exact.grads))
    found = bpeq.gradient_fidelity(rule, params, batch, key=KEY)
    assert 1e-6 < found.total.relative_error < 1e-2


def test_bias_order_leaves_the_round_off_branch_out():
    betas = np.logspace(0, -6, 13)
    errors = 3 * betas**2 + 1e-12 / betas
    fit = bias_order(betas, errors)
    assert abs(fit.order - 2) < 0.01
    np.testing.assert_allclose(10**fit.intercept, 3, rtol=0.05)
    assert min(fit.betas) > 2e-4
    assert max(fit.betas) < 0.2
    assert bias_order([0.1, 0.01], [0.5, 0.2]).order is None


@pytest.mark.parametrize("top", [2e-4, 6e-3, 0.05])
def test_one_point_out_of_line_at_the_top_leaves_the_order_as_it_is(top):
    """Near a pole the bias bends; below 1 % the point is out of the run, above it is out anyhow."""
    betas = [0.1, *np.logspace(-1.3, -5, 12)]
    errors = [3 * b**2 + 1e-12 / b for b in betas]
    plain = bias_order(betas[1:], errors[1:])
    assert abs(plain.order - 2) < 0.01
    fit = bias_order(betas, [top, *errors[1:]])
    assert fit.order == plain.order
    assert fit.betas == plain.betas


def test_without_a_floor_in_sight_the_top_point_is_no_floor():
    fit = bias_order([0.3, 0.1, 0.03, 0.01], [5e-4, 9e-3, 9e-3 * 0.3**2, 9e-5])
    np.testing.assert_allclose(fit.order, 2.0, atol=0.02)
    assert fit.betas == [0.1, 0.03, 0.01]


def test_the_same_beta_twice_is_refused():
    with pytest.raises(ValueError, match="must all be different"):
        bias_order([0.1, 0.1], [1e-3, 1e-3])
