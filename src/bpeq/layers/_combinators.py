"""Layers made of layers: one after another, copies of one, and around a skip."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers._functions import output_shape
from bpeq.settings import Count, checked
from bpeq.types import Key, Layer, Params, Shape


def trained_leaves(layer: Layer, params: Params) -> Any:
    """Which leaves of a layer's parameters training may change.

    Args:
      layer: any layer.
      params: its parameters; entries that a rule has appended to a chain's count as trained.

    Returns:
      A tree of the structure of `params` with True or False for each leaf.

    Raises:
      ValueError: a layer has `absorb` and does not declare which leaves that writes.

    Example:
      >>> import jax
      >>> from bpeq.layers import batch_norm
      >>> params, _ = batch_norm().init(jax.random.key(0), (2,))
      >>> sorted(trained_leaves(batch_norm(), params).items())
      [('bias', True), ('gain', True), ('mean', False), ('variance', False)]
    """
    if layer.trained is not None:
        return layer.trained(params)
    if layer.absorb is not None:
        raise ValueError(
            f"{layer.name}: has `absorb`, which writes leaves that are not trained; it must "
            "declare them by `trained`"
        )
    return jax.tree.map(lambda leaf: True, params)


def absorbed(layer: Layer, params: Params, residuals: Any) -> Params:
    """The parameters after the layer's `absorb`; the same ones if it has none."""
    return layer.absorb(params, residuals) if layer.absorb else params


def combined(
    name: str,
    parts: tuple[Layer, ...],
    init: Callable[..., Any],
    forward: Callable[..., Any],
    backward: Callable[..., Any],
    absorb: Callable[[Params, Any], Params],
    trained: Callable[[Params], Any],
) -> Layer:
    """A layer made of others, with everything that they declare.

    Args:
      name, init, forward, backward: as `Layer` has them.
      parts: the layers that it is made of.
      absorb: the combinator's; left out if no part has one.
      trained: the combinator's; left out if no part has one.
    """
    return Layer(
        name,
        init,
        forward,
        backward,
        parts,
        absorb=absorb if any(part.absorb for part in parts) else None,
        no_energy=next((part.no_energy for part in parts if part.no_energy), ""),
        not_holomorphic=next((part.not_holomorphic for part in parts if part.not_holomorphic), ""),
        trained=trained if any(part.trained for part in parts) else None,
    )


def chain(*layers: Layer) -> Layer:
    """y = f_L(… f_1(x)); backward runs the parts' own backward passes from the last to the first.

    Nested chains are flattened. params, feedback and residuals are tuples with one entry a part;
    part i draws from `fold_in(key, i)`. Keeps what its parts keep.

    Raises:
      ValueError: no layers, or something that is not a layer.

    Example:
      >>> import jax
      >>> from bpeq.layers import dense, tanh
      >>> network = chain(dense(4), tanh(), dense(2))
      >>> params, shape = network.init(jax.random.key(0), (3,))
      >>> len(params), shape
      (3, (2,))
    """
    parts = tuple(part for layer in layers for part in _flat(layer))
    if not parts:
        raise ValueError("chain: needs at least one layer")

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params = []
        for i, part in enumerate(parts):
            try:
                part_params, shape = part.init(jax.random.fold_in(key, i), shape)
            except ValueError as error:
                raise ValueError(f"layer {i} of the chain: {error}") from None
            params.append(part_params)
        return tuple(params), shape

    def forward(params: Params, x: Any, key: Key | None = None) -> tuple[Any, Any]:
        residuals = []
        for i, (part, part_params) in enumerate(zip(parts, params, strict=True)):
            part_key = None if key is None else jax.random.fold_in(key, i)
            x, kept = part.forward(part_params, x, part_key)
            residuals.append(kept)
        return x, tuple(residuals)

    def backward(params: Params, feedback: Params, residuals: Any, dy: Any) -> tuple[Params, Any]:
        dparams, errors = _errors(parts, params, feedback, residuals, dy)
        return dparams, errors[0]

    def absorb(params: Params, residuals: Any) -> Params:
        entries = zip(parts, params, residuals, strict=True)
        return tuple(absorbed(*entry) for entry in entries)

    def trained(params: Params) -> Any:
        entries = zip(parts, params[: len(parts)], strict=True)
        appended = jax.tree.map(lambda leaf: True, params[len(parts) :])  # by a rule
        return (*(trained_leaves(part, own) for part, own in entries), *appended)

    return combined("chain", parts, init, forward, backward, absorb, trained)


