"""Functions on the whole batch, for code that runs on one device's part of it.

`data_parallel` runs a rule's estimate on each device's part of the batch, along a mesh axis `AXIS`.
Most functions treat each example alone and need nothing from here: means over equal parts average
to the mean of the batch. The functions below are for code that couples examples, or draws random
numbers for each example. With one device the part is the whole batch, and they change nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bpeq.types import Shape

AXIS = "data"


def count() -> int:
    """The number of parts of the batch; 1 outside a mesh.

    Returns:
      An int.
    """
    try:
        return jax.lax.axis_size(AXIS)
    except NameError:  # JAX raises this if there is no such axis
        return 1


def mean(tree: Any) -> Any:
    """The mean over the parts, of every leaf. Means over equal parts give the mean over the batch.

    Args:
      tree: arrays that each device has computed from its own part.

    Returns:
      A tree like `tree`, the same on all devices.
    """
    return jax.lax.pmean(tree, AXIS) if count() > 1 else tree


def gathered(tree: Any) -> Any:
    """The whole batch from its parts: every leaf `[part, ...]` becomes `[batch, ...]`, in order.

    Args:
      tree: arrays with examples on axis 0.

    Returns:
      A tree like `tree`, the same on all devices.
    """
    if count() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), tree)


def places(examples: int) -> Int[Array, " part"]:
    """The indices of the part's examples in the whole batch.

    Args:
      examples: number of examples in the part.

    Returns:
      `[examples]`, integers.
    """
    own = jnp.arange(examples)
    return own if count() == 1 else own + examples * jax.lax.axis_index(AXIS)


def drawn(draw: Callable[[Shape], Array], shape: Shape) -> Array:
    """This part's rows of the random numbers that one device would draw for the whole batch.

    Each device draws the numbers of the whole batch. That is cheaper than sending them.

    Args:
      draw: shape -> random numbers.
      shape: `[part, ...]`, the shape of this part's numbers.

    Returns:
      An array of that shape.
    """
    if count() == 1:
        return draw(shape)
    first = shape[0] * jax.lax.axis_index(AXIS)
    whole = draw((shape[0] * count(), *shape[1:]))
    return jax.lax.dynamic_slice_in_dim(whole, first, shape[0])
