"""What the layers' tests share: drawn parameters, and the comparison with autodiff.

Everything that is compared goes through one jit without backend optimisation: compiling is what
these tests spend their time on.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import layers
from bpeq.core import trees
from bpeq.types import Layer

DTYPES = (jnp.float64, jnp.float32)
KEY = jax.random.key(7)
# The emitters of fused loops take most of XLA's compile time on CPU; jaxlib is not what is tested.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def run(program: Callable[..., Any], *args: Any) -> Any:
    """program(*args), compiled quickly."""
    return jax.jit(program, compiler_options=QUICK)(*args)


def call(layer: Layer, params: Any, x: Any, dy: Any = None, key: Any = None) -> Any:
    """(y, residuals, dparams, dx) with dy, ones unless it is given."""

    def program(params: Any, x: Any, dy: Any, key: Any) -> Any:
        y, kept = layer.forward(params, x, key)
        dy = jnp.ones_like(y) if dy is None else dy
        return y, kept, *layer.backward(params, params, kept, dy)

    return run(program, params, x, dy, key)


def abstract_init(layer: Layer, shape: tuple[int, ...]) -> tuple[Any, tuple[int, ...]]:
    """What `init` gives, its params as shapes and dtypes: nothing is compiled."""
    return layers.init_shapes(layer.init, shape)


def draw(layer: Layer, shape: tuple[int, ...], dtype: Any = jnp.float64, seed: int = 0) -> Any:
    """Normal numbers in the shape of the layer's params, variances between ½ and 1½."""
    rng = np.random.default_rng(seed)
    like, _ = abstract_init(layer, shape)

    def leaf(path: Any, a: Any) -> Any:
        positive = jax.tree_util.keystr(path).endswith("['variance']")
        values = rng.uniform(0.5, 1.5, a.shape) if positive else rng.normal(size=a.shape)
        return jnp.asarray(values)

    return trees.cast(jax.tree_util.tree_map_with_path(leaf, like), dtype)


def normal(*shape: int, dtype: Any = jnp.float64, seed: int = 1) -> Any:
    rng = np.random.default_rng(seed)
    values = rng.normal(size=shape)
    if jnp.issubdtype(dtype, jnp.complexfloating):
        values = values + 1j * rng.normal(size=shape)
    return jnp.asarray(values, dtype)


def matches_autodiff(
    layer: Layer,
    shape: tuple[int, ...],
    *,
    batch: int = 3,
    train: bool = False,
    deep: bool = False,
    x: Any = None,
    dtypes: tuple[Any, ...] = DTYPES,
    limits: tuple[float, ...] | None = None,
) -> None:
    """`backward` against `jax.vjp` of `forward`: values, structure, dtypes and shapes."""
    key = KEY if train else None
    _, end = abstract_init(layer, shape)
    for i, dtype in enumerate(dtypes):
        params = draw(layer, shape, dtype)
        at = normal(batch, *shape, dtype=dtype) if x is None else x
        inexact = jnp.issubdtype(at.dtype, jnp.inexact)
        dy = normal(at.shape[0], *end, dtype=dtype, seed=2)

        def both(params: Any, x: Any, dy: Any, inexact: bool = inexact) -> Any:
            y, residuals = layer.forward(params, x, key)
            dparams, dx = layer.backward(params, params, residuals, dy)

            def forward(params: Any, x: Any) -> Any:
                return layer.forward(params, x, key)[0]

            if inexact:
                return y, (dparams, dx), jax.vjp(forward, params, x)[1](dy)
            assert dx is None
            return y, dparams, jax.vjp(lambda p: forward(p, x), params)[1](dy)[0]

        for leaf in jax.tree.leaves(jax.eval_shape(both, params, at, dy)):
            assert leaf.dtype == dtype, leaf
            assert not leaf.weak_type
        y, ours, reference = run(both, params, at, dy)
        assert jax.tree.structure(ours) == jax.tree.structure(reference)
        assert y.shape == dy.shape
        limit = limits[i] if limits else layers.tolerance(dtype, deep)
        assert layers.gradient_error(ours, reference) <= limit, (layer.name, shape, dtype)


