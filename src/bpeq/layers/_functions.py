"""Functions of any layer: its output, its shapes, its statistics measured afresh."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from bpeq.types import Key, Layer, Params, Shape


def apply(layer: Layer, params: Params, x: Any, key: Key | None = None) -> Any:
    """The layer's output alone: what `jax.grad` differentiates when it checks `backward`.

    Args:
      layer: any layer.
      params: its parameters.
      x: `[batch, ...]`.
      key: random key of a training pass; None evaluates.

    Returns:
      y, `[batch, ...]`.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import relu
      >>> apply(relu(), (), jnp.array([-1.0, 2.0])).tolist()
      [0.0, 2.0]
    """
    return layer.forward(params, x, key)[0]


def with_custom_vjp(layer: Layer) -> Callable[..., Any]:
    """f(params, x, key=None) -> y, whose reverse-mode derivative is the layer's own `backward`.

    For code outside of bpeq: `jax.grad`, `jax.vjp` and `jax.vmap` work as ever; forward mode
    (`jax.jvp`, `jax.jacfwd`, `jax.hessian`) does not, JAX forbids it for such functions. Inside
    bpeq nothing uses this wrapper.

    Args:
      layer: any layer.

    Returns:
      f(params, x, key=None) -> y.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import dense
      >>> params, _ = dense(2).init(jax.random.key(0), (3,))
      >>> f = with_custom_vjp(dense(2))
      >>> jax.grad(lambda p: f(p, jnp.ones((4, 3))).sum())(params)["b"].tolist()
      [4.0, 4.0]
    """

    @jax.custom_vjp
    def run(params: Params, x: Any, key: Key | None) -> Any:
        return layer.forward(params, x, key)[0]

    def forward(params: Params, x: Any, key: Key | None) -> tuple[Any, Any]:
        y, residuals = layer.forward(params, x, key)
        return y, (params, residuals)

    def backward(kept: Any, dy: Any) -> tuple[Params, Any, None]:
        params, residuals = kept
        dparams, dx = layer.backward(params, params, residuals, dy)
        return dparams, dx, None

    run.defvjp(forward, backward)

    def f(params: Params, x: Any, key: Key | None = None) -> Any:
        return run(params, x, key)

    return f


def init_shapes(
    init: Callable[[Key, Shape], tuple[Params, Shape]], shape: Shape
) -> tuple[Params, Shape]:
    """What an `init` gives, with shapes and dtypes in place of the parameters' numbers.

    Args:
      init: a layer's, a system's, or one of your own.
      shape: the shape of one example, without the batch axis.

    Returns:
      The tree of parameters, a `jax.ShapeDtypeStruct` for each leaf, and the shape of one output.

    Raises:
      ValueError: what `init` itself refuses.

    Example:
      >>> from bpeq.layers import dense
      >>> params, shape = init_shapes(dense(3).init, (5,))
      >>> params["w"].shape, shape
      ((5, 3), (3,))
    """

    def traced(key: Key) -> tuple[Params, jax.Array]:
        params, end = init(key, shape)
        return params, jnp.empty(end)  # an array carries its shape out of the trace

    params, like = jax.eval_shape(traced, jax.random.key(0))
    return params, like.shape


def output_shape(layer: Layer, shape: Shape) -> Shape:
    """The shape of a layer's output for one example of shape `shape`.

    Args:
      layer: any layer.
      shape: the shape of one example, without the batch axis.

    Returns:
      The shape of one output, without the batch axis.

    Raises:
      ValueError: the layer does not take examples of this shape.

    Example:
      >>> from bpeq.layers import chain, conv, flatten
      >>> output_shape(chain(conv(4, kernel=3), flatten()), (8, 8, 1))
      (256,)
    """
    return init_shapes(layer.init, shape)[1]


def calibrate(network: Layer, params: Params, x: Any) -> Params:
    """`params` with the population statistics that `x` has on its way through the network.

    Running averages trail behind the weights, and were taken with dropout on; these are those of
    the weights as they are, evaluated as they will be. Afterwards evaluation on x normalises as
    training on x as one batch would (without dropout).

    Each evaluation pass writes every normalisation's statistics of that pass, so that pass i
    settles the i-th one on the way from the input; the pass that changes nothing is the last. It
    costs one pass more than there are normalisations, whatever combinators they stand in. Can be
    jitted.

    Args:
      network: any layer; without statistics `params` come back as they are.
      params: its parameters; entries that a rule has appended to a chain's stay as they are.
      x: `[examples, ...]`, as many as fit in memory at once; a thousand are plenty.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import batch_norm, chain
      >>> network = chain(batch_norm())
      >>> params, _ = network.init(jax.random.key(0), (1,))
      >>> calibrate(network, params, jnp.array([[1.0], [3.0]]))[0]["mean"].tolist()
      [2.0]
    """
    absorb = network.absorb
    if absorb is None:
        return params
    if network.name == "chain" and len(params) > len(network.parts):
        own = len(network.parts)
        return (*calibrate(network, params[:own], x), *params[own:])

    def go_on(carry: tuple[Params, Any]) -> Any:
        return carry[1]

    def measure(carry: tuple[Params, Any]) -> tuple[Params, Any]:
        old, _ = carry
        new = absorb(old, network.forward(old, x)[1])
        pairs = zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        same = [jnp.array_equal(a, b, equal_nan=True) for a, b in pairs]
        return new, ~jnp.stack(same).all()

    return jax.lax.while_loop(go_on, measure, (params, jnp.array(True)))[0]
