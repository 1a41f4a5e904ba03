"""Layers one after another: forward in order, the errors back in reverse."""

from __future__ import annotations

from typing import Any

import jax
from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers._combine import combined, trained_leaves
from bpeq.types import Key, Layer, Params, Shape


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
        return tuple(
            part.absorb(part_params, kept) if part.absorb else part_params
            for part, part_params, kept in zip(parts, params, residuals, strict=True)
        )

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
