"""BPTT against implicit differentiation, its truncation against the Neumann series."""

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
from bpeq.rules._bptt import bptt
from bpeq.solvers import fixed_point
from bpeq.systems import from_field, hopfield
from bpeq.types import Batch

TIGHT = fixed_point(1e-14, 5000)
KEY = jax.random.key(0)


def layered(output="state", dtype=jnp.float64):
    blocks = [dense(9), layers.tanh(), dense(7), layers.tanh(), dense(3)]
    last = [layers.tanh()] if output == "state" else []
    system = hopfield(chain(*blocks, *last), output=output)
    params, _ = system.init(KEY, (5,))
    params = trees.cast(trees.scale(0.8, params), dtype)
    x = jax.random.normal(jax.random.key(1), (6, 5), dtype)
    y = jax.random.randint(jax.random.key(2), (6,), 0, 3)
    return system, squared_error() if output == "state" else softmax_cross_entropy(), params, x, y


def recurrent(output="state"):
    """No energy: s' = −s + tanh(W s + U x), with a W of spectral norm 0.9 and no symmetry."""

    def init(key, shape):
        w = jax.random.normal(key, (8, 8))
        u = jax.random.normal(jax.random.fold_in(key, 1), (8, *shape))
        v = jax.random.normal(jax.random.fold_in(key, 2), (3, 8))
        return {"w": 0.9 * w / jnp.linalg.norm(w, 2), "u": u, "v": v}, (3,)

    system = from_field(
        lambda p, s, x: -s + jnp.tanh(p["w"] @ s + p["u"] @ x),
        lambda p, x: jnp.zeros(8),
        lambda p, s: p["v"] @ s,
        init,
    )
    x = jax.random.normal(jax.random.key(1), (6, 5))
    y = jax.random.normal(jax.random.key(2), (6, 3))
    return system, squared_error(), system.init(KEY, (5,))[0], x, y


def gradient(rule, params, batch):
    params, state = rule.init(KEY, params)
    return jax.jit(rule.estimate)(params, batch, state, KEY)[0]


def distance(a, b):
    gap = trees.sub(a, b)
    return float(jnp.sqrt(trees.dot(gap, gap) / trees.dot(b, b)))


PROBLEMS = {
    "state": layered,
    "readout": lambda: layered("readout"),
    "no energy": recurrent,
}


@pytest.mark.parametrize("method", ["fixed-point", "neumann", "gmres"])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_at_many_sweeps_it_is_recurrent_backprop(problem, method):
    system, cost, params, x, y = PROBLEMS[problem]()
    ours = gradient(bptt(system, cost, sweeps=500), params, Batch(x, y))
    rule = recurrent_backprop(system, cost, TIGHT, TIGHT, method=method, tolerance=1e-13, terms=500)
    exact = gradient(rule, params, Batch(x, y))
    assert exact.info["adjoint"].residual.max() < 1e-12
    assert distance(ours.grads, exact.grads) <= 1e-10
    np.testing.assert_allclose(ours.output, exact.output, atol=1e-13)
    np.testing.assert_allclose(ours.loss, exact.loss, rtol=1e-12)


@pytest.mark.parametrize("truncate", [1, 3, 10])
@pytest.mark.parametrize("problem", PROBLEMS)
def test_truncated_at_an_equilibrium_it_is_the_neumann_series_cut(problem, truncate):
    system, cost, params, x, y = PROBLEMS[problem]()
    ours = gradient(bptt(system, cost, sweeps=500, truncate=truncate), params, Batch(x, y))
    rule = recurrent_backprop(system, cost, TIGHT, method="neumann", terms=truncate)
    cut = gradient(rule, params, Batch(x, y))
    assert distance(ours.grads, cut.grads) <= 1e-10
    full = gradient(bptt(system, cost, sweeps=500), params, Batch(x, y))
    assert distance(ours.grads, full.grads) > 1e-4  # the cut is seen


def test_it_is_the_exact_gradient_of_an_unsettled_phase():
    """Central differences of its own apply after three sweeps, along a random direction."""
    system, cost, params, x, y = layered()
    rule = bptt(system, cost, sweeps=3)
    ours = gradient(rule, params, Batch(x, y))
    assert not ours.info["free"].converged.any()
    assert (ours.info["free"].steps == 3).all()
    leaves, structure = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(5), len(leaves))
    way = [jax.random.normal(k, p.shape) for k, p in zip(keys, leaves, strict=True)]
    way = jax.tree.unflatten(structure, way)

    def loss(step):
        moved = trees.add(params, trees.scale(step, way))
        return cost.value(rule.apply(moved, x), y).mean()

    slope = (loss(1e-5) - loss(-1e-5)) / 2e-5
    np.testing.assert_allclose(trees.dot(ours.grads, way), slope, rtol=1e-8)


def test_its_reference_is_the_settled_gradient():
    system, cost, params, x, y = layered()
    rule = bptt(system, cost, sweeps=500)
    exact = gradient(rule.info.reference, params, Batch(x, y)).grads
    assert distance(gradient(rule, params, Batch(x, y)).grads, exact) <= 1e-10
    assert distance(gradient(bptt(system, cost, sweeps=2), params, Batch(x, y)).grads, exact) > 0.01


def test_float32_stays_float32_and_the_second_call_compiles_nothing():
    system, cost, params, x, y = layered(dtype=jnp.float32)
    rule = bptt(system, cost, sweeps=20, truncate=5)
    chex.clear_trace_counter()
    estimate = jax.jit(chex.assert_max_traces(rule.estimate, n=1))
    found, _ = estimate(params, Batch(x, y), (), KEY)
    estimate(trees.scale(0.5, params), Batch(x, y), (), jax.random.key(4))
    assert {leaf.dtype for leaf in jax.tree.leaves(found.grads)} == {jnp.dtype(jnp.float32)}
    assert (found.info["free"].steps == 20).all()


def test_a_truncation_longer_than_the_phase_is_refused():
    system, cost, *_ = layered()
    with pytest.raises(ValueError, match=r"bptt: truncate = 9: must be <= sweeps = 8"):
        bptt(system, cost, sweeps=8, truncate=9)
    with pytest.raises(ValueError, match=r"truncate = 0: must be a whole number >= 1"):
        bptt(system, cost, sweeps=8, truncate=0)
