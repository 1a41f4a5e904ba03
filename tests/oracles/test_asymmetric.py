"""Asymmetric EP against implicit differentiation on systems without symmetry, where it is exact."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.costs import softmax_cross_entropy, squared_error
from bpeq.layers import chain, dense
from bpeq.rules import recurrent_backprop
from bpeq.rules._asymmetric_eqprop import asymmetric_eqprop
from bpeq.rules._vector_field_eqprop import skew, vector_field_eqprop
from bpeq.solvers import fixed_point, fixed_steps
from bpeq.systems import from_field, hopfield
from bpeq.types import Batch

TIGHT = fixed_point(1e-14, 5000)
KEY = jax.random.key(0)


def rates(form):
    """Random recurrent weights of spectral norm 0.8, no symmetry, and a trained readout."""
    fields = {
        "rate": lambda p, s, x: -s + jnp.tanh(p["w"] @ s + p["u"] @ x),
        "voltage": lambda p, s, x: -s + p["w"] @ jnp.tanh(s) + p["u"] @ x,
    }

    def init(key, shape):
        w, u, v = jax.random.split(key, 3)
        w = jax.random.normal(w, (8, 8))
        params = {"w": 0.8 * w / jnp.linalg.norm(w, 2), "u": jax.random.normal(u, (8, *shape))}
        return {**params, "v": 0.3 * jax.random.normal(v, (3, 8))}, (3,)

    system = from_field(fields[form], lambda p, x: jnp.zeros(8), lambda p, s: p["v"] @ s, init)
    x = jax.random.normal(jax.random.key(1), (6, 5))
    y = jax.random.normal(jax.random.key(2), (6, 3))
    return system, squared_error(), system.init(KEY, (5,))[0], Batch(x, y)


def layered(output="state", schedule="alternating", feedback="untied"):
    blocks = [dense(9), layers.tanh(), dense(7), layers.tanh(), dense(3)]
    network = chain(*blocks, *([layers.tanh()] if output == "state" else []))
    system = hopfield(network, output=output, schedule=schedule, feedback=feedback)
    params = trees.scale(0.8, system.init(KEY, (5,))[0])
    x = jax.random.normal(jax.random.key(1), (6, 5))
    y = jax.random.randint(jax.random.key(2), (6,), 0, 3)
    cost = squared_error() if output == "state" else softmax_cross_entropy()
    return system, cost, params, Batch(x, y)


PROBLEMS = {
    "rate": lambda: rates("rate"),
    "voltage": lambda: rates("voltage"),
    "layered, alternating": layered,
    "layered, synchronous": lambda: layered(schedule="synchronous"),
    "layered, readout": lambda: layered("readout"),
}


def gradient(rule, params, batch):
    params, state = rule.init(KEY, params)
    return jax.jit(rule.estimate)(params, batch, state, KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


def exact_gradient(system, cost, params, batch):
    found = gradient(recurrent_backprop(system, cost, TIGHT, TIGHT), params, batch)
    assert found.info["adjoint"].converged.all()
    return found.grads


@pytest.mark.parametrize("problem", PROBLEMS)
def test_centered_it_is_exact_where_vector_field_ep_is_biased(problem):
    system, cost, params, batch = PROBLEMS[problem]()
    exact = exact_gradient(system, cost, params, batch)
    settings = {"beta": 1e-3, "nudging": "centered"}
    ours = gradient(asymmetric_eqprop(system, cost, TIGHT, TIGHT, **settings), params, batch)
    theirs = gradient(vector_field_eqprop(system, cost, TIGHT, TIGHT, **settings), params, batch)
    assert ours.info["nudged"].converged.all()
    assert distance(ours.grads, exact) <= 1e-5
    assert distance(theirs.grads, exact) >= 0.05
    for own, right in zip(jax.tree.leaves(ours.grads), jax.tree.leaves(exact), strict=True):
        np.testing.assert_allclose(own, right, atol=1e-5 * float(jnp.abs(right).max() + 1e-3))


@pytest.mark.parametrize(("nudging", "order"), [("one-sided", 1.0), ("centered", 2.0)])
@pytest.mark.parametrize("problem", ["voltage", "layered, alternating"])
def test_its_error_falls_with_the_order_of_ep(problem, nudging, order):
    system, cost, params, batch = PROBLEMS[problem]()
    exact = exact_gradient(system, cost, params, batch)
    rule = asymmetric_eqprop(system, cost, TIGHT, TIGHT, nudging=nudging)
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))  # β is traced
    betas = np.geomspace(1e-2, 1e-4, 5)
    found = np.array(
        [
            distance(estimate(params, batch, {"beta": jnp.asarray(b)}, KEY)[0].grads, exact)
            for b in betas
        ]
    )
    fit = (found < 1e-2) & (found > 100 * 1e-13 / betas)
    assert fit.sum() >= 3
    assert abs(np.polyfit(np.log(betas[fit]), np.log(found[fit]), 1)[0] - order) <= 0.05


@pytest.mark.parametrize("nudging", ["one-sided", "centered"])
def test_on_a_symmetric_system_it_is_vector_field_ep(nudging):
    system, cost, params, batch = layered(feedback="tied")
    settings = {"beta": 0.05, "nudging": nudging}
    ours = gradient(asymmetric_eqprop(system, cost, TIGHT, TIGHT, **settings), params, batch)
    theirs = gradient(vector_field_eqprop(system, cost, TIGHT, TIGHT, **settings), params, batch)
    assert distance(ours.grads, theirs.grads) < 1e-11


def test_its_nudged_phase_settles_as_fast_as_the_free_one():
    """The corrected sweep has the free sweep's spectrum, synchronous or alternating."""
    for schedule in ("alternating", "synchronous"):
        system, cost, params, batch = layered(schedule=schedule)
        rule = asymmetric_eqprop(system, cost, TIGHT, TIGHT, beta=1e-3, nudging="one-sided")
        info = gradient(rule, params, batch).info
        assert info["nudged"].converged.all()
        assert int(info["nudged"].steps.max()) <= 1.2 * int(info["free"].steps.max())


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
@pytest.mark.parametrize("name", ["tanh", "sigmoid", "hard_sigmoid"])
def test_saturated_units_neither_spoil_the_estimate_nor_answer(name, dtype):
    """Half the hidden units are driven to σ's bounds, to the last digit: there σ⁻¹ has slope ∞."""
    act = getattr(layers, name)()
    system = hopfield(chain(dense(8), act, dense(6), act, dense(3)), feedback="untied")
    params = trees.scale(0.8, system.init(KEY, (5,))[0])
    drive = jnp.concatenate([jnp.asarray([150.0, -150.0, 40.0, -95.0]), jnp.full(4, 0.3)])
    params = ({**params[0], "b": drive}, *params[1:])
    x = 0.1 * jax.random.normal(jax.random.key(1), (6, 5))
    batch = Batch(x, jax.random.normal(jax.random.key(2), (6, 3)))
    exact = exact_gradient(system, squared_error(), params, batch)
    params, batch = trees.cast((params, batch), dtype)
    settle = TIGHT if dtype == jnp.float64 else fixed_steps(80)
    rule = asymmetric_eqprop(system, squared_error(), settle, settle, beta=0.003)
    ours = gradient(rule, params, batch).grads
    assert {leaf.dtype for leaf in jax.tree.leaves(ours)} == {jnp.dtype(dtype)}
    gap = distance(trees.cast(ours, jnp.float64), exact)
    assert gap < 1e-3
    assert float(jnp.abs(ours[0]["b"][:2]).max()) < 1e-12
    theirs = vector_field_eqprop(system, squared_error(), settle, settle, beta=0.003)
    theirs = gradient(theirs, params, batch).grads
    assert distance(trees.cast(theirs, jnp.float64), exact) > 0.05


