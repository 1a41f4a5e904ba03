"""What a function of a batch may ask where devices share the batch: all of it, not its own part.

`parallel.data_parallel` runs a rule's estimate on every device's part, along a mesh axis `AXIS`.
Most functions need not know: they treat examples alike, and means of equal parts average. These
are for the few that couple examples or draw numbers for each. Outside a mesh the part is the batch
and they do nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from bpeq.core.compat import axis_size
from bpeq.types import Shape

AXIS = "data"


def count() -> int:
    """How many parts the batch is in; 1 outside a mesh."""
    try:
        return axis_size(AXIS)
    except NameError:  # how JAX says that no such axis is in sight
        return 1


def mean(tree: Any) -> Any:
    """The mean over parts of every leaf: of means over equal parts, the mean over the batch."""
    return jax.lax.pmean(tree, AXIS) if count() > 1 else tree


def gathered(tree: Any) -> Any:
    """Every leaf `[part, ...]` as `[batch, ...]`, the parts in their order."""
    if count() == 1:
        return tree
    return jax.tree.map(lambda leaf: jax.lax.all_gather(leaf, AXIS, tiled=True), tree)


def places(examples: int) -> Int[Array, " part"]:
    """Where in the batch the part's examples are."""
    own = jnp.arange(examples)
    return own if count() == 1 else own + examples * jax.lax.axis_index(AXIS)


def drawn(draw: Callable[[Shape], Array], shape: Shape) -> Array:
    """`draw(shape)`, `[part, ...]`, of numbers that the batch would have drawn on one device.

    Each device draws the whole batch's: that is cheaper than to send them.
    """
    if count() == 1:
        return draw(shape)
    first = shape[0] * jax.lax.axis_index(AXIS)
    whole = draw((shape[0] * count(), *shape[1:]))
    return jax.lax.dynamic_slice_in_dim(whole, first, shape[0])
