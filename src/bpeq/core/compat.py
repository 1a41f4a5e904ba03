"""JAX functions that have another name in the oldest version that bpeq supports.

Each function here has JAX's own name from some version on. When the lower bound of jax in
pyproject.toml reaches that version, delete the function and call JAX instead.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import jax
from jax.sharding import Mesh


def enable_x64(on: bool) -> AbstractContextManager[Any]:
    """`jax.enable_x64`: a context in which jax has float64 or not. Unnecessary from jax 0.8 on.

    Args:
      on: whether jax has float64.

    Returns:
      The context.
    """
    if hasattr(jax, "enable_x64"):
        return jax.enable_x64(on)
    from jax.experimental import enable_x64 as old  # type: ignore[attr-defined]

    return old(on)


def shard_map(f: Callable[..., Any], *, mesh: Mesh, in_specs: Any, out_specs: Any) -> Any:
    """`jax.shard_map`, without the check which outputs are the same on all devices.

    Unnecessary from jax 0.6.1 on.

    Args:
      f: runs on every device, on that device's part of the arguments.
      mesh: the devices.
      in_specs: a `PartitionSpec` for each argument, or a tree of them.
      out_specs: the same for the results.

    Returns:
      The function of the whole arguments.
    """
    if hasattr(jax, "shard_map"):
        return jax.shard_map(f, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
    from jax.experimental.shard_map import shard_map as old

    return old(f, mesh, in_specs, out_specs, check_rep=False)


def axis_size(name: str) -> int:
    """`jax.lax.axis_size`: the number of devices along a mesh axis. Unnecessary from jax 0.6.1 on.

    Args:
      name: the mesh axis.

    Returns:
      The number of devices along it.

    Raises:
      NameError: the code does not run inside a mesh with that axis.
    """
    if hasattr(jax.lax, "axis_size"):
        return jax.lax.axis_size(name)
    return jax.lax.psum(1, name)  # a sum of constants is a Python number, not an array