def test_a_field_with_an_infinite_slope_at_a_bound_gets_no_push_there():
    """s' = drive − artanh s, held at s = 1: Jᵀ − J is finite off that unit, and not NaN on it."""
    b = jnp.asarray([[0.0, 0.5], [-0.3, 0.0]])
    system = from_field(
        lambda p, s, x: p @ s + x - jnp.arctanh(s),
        lambda p, x: jnp.stack([jnp.ones_like(x[0]), 0.2 * jnp.ones_like(x[0])]),
        lambda p, s: s[1:],
        lambda key, shape: (b, (1,)),
        step_size=0.2,
        project=lambda s: jnp.stack([jnp.ones_like(s[0]), s[1]]),
    )
    x, v = jnp.asarray([[50.0, 0.1]]), jnp.asarray([[2.0, 3.0]])
    twisted = skew(system, b, x, jnp.asarray([[1.0, -0.2]]))(v)
    np.testing.assert_allclose(twisted, [[0.0, (0.5 + 0.3) * 2.0]], rtol=1e-13)
    rule = asymmetric_eqprop(system, squared_error(), TIGHT, TIGHT, beta=1e-3)
    found = gradient(rule, b, Batch(x, jnp.asarray([[0.7]])))
    assert found.info["nudged"].converged.all()
    s = jnp.tanh(0.1 - 0.3)  # the second unit follows the first one, which rests at 1
    error = (s - 0.7) * (1 - s**2)
    np.testing.assert_allclose(found.grads[1], error * jnp.stack([1.0, s]), rtol=1e-5)


def test_float32_stays_float32_and_the_second_call_compiles_nothing():
    system, cost, params, batch = layered()
    params, batch = trees.cast((params, batch), jnp.float32)
    rule = asymmetric_eqprop(system, cost)
    params, state = rule.init(KEY, params)
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))
    found, after = estimate(params, batch, state, KEY)
    estimate(trees.scale(0.5, params), batch, {"beta": after["beta"] / 2}, jax.random.key(4))
    assert {leaf.dtype for leaf in jax.tree.leaves(found.grads)} == {jnp.dtype(jnp.float32)}
    assert found.info["nudged"].converged.shape == (2, 6)


@pytest.mark.parametrize(
    ("setting", "words"), [({"beta": -0.1}, "> 0"), ({"nudging": "random-sign"}, "must be")]
)
def test_a_setting_out_of_range_is_refused(setting, words):
    system, cost, *_ = rates("rate")
    with pytest.raises(ValueError, match=f"asymmetric_eqprop: .*{words}"):
        asymmetric_eqprop(system, cost, **setting)
