"""Weight initialisers by name: JAX's own, and the uniform ones that the EP papers start from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.nn import initializers
from jaxtyping import Array

from bpeq.types import Key, Shape

Initialiser = Literal[
    "zeros",
    "normal",
    "uniform",
    "fan_in_uniform",
    "glorot_uniform",
    "glorot_normal",
    "he_uniform",
    "he_normal",
    "lecun_normal",
    "orthogonal",
]

_JAX: dict[str, Callable[..., Array]] = {
    "zeros": initializers.zeros,
    "normal": initializers.normal(1.0),
    "glorot_uniform": initializers.glorot_uniform(),
    "glorot_normal": initializers.glorot_normal(),
    "he_uniform": initializers.he_uniform(),
    "he_normal": initializers.he_normal(),
    "lecun_normal": initializers.lecun_normal(),
    "orthogonal": initializers.orthogonal(),
}


def initialise(name: Initialiser, key: Key, shape: Shape, fan_in: int, scale: float = 1.0) -> Array:
    """An array of `shape` in JAX's default float dtype, times `scale`.

    Args:
      name: "normal" is N(0, 1); "uniform" is U(−1, 1); "fan_in_uniform" is U(−1/√fan_in,
        1/√fan_in), the habit of the EP papers' code, for biases too; "zeros"; the others are those
        of `jax.nn.initializers`, for weights of two or more axes, outputs last.
      key: random key.
      shape: of the array.
      fan_in: the number of inputs of a unit; read by "fan_in_uniform" only.
      scale: factor on the drawn numbers.
    """
    dtype = jnp.result_type(float)
    if name in ("uniform", "fan_in_uniform"):
        bound = 1.0 if name == "uniform" else fan_in**-0.5
        drawn = jax.random.uniform(key, shape, dtype, -bound, bound)
    else:
        drawn = _JAX[name](key, shape, dtype)
    return drawn if scale == 1.0 else scale * drawn