def deltas(
    network: Layer, params: Params, residuals: Any, dy: Array, feedback: Params | None = None
) -> tuple[Any, ...]:
    """The δ of every layer: entry i is ∂C/∂(output of part i) of a chain, for each example.

    After an affine part that is δ_l = ∂C/∂z_l, so that in dense–σ–dense–σ the recursion
    δ_L = ∂C/∂a_L ⊙ σ′(z_L), δ_l = (w_{l+1}ᵀ δ_{l+1}) ⊙ σ′(z_l) can be read off entry by entry.

    Args:
      network: a chain.
      params: its parameters.
      residuals: what its `forward` kept.
      dy: ∂C/∂output, `[batch, ...]`.
      feedback: other weights for the transposes; None means `params`, which is backprop.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import dense, sigmoid
      >>> network = chain(dense(1), sigmoid())
      >>> params, _ = network.init(jax.random.key(0), (2,))
      >>> y, residuals = network.forward(params, jnp.zeros((1, 2)))
      >>> [d.tolist() for d in deltas(network, params, residuals, jnp.ones((1, 1)))]
      [[[0.25]], [[1.0]]]
    """
    if network.name != "chain":
        raise ValueError(f"deltas: needs a chain, got the layer {network.name!r}")
    feedback = params if feedback is None else feedback
    _, errors = _errors(network.parts, params, feedback, residuals, dy)
    return errors[1:]


def _errors(
    parts: tuple[Layer, ...], params: Params, feedback: Params, residuals: Any, dy: Any
) -> tuple[Params, tuple[Any, ...]]:
    """(dparams, errors): errors[i] is ∂C/∂(input of part i), errors[-1] is dy itself."""
    dparams, errors = [], [dy]
    for part, *own in reversed(list(zip(parts, params, feedback, residuals, strict=True))):
        if errors[-1] is None:  # integers came out of this part: no error passes through them
            part_dparams, dx = trees.zeros(own[0]), None
        else:
            part_dparams, dx = part.backward(*own, errors[-1])
        dparams.append(part_dparams)
        errors.append(dx)
    return tuple(reversed(dparams)), tuple(reversed(errors))


def _flat(layer: Layer) -> tuple[Layer, ...]:
    if not isinstance(layer, Layer):
        raise ValueError(f"chain: {layer!r} is not a layer; was a factory passed without its ()?")
    return layer.parts if layer.name == "chain" else (layer,)


@checked
def repeat(layer: Layer, n: Count) -> Layer:
    """y = f_n(… f_1(x)), n copies of `layer`; forward and backward are one scan each.

    What a chain of n copies computes, but compiled once whatever n is; initial weights differ where
    the layer is a chain itself, which `chain` would flatten.
    Every leaf of params, feedback and residuals is the copies' leaves stacked on axis 0. Copy i
    draws from `fold_in(key, i)`. Keeps what its copies keep.

    Args:
      layer: one whose output has its input's shape and dtype.
      n: how many copies, >= 1.

    Raises:
      ValueError: n is out of range, or the layer changes the shape.

    Example:
      >>> import jax
      >>> from bpeq.layers import chain, dense, tanh
      >>> params, shape = repeat(chain(dense(3), tanh()), 50).init(jax.random.key(0), (3,))
      >>> shape, params[0]["w"].shape
      ((3,), (50, 3, 3))
    """

    def numbers() -> Array:
        return jnp.arange(n, dtype=jnp.uint32)

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        end = output_shape(layer, shape)
        if end != shape:
            raise ValueError(
                f"repeat: {layer.name} turns shape {shape} into {end}; it must keep it"
            )

        def copy(i: Array) -> Params:
            return layer.init(jax.random.fold_in(key, i), shape)[0]

        # One by one the copies would take n times as long to compile.
        return jax.vmap(copy)(numbers()), shape

    def forward(params: Params, x: Array, key: Key | None = None) -> tuple[Array, Any]:
        def copy(x: Array, own: Any) -> tuple[Array, Any]:
            return layer.forward(own[0], x, own[1])

        keys = None if key is None else jax.vmap(lambda i: jax.random.fold_in(key, i))(numbers())
        return lax.scan(copy, x, (params, keys), length=n)

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Array]:
        def copy(delta: Array, own: Any) -> tuple[Array, Any]:
            own_params, own_feedback, own_kept = own
            dparams, dx = layer.backward(own_params, own_feedback, own_kept, delta)
            return dx, dparams

        dx, dparams = lax.scan(copy, delta, (params, feedback, kept), length=n, reverse=True)
        return dparams, dx

    def absorb(params: Params, residuals: Any) -> Params:
        assert layer.absorb is not None
        return jax.vmap(layer.absorb)(params, residuals)

    def trained(params: Params) -> Any:
        return trained_leaves(layer, params)  # the copies are stacked: one leaf for all of them

    return combined("repeat", (layer,), init, forward, backward, absorb, trained)


