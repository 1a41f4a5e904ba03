"""A skip around layers: errors pass it unchanged."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.layers._chain import chain
from bpeq.layers._combine import combined, trained_leaves
from bpeq.settings import checked
from bpeq.types import Key, Layer, Params, Shape


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

    def backward(
        params: Params, feedback: Params, residuals: Any, delta: Array
    ) -> tuple[Params, Any]:
        dparams, errors = {}, {"shortcut": delta}
        for name, path in paths.items():
            dparams[name], errors[name] = path.backward(
                params[name], feedback[name], residuals[name], delta
            )
        parts = [error for error in errors.values() if error is not None]
        return dparams, functools.reduce(jnp.add, parts) if parts else None

    def absorb(params: Params, residuals: Any) -> Params:
        return {
            name: path.absorb(params[name], residuals[name]) if path.absorb else params[name]
            for name, path in paths.items()
        }

    def trained(params: Params) -> Any:
        return {name: trained_leaves(path, params[name]) for name, path in paths.items()}

    parts = tuple(paths.values())
    return combined("residual", parts, init, forward, backward, absorb, trained)