def matches_complex_step(
    layer: Layer, shape: tuple[int, ...], *, train: bool = False, x: Any = None
) -> None:
    """⟨dparams, dp⟩ + ⟨dx, v⟩ against Im ⟨dy, y(params + ih·dp, x + ih·v)⟩ / h: no autodiff."""
    key, h = KEY if train else None, 1e-30
    params, dp = draw(layer, shape), draw(layer, shape, seed=3)
    trained = layers.trained_leaves(layer, params)  # population statistics have no gradient
    dp = jax.tree.map(lambda a, is_trained: a if is_trained else a * 0, dp, trained)
    at = normal(2, *shape) if x is None else x
    v = normal(*at.shape, seed=4) if x is None else None

    def both(params: Any, dp: Any, at: Any, v: Any) -> Any:
        y, residuals = layer.forward(params, at, key)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        dparams, dx = layer.backward(params, params, residuals, dy)
        shifted = jax.tree.map(lambda a, b: jax.lax.complex(a, h * b), params, dp)
        y_shifted = layer.forward(shifted, at if v is None else jax.lax.complex(at, h * v), key)[0]
        ours = trees.dot((dparams, () if v is None else dx), (dp, () if v is None else v))
        return ours, jnp.sum(dy * y_shifted.imag) / h

    ours, exact = run(both, params, dp, at, v)
    np.testing.assert_allclose(ours, exact, rtol=1e-11)


def tied(product: Callable[..., Any]) -> Callable[..., Any]:
    """`product(x, w)` whose error passes backward through another weight: feedback alignment.

    An oracle by autodiff, with nothing written backward by hand.
    """
    stop = jax.lax.stop_gradient

    def apply(x: Any, w: Any, b: Any) -> Any:
        return product(stop(x), w) + product(x, stop(b)) - stop(product(x, b))

    return apply


def matches_feedback(
    layer: Layer, shape: tuple[int, ...], oracle: Callable[..., Any], *, train: bool = False
) -> None:
    """forward, and backward with an untied feedback tree, against `oracle(params, feedback, x)`."""
    key = KEY if train else None
    params, feedback, x = draw(layer, shape), draw(layer, shape, seed=9), normal(2, *shape)

    def both(params: Any, feedback: Any, x: Any) -> Any:
        y, residuals = layer.forward(params, x, key)
        expected, pull = jax.vjp(lambda p, x: oracle(p, feedback, x), params, x)
        dy = jnp.cos(jnp.arange(y.size, dtype=y.dtype)).reshape(y.shape)
        return (y, layer.backward(params, feedback, residuals, dy)), (expected, pull(dy))

    ours, expected = run(both, params, feedback, x)
    np.testing.assert_allclose(ours[0], expected[0], rtol=1e-11, atol=1e-12)
    assert layers.gradient_error(ours[1], expected[1]) <= 1e-12


def compiles_once(
    layer: Layer, shape: tuple[int, ...], *, train: bool = False, x: Any = None
) -> None:
    """Two gradient steps in float32, the second from the first one's params: one compilation."""
    params = draw(layer, shape, jnp.float32)
    at = normal(2, *shape, dtype=jnp.float32) if x is None else x

    @functools.partial(jax.jit, compiler_options=QUICK)
    def step(params: Any, x: Any, key: Any) -> Any:
        y, residuals = layer.forward(params, x, key if train else None)
        dparams, _ = layer.backward(params, params, residuals, y)
        params = trees.sub(params, trees.scale(0.01, dparams))
        return layer.absorb(params, residuals) if layer.absorb else params

    for i in range(2):
        params = step(params, at, jax.random.key(i))
    assert step._cache_size() == 1
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(params))


class Oracles:
    """The functions above, for tests to take as a fixture."""

    run = staticmethod(run)
    call = staticmethod(call)
    draw = staticmethod(draw)
    normal = staticmethod(normal)
    tied = staticmethod(tied)
    autodiff = staticmethod(matches_autodiff)
    complex_step = staticmethod(matches_complex_step)
    feedback = staticmethod(matches_feedback)
    compiles_once = staticmethod(compiles_once)


@pytest.fixture(scope="session")
def oracle() -> type[Oracles]:
    return Oracles