@checked
def residual(*layers: Layer, shortcut: Layer | None = None) -> Layer:
    """y = x + f(x) with f = chain(*layers), or y = shortcut(x) + f(x); dx = δ + f's pull-back of δ.

    params, feedback and residuals are `{"inner": chain's}`, with a "shortcut" where there is one.
    In training f draws from `fold_in(key, 0)`, the shortcut from `fold_in(key, 1)`. Keeps what its
    parts keep.

    Args:
      layers: one or more.
      shortcut: a layer in place of the identity, such as `conv(64, kernel=1, stride=2)` where f
        changes the shape.

    Raises:
      ValueError: no layers, or the two paths end in different shapes.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import dense, relu
      >>> layer = residual(dense(8), relu(), dense(3, init="zeros"))
      >>> params, _ = layer.init(jax.random.key(0), (3,))
      >>> layer.forward(params, jnp.ones((1, 3)))[0].tolist()
      [[1.0, 1.0, 1.0]]

    Source: He et al. 2016, Deep residual learning for image recognition.
    """
    inner = chain(*layers)
    paths = {"inner": inner} if shortcut is None else {"inner": inner, "shortcut": shortcut}

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        params, ends = {}, {"shortcut": shape}
        for i, (name, path) in enumerate(paths.items()):
            try:
                params[name], ends[name] = path.init(jax.random.fold_in(key, i), shape)
            except ValueError as error:
                raise ValueError(f"residual: {name}: {error}") from None
        if ends["inner"] != ends["shortcut"]:
            raise ValueError(
                f"residual: the layers end in shape {ends['inner']}, the shortcut in "
                f"{ends['shortcut']}; they must agree to be added"
            )
        return params, ends["inner"]

    def forward(params: Params, x: Any, key: Key | None = None) -> tuple[Any, Any]:
        outputs, residuals = {"shortcut": x}, {}
        for i, (name, path) in enumerate(paths.items()):
            own = None if key is None else jax.random.fold_in(key, i)
            outputs[name], residuals[name] = path.forward(params[name], x, own)
        return outputs["shortcut"] + outputs["inner"], residuals

    def backward(params: Params, feedback: Params, kept: Any, delta: Array) -> tuple[Params, Any]:
        dparams, errors = {}, {"shortcut": delta}
        for name, path in paths.items():
            own, back = params[name], feedback[name]
            dparams[name], errors[name] = path.backward(own, back, kept[name], delta)
        parts = [error for error in errors.values() if error is not None]
        return dparams, functools.reduce(jnp.add, parts) if parts else None

    def absorb(params: Params, residuals: Any) -> Params:
        return {name: absorbed(path, params[name], residuals[name]) for name, path in paths.items()}

    def trained(params: Params) -> Any:
        return {name: trained_leaves(path, params[name]) for name, path in paths.items()}

    parts = tuple(paths.values())
    return combined("residual", parts, init, forward, backward, absorb, trained)
