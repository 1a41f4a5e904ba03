"""Arithmetic on pytrees of arrays."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def add(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf."""
    return jax.tree.map(jnp.add, a, b)


def sub(a: Any, b: Any) -> Any:
    """a − b, leaf by leaf."""
    return jax.tree.map(jnp.subtract, a, b)


def add_given(a: Any, b: Any) -> Any:
    """a + b, leaf by leaf, where b may have None for the parts of a that get nothing.

    Args:
      a: a tree of arrays.
      b: the same tree, or one with None in place of some parts.
    """
    return jax.tree.map(
        lambda extra, part: part if extra is None else add(part, extra),
        b,
        a,
        is_leaf=lambda node: node is None,
    )


def scale(c: Any, a: Any) -> Any:
    """c · a, leaf by leaf, with a scalar c."""
    return jax.tree.map(lambda leaf: c * leaf, a)


def zeros(a: Any) -> Any:
    """Zeros of the shapes and dtypes of a."""
    return jax.tree.map(jnp.zeros_like, a)


def real(a: Any) -> Any:
    """The real part of a's complex leaves; real ones stay as they are."""
    return jax.tree.map(jnp.real, a)


def cast(a: Any, dtype: Any) -> Any:
    """a with its floating leaves in `dtype`; integer leaves and keys stay as they are.

    Args:
      a: a tree of arrays.
      dtype: a floating type.
    """

    def one(leaf: Any) -> Any:
        inexact = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return leaf.astype(dtype) if inexact else leaf

    return jax.tree.map(one, a)


def stack(trees: list[Any]) -> Any:
    """Trees of one structure, stacked on a new axis 0 of every leaf."""
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *trees)


def max_abs(a: Any) -> Float[Array, " batch"]:
    """max |a| of each example over all leaves, each `[batch, ...]`; NaN if there is one."""
    parts = [jnp.abs(leaf).reshape(leaf.shape[0], -1).max(axis=1) for leaf in jax.tree.leaves(a)]
    return jnp.stack(parts).max(axis=0)


def where(mask: Array, a: Any, b: Any) -> Any:
    """a where `mask` `[batch]` is true, b elsewhere, example by example.

    Args:
      mask: `[batch]`, booleans.
      a: leaves `[batch, ...]`.
      b: the same.
    """

    def one(x: Array, y: Array) -> Array:
        return jnp.where(mask.reshape(mask.shape + (1,) * (x.ndim - 1)), x, y)

    return jax.tree.map(one, a, b)


def dot(a: Any, b: Any) -> Array:
    """Σ a·b over all leaves and elements, a plain (not conjugated) product."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jnp.stack(jax.tree.leaves(products)).sum()


def at_angle(weights: Any, other: Any, angle: float) -> Any:
    """B = cos(a) W + sin(a) R leaf by leaf, with |B| = |W| and the angle between them exactly a.

    Args:
      weights: W, any tree of arrays.
      other: an independent draw of the same shapes; R is what of it is orthogonal to W, scaled to
        W's norm (of all of a leaf's elements). Where nothing is left, because a leaf is one number
        or the same in every draw, or where W is zero, B is W.
      angle: a in degrees, 0 to 180.

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
    """The number of scalars in a."""
    return sum(leaf.size for leaf in jax.tree.leaves(a))


def names(a: Any) -> list[str]:
    """The leaves' paths, such as `1.w`, in the order of `jax.tree.leaves`."""
    paths = [path for path, _ in jax.tree.leaves_with_path(a)]
    return [jax.tree_util.keystr(path, simple=True, separator=".") for path in paths]


def difference(a: Any, like: Any) -> str:
    """Where `a` has not the structure, shapes and dtypes of `like`, in words; empty if it has.

    Args:
      a: a tree of arrays.
      like: the tree that it should be like.

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
    """A tree's leaves with their dtypes and shapes, as far as they fit a line.

    Args:
      a: a tree of arrays or of shapes.
    """
    leaves = _describe_leaves(a)
    if not leaves:
        return "nothing" if a is None else repr(a)
    return ", ".join(leaves[:4]) + (", …" if len(leaves) > 4 else "")


def _describe_leaves(a: Any) -> list[str]:
    def one(leaf: Any) -> str:
        return f"{leaf.dtype.name}{list(leaf.shape)}" if hasattr(leaf, "dtype") else repr(leaf)

    named = zip(names(a), jax.tree.leaves(a), strict=True)
    return [f"{name} {one(leaf)}".lstrip() for name, leaf in named]
