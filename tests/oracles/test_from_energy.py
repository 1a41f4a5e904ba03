"""A user's own energy, with a dict state and a skip: against the equilibria that SciPy finds."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from bpeq import costs, rules
from bpeq.core import trees
from bpeq.solvers import fixed_point
from bpeq.systems import from_energy, from_field
from bpeq.types import Batch

INPUTS, HIDDEN, OUTPUTS = 3, 4, 2


def energy(w: Any, s: Any, x: Any) -> Any:
    h = jnp.tanh(s["hidden"])
    norms = jnp.sum(s["hidden"] ** 2) + jnp.sum(s["output"] ** 2)
    return norms / 2 - h @ (w["in"] @ x) - s["output"] @ (w["out"] @ h + w["skip"] @ x)


def init(key: Any, shape: Any) -> Any:
    a, b, c = jax.random.split(key, 3)
    weights = {
        "in": jax.random.normal(a, (HIDDEN, *shape)),
        "out": 0.3 * jax.random.normal(b, (OUTPUTS, HIDDEN)),
        "skip": jax.random.normal(c, (OUTPUTS, *shape)),
    }
    return weights, (OUTPUTS,)


def start(w: Any, x: Any) -> Any:
    return {"hidden": jnp.zeros(HIDDEN), "output": jnp.zeros(OUTPUTS)}


SYSTEM = from_energy(energy, start, lambda w, s: s["output"], init)
SETTLE = fixed_point(1e-13, 20_000)
COST = costs.squared_error()
X = np.random.default_rng(0).normal(size=(3, INPUTS))
Y = np.random.default_rng(1).normal(size=(3, OUTPUTS))


def settled_loss(w: dict[str, np.ndarray]) -> float:
    """½‖o − y‖², averaged; o = W_out tanh(u) + W_skip x at the root u of ∂E/∂hidden, in NumPy.

    0 = −u + tanh′(u) ⊙ (W_in x + W_outᵀ o).
    """
    total = 0.0
    for x, y in zip(X, Y, strict=True):

        def output(u: np.ndarray, x: np.ndarray = x) -> np.ndarray:
            return w["out"] @ np.tanh(u) + w["skip"] @ x

        def force(u: np.ndarray, x: np.ndarray = x, output: Any = output) -> np.ndarray:
            return -u + (1 - np.tanh(u) ** 2) * (w["in"] @ x + w["out"].T @ output(u))

        found = optimize.root(force, np.zeros(HIDDEN), tol=1e-15)
        assert np.abs(force(found.x)).max() < 1e-13
        total += 0.5 * np.sum((output(found.x) - y) ** 2)
    return total / len(X)


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    return {k: np.asarray(v) for k, v in SYSTEM.init(jax.random.key(0), (INPUTS,))[0].items()}


@pytest.fixture(scope="module")
def slope(weights) -> dict[str, np.ndarray]:
    """∂loss/∂θ by central differences, an entry at a time."""
    found = {name: np.zeros_like(array) for name, array in weights.items()}
    for name, array in weights.items():
        for place in np.ndindex(array.shape):
            ends = []
            for step in (1e-5, -1e-5):
                moved = {k: v.copy() for k, v in weights.items()}
                moved[name][place] += step
                ends.append(settled_loss(moved))
            found[name][place] = (ends[0] - ends[1]) / 2e-5
    return found


def relative_error(rule: Any, weights: Any, slope: Any) -> dict[str, float]:
    params, state = rule.init(jax.random.key(1), jax.tree.map(jnp.asarray, weights))
    batch = Batch(jnp.asarray(X), jnp.asarray(Y))
    estimate, _ = jax.jit(rule.estimate)(params, batch, state, jax.random.key(2))
    np.testing.assert_allclose(estimate.loss, settled_loss(weights), rtol=1e-10)
    return {
        name: float(np.linalg.norm(estimate.grads[name] - exact) / np.linalg.norm(exact))
        for name, exact in slope.items()
    }


def test_recurrent_backprop_is_the_slope_of_the_loss_at_the_energys_minimum(weights, slope):
    rule = rules.recurrent_backprop(SYSTEM, COST, SETTLE, SETTLE)
    assert max(relative_error(rule, weights, slope).values()) < 1e-8


@pytest.mark.parametrize(
    ("settings", "bound"),
    [
        ({"nudging": "centered", "beta": 1e-3}, 1e-5),
        ({"nudging": "holomorphic", "beta": 0.05, "points": 12}, 1e-8),
        ({"nudging": "online", "beta": 0.05, "points": 12}, 1e-8),
    ],
    ids=lambda value: value.get("nudging") if isinstance(value, dict) else "",
)
def test_eqprop_of_a_users_energy_is_that_slope(weights, slope, settings, bound):
    """Complex β too: the energy's derivatives are complex ones there."""
    rule = rules.eqprop(SYSTEM, COST, SETTLE, SETTLE, **settings)
    assert max(relative_error(rule, weights, slope).values()) < bound


