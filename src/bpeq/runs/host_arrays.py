"""Converts a loop's carry to arrays in host memory and back. Random keys become their data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.core import trees

NATIVE = [np.dtype(kind) for kind in "?bBhHiIlLefd"]  # others travel as bytes


def to_host(carry: Any) -> Any:
    """Copies a carry to host memory. Random keys become their data.

    Args:
      carry: a tree of arrays and random keys.

    Returns:
      The tree, with NumPy arrays.
    """
    return jax.device_get(jax.tree.map(data, carry))


def to_device(host: Any, like: Any) -> Any:
    """Copies arrays from host memory to the devices.

    Args:
      host: the tree in host memory.
      like: a tree of arrays and keys, which gives the kinds of keys and the devices.

    Returns:
      The tree, with arrays and keys on the devices of `like`.
    """

    def one(leaf: Any, template: Any) -> Any:
        array = jnp.array(leaf)  # a copy, because the loop may donate its memory
        if _is_key(template):
            array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(template))
        spread = isinstance(template, jax.Array) and len(template.sharding.device_set) > 1
        if spread:  # device_put refuses keys on devices of other processes
            return jax.jit(lambda a: a, out_shardings=template.sharding)(array)
        return array

    return jax.tree.map(one, host, like)


def random_keys(tree: Any) -> list[Any]:
    """The typed random keys among the leaves of a tree.

    Args:
      tree: a tree of arrays and random keys.

    Returns:
      The keys.
    """
    return [leaf for leaf in jax.tree.leaves(tree) if _is_key(leaf)]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data(leaf: Any) -> Any:
    """The data of a typed random key.

    Args:
      leaf: a key or an array.

    Returns:
      The key's data; an array is returned unchanged.
    """
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def specs(tree: Any) -> Any:
    """Shapes and dtypes of the result of `to_host`.

    Args:
      tree: a tree of arrays and random keys.

    Returns:
      The tree, with a `ShapeDtypeStruct` for each leaf.
    """
    return jax.eval_shape(lambda tree: jax.tree.map(data, tree), tree)


def named(tree: Any, place: str = "") -> dict[str, Any]:
    """Names the leaves of a tree by their paths, such as `carry.params.0.w`.

    Args:
      tree: a tree.
      place: the first part of each name; empty: none.

    Returns:
      Name -> leaf.
    """
    paths, leaves = trees.names(tree), jax.tree.leaves(tree)
    if len(set(paths)) < len(paths):  # dict keys may contain dots
        paths = [f"{i}:{path}" for i, path in enumerate(paths)]
    named = zip(paths, leaves, strict=True)
    return {f"{place}.{path}".strip("."): leaf for path, leaf in named}


def pack(array: Any) -> np.ndarray:
    """Converts an array for safetensors. Dtypes that it may lack, such as complex, become bytes.

    Args:
      array: the array.

    Returns:
      The array, or its bytes.
    """
    array = np.asarray(array, order="C")
    return array if array.dtype in NATIVE else np.frombuffer(array.tobytes(), np.uint8)


def unpack(array: np.ndarray, kind: str, shape: list[int]) -> np.ndarray:
    """Restores an array from the result of `pack`.

    Args:
      array: the packed array.
      kind: the name of its dtype.
      shape: its shape.

    Returns:
      The array with its dtype and shape.
    """
    return array.view(jnp.dtype(kind)).reshape(shape)
