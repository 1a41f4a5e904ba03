"""Arithmetic on pytrees of arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def add(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf.

    Args:
      a: a tree of arrays.
      b: a tree of the same structure.

    Returns:
      A tree like a.
    """
    return jax.tree.map(jnp.add, a, b)


def sub(a: Any, b: Any) -> Any:
    """a − b, leaf by leaf.

    Args:
      a: a tree of arrays.
      b: a tree of the same structure.

    Returns:
      A tree like a.
    """
    return jax.tree.map(jnp.subtract, a, b)


def add_given(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf; parts of a stay as they are if b has None there.

    Args:
      a: a tree of arrays.
      b: the same tree, or one with None in place of some parts.

    Returns:
      A tree like a.
    """

    def one(extra: Any, part: Any) -> Any:
        return part if extra is None else add(part, extra)

    return jax.tree.map(one, b, a, is_leaf=lambda node: node is None)


def scale(c: Any, a: Any) -> Any:
    """c · a, leaf by leaf.

    Args:
      c: a scalar.
      a: a tree of arrays.

    Returns:
      A tree like a.
    """
    return jax.tree.map(lambda leaf: c * leaf, a)


def zeros(a: Any) -> Any:
    """Zeros in the shapes and dtypes of a.

    Args:
      a: a tree of arrays.

    Returns:
      A tree like a.
    """
    return jax.tree.map(jnp.zeros_like, a)


def real(a: Any) -> Any:
    """The real part of complex leaves; real leaves stay as they are.

    Args:
      a: a tree of arrays.

    Returns:
      A tree of real arrays.
    """
    return jax.tree.map(jnp.real, a)


def cast(a: Any, dtype: Any) -> Any:
    """Convert the real floating leaves to `dtype`; all other leaves stay as they are.

    Args:
      a: a tree of arrays.
      dtype: a floating type; a complex type makes the leaves complex.

    Returns:
      A tree like a.
    """

    def one(leaf: Any) -> Any:
        inexact = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if inexact else leaf

    return jax.tree.map(one, a)


def pick(a: Any, chosen: Sequence[bool]) -> list[Any]:
    """The chosen leaves.

    Args:
      a: a tree.
      chosen: whether a leaf is chosen, in the order of `jax.tree.leaves`.

    Returns:
      A list of leaves.
    """
    return [leaf for leaf, is_in in zip(jax.tree.leaves(a), chosen, strict=True) if is_in]


def fill(a: Any, chosen: Sequence[bool], leaves: Iterable[Any]) -> Any:
    """The tree with other leaves in the place of the chosen ones: the inverse of `pick`.

    Args:
      a: a tree; its other leaves stay as they are.
      chosen: as for `pick`.
      leaves: the new leaves, one for each chosen leaf.

    Returns:
      A tree like a.
    """
    old, structure = jax.tree.flatten(a)
    new = iter(leaves)
    mixed = [next(new) if is_in else leaf for leaf, is_in in zip(old, chosen, strict=True)]
    return jax.tree.unflatten(structure, mixed)


def stack(trees: list[Any]) -> Any:
    """Stack trees of one structure on a new axis 0 of every leaf.

    Args:
      trees: a list of trees.

    Returns:
      One tree.
    """
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def max_abs(a: Any) -> Float[Array, " batch"]:
    """max |a| of each example over all leaves; NaN if it has one.

    Args:
      a: a tree with `[batch, ...]` leaves.

    Returns:
      `[batch]`.
    """
    parts = [jnp.abs(leaf).reshape(leaf.shape[0], -1).max(axis=1) for leaf in jax.tree.leaves(a)]
    return jnp.stack(parts).max(axis=0)


def where(mask: Array, a: Any, b: Any) -> Any:
    """a where `mask` is true, b elsewhere, for each example.

    Args:
      mask: `[batch]`, booleans.
      a: a tree with `[batch, ...]` leaves.
      b: a tree like a.

    Returns:
      A tree like a.
    """

    def one(x: Array, y: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(one, a, b)


def dot(a: Any, b: Any) -> Array:
    """Σ a·b over all leaves and elements; the product does not conjugate.

    Args:
      a: a tree of arrays.
      b: a tree like a.

    Returns:
      A scalar.
    """
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jnp.stack(jax.tree.leaves(products)).sum()


def at_angle(weights: Any, other: Any, angle: float) -> Any:
    """B = cos(a) W + sin(a) R leaf by leaf, with |B| = |W| and an angle of exactly a between them.

    R is the part of `other` that is orthogonal to W, scaled to W's norm over all elements of the
    leaf. B is W if no orthogonal part exists: the leaf is one number, or it is the same in every
    draw, or W is zero.

    Args:
      weights: W, any tree of arrays.
      other: an independent draw of the same shapes.
      angle: a, in degrees, 0 to 180.

    Returns:
      B, a tree like W.

    Example:
      >>> import jax.numpy as jnp
      >>> at_angle(jnp.array([2.0, 0.0]), jnp.array([7.0, 3.0]), 90.0).round(6).tolist()
      [0.0, 2.0]
    """
    c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))

    def one(w: Array, r: Array) -> Array:
        squared = jnp.sum(w * w)
        safe = jnp.where(squared > 0, squared, jnp.ones_like(squared))
        across = r
        for _ in range(2):  # the second round removes the first one's round-off
            across = across - jnp.sum(across * w) / safe * w
        length = jnp.sqrt(jnp.sum(across * across))
        least = math.sqrt(float(jnp.finfo(w.dtype).eps)) * jnp.sqrt(jnp.sum(r * r))
        alone = (squared == 0) | (length <= least)
        scale = jnp.sqrt(squared) / jnp.where(alone, jnp.ones_like(length), length)
        return jnp.where(alone, w, c * w + s * (scale * across))

    return jax.tree.map(one, weights, other)


def size(a: Any) -> int:
    """The number of scalars in a tree.

    Args:
      a: a tree of arrays.

    Returns:
      An int.
    """
    return sum(leaf.size for leaf in jax.tree.leaves(a))


def names(a: Any) -> list[str]:
    """The paths of the leaves, such as `1.w`, in the order of `jax.tree.leaves`.

    Args:
      a: a tree.

    Returns:
      One path per leaf.
    """
    paths = [path for path, _ in jax.tree.leaves_with_path(a)]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def difference(a: Any, like: Any) -> str:
    """The first difference in structure, shapes and dtypes between two trees, in words.

    Args:
      a: a tree of arrays.
      like: the tree to compare it with.

    Returns:
      A phrase for a message; empty if there is no difference.

    Example:
      >>> difference({"w": jnp.zeros(2, jnp.float32)}, {"w": jnp.zeros((2, 3), jnp.float32)})
      'w float32[2], not w float32[2, 3]'
    """
    ours, theirs = (str(jax.tree.structure(tree)) for tree in (a, like))
    if ours != theirs and names(a) != names(like):
        return f"{describe_tree(a)}, not {describe_tree(like)}"
    if ours != theirs:  # a list and a tuple, say, whose leaves have the same names
        return f"{ours}, not {theirs}"
    for x, y in zip(_describe_leaves(a), _describe_leaves(like), strict=True):
        if x != y:
            return f"{x}, not {y}"
    return ""


def describe_tree(a: Any) -> str:
    """A tree's leaves with their dtypes and shapes, the first four of them.

    Args:
      a: a tree of arrays or of shapes.

    Returns:
      A phrase for a message.
    """
    leaves = _describe_leaves(a)
    if not leaves:
        return "nothing" if a is None else repr(a)
    return ", ".join(leaves[:4]) + (", …" if len(leaves) > 4 else "")


def _describe_leaves(a: Any) -> list[str]:
    """Name, dtype and shape of each leaf."""

    def one(leaf: Any) -> str:
        return f"{leaf.dtype.name}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)

    named = zip(names(a), jax.tree.leaves(a), strict=True)
    return [f"{name} {one(leaf)}".lstrip() for name, leaf in named]