def test_centered_eqprops_error_falls_as_beta_squared(weights, slope):
    at = [
        relative_error(rules.eqprop(SYSTEM, COST, SETTLE, SETTLE, beta=beta), weights, slope)
        for beta in (0.04, 0.02)
    ]
    ratios = [at[0][name] / at[1][name] for name in slope]
    assert ratios == pytest.approx([4.0] * 3, rel=0.02)


def traced(system: Any) -> Any:
    def sweep(key: Any) -> Any:
        params, _ = system.init(key, (INPUTS,))
        clamped = system.clamp(params, jnp.asarray(X))
        return system.sweep(params, clamped, system.init_state(params, clamped))

    return jax.eval_shape(sweep, jax.random.key(0))


def test_an_energy_that_is_no_number_says_what_it_is():
    system = from_energy(lambda w, s, x: s["hidden"] ** 2, start, lambda w, s: s["output"], init)
    said = r"from_energy: energy gives float64\[4\] for one example; it must give a number"
    with pytest.raises(ValueError, match=said):
        traced(system)


def test_a_field_that_is_not_the_states_says_what_it_is():
    system = from_field(lambda w, s, x: s["hidden"], start, lambda w, s: s["output"], init)
    said = r"field gives float64\[4\], not hidden float64\[4\], output float64\[2\]"
    with pytest.raises(ValueError, match=said):
        traced(system)


@pytest.mark.long
def test_an_energy_that_is_real_at_complex_states_is_not_holomorphic():
    system = from_energy(
        lambda w, s, x: jnp.real(energy(w, s, x)), start, lambda w, s: s["output"], init
    )
    rule = rules.eqprop(system, COST, SETTLE, SETTLE, nudging="holomorphic")
    params, _ = system.init(jax.random.key(0), (INPUTS,))
    params, state = rule.init(jax.random.key(1), params)
    batch = Batch(jnp.asarray(X), jnp.asarray(Y))
    with pytest.raises(
        ValueError, match="energy is real at a complex state: it is not holomorphic"
    ):
        rule.estimate(params, batch, state, jax.random.key(2))


def test_a_missing_argument_is_told_with_the_factorys_name():
    with pytest.raises(TypeError, match="from_energy: missing a required argument: 'init'"):
        from_energy(energy, start, lambda w, s: s["output"])


@pytest.mark.parametrize(
    ("given", "like", "said"),
    [
        ({"w": jnp.zeros(2)}, {"w": jnp.zeros(2)}, ""),
        ({"w": jnp.zeros(2)}, {"w": jnp.zeros(3)}, "w float64[2], not w float64[3]"),
        (jnp.zeros(2, int), jnp.zeros(2), "int64[2], not float64[2]"),
        ({"w": jnp.zeros(2)}, {"v": jnp.zeros(2)}, "w float64[2], not v float64[2]"),
        ([jnp.zeros(2)], (jnp.zeros(2),), "PyTreeDef([*]), not PyTreeDef((*,))"),
        (None, jnp.zeros(2), "nothing, not float64[2]"),
        ([jnp.zeros(())] * 5, {}, "0 float64[], 1 float64[], 2 float64[], 3 float64[], …, not {}"),
    ],
)
def test_the_difference_of_two_trees_in_words(given, like, said):
    assert trees.difference(given, like) == said
