"""A loop's carry as named arrays in host memory, and back: random keys as their data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.core import trees

NATIVE = [np.dtype(kind) for kind in "?bBhHiIlLefd"]  # others travel as bytes


def to_host(carry: Any) -> Any:
    """A carry in host memory, random keys as their data."""
    return jax.device_get(jax.tree.map(data, carry))


def to_device(host: Any, like: Any) -> Any:
    """Arrays in host memory, as arrays and keys on the devices where those of `like` are."""

    def one(leaf: Any, template: Any) -> Any:
        array = jnp.array(leaf)  # a copy: the loop may be given its memory to write in
        if _is_key(template):
            array = jax.random.wrap_key_data(array, impl=jax.random.key_impl(template))
        spread = isinstance(template, jax.Array) and len(template.sharding.device_set) > 1
        if spread:  # also over devices of other processes, where device_put refuses keys
            return jax.jit(lambda a: a, out_shardings=template.sharding)(array)
        return array

    return jax.tree.map(one, host, like)


def random_keys(tree: Any) -> list[Any]:
    """The typed random keys among a tree's leaves."""
    return [leaf for leaf in jax.tree.leaves(tree) if _is_key(leaf)]


def _is_key(leaf: Any) -> bool:
    return hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)


def data(leaf: Any) -> Any:
    """A typed key's data; any other leaf as it is."""
    return jax.random.key_data(leaf) if _is_key(leaf) else leaf


def specs(tree: Any) -> Any:
    """Shapes and dtypes of what `to_host` makes of a tree."""
    return jax.eval_shape(lambda tree: jax.tree.map(data, tree), tree)


def named(place: str, tree: Any) -> dict[str, Any]:
    """The leaves by their paths, such as `carry.params.0.w`."""
    paths, leaves = trees.names(tree), jax.tree.leaves(tree)
    if len(set(paths)) < len(paths):  # keys with dots in them
        paths = [f"{i}:{path}" for i, path in enumerate(paths)]
    named = zip(paths, leaves, strict=True)
    return {f"{place}.{path}".rstrip("."): leaf for path, leaf in named}


def pack(array: Any) -> np.ndarray:
    """An array as safetensors takes it. Dtypes that it may not know, such as complex, as bytes."""
    array = np.asarray(array, order="C")
    return array if array.dtype in NATIVE else np.frombuffer(array.tobytes(), np.uint8)


def unpack(array: np.ndarray, kind: str, shape: list[int]) -> np.ndarray:
    """An array that `pack` made, with its own dtype and shape."""
    return array.view(jnp.dtype(kind)).reshape(shape)
