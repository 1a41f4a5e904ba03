"""What a config computes with is there: devices, their precision, memory."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from bpeq.config.loading import Config, ConfigError
from bpeq.core.compat import enable_x64
from bpeq.types import Params


def ready(config: Config) -> None:
    """What a config computes with is there.

    Raises:
      ConfigError: JAX has no device, or none that computes in the config's precision.
    """
    try:
        kind = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:  # the latter for a kind of which none is there
        asked = os.environ.get("JAX_PLATFORMS", "")
        said = str(error).partition("\n")[0] or "there is no such device"
        raise ConfigError(
            f"JAX_PLATFORMS = {asked}: {said}; allowed: what this machine has, such as cpu"
        ) from None
    precision = config.tree["precision"]
    if precision == "float64":
        try:
            with enable_x64(True):
                found = jax.block_until_ready(jnp.ones(()) + 1).dtype.name
        except jax.errors.JaxRuntimeError:
            found = "nothing"
        if found != precision:
            remedy = f"its {kind} devices have none; allowed: 'float32'"
            raise config.fault("precision", precision, remedy)


def check_memory(config: Config, params: Params, rows: int) -> None:
    """There is room for all seeds' weights and their gradients, and for their training rows.

    A system that promises more memory than it has would end the process without a word.

    Raises:
      ConfigError: there is not.
    """
    leaves = jax.tree.leaves(params)
    one = 2 * sum(leaf.size * getattr(leaf.dtype, "itemsize", 4) for leaf in leaves) + 8 * rows
    seeds = config.tree["seeds"]
    told = jax.local_devices()[0].memory_stats() or {}
    there = told.get("bytes_limit")
    if there is None and hasattr(os, "sysconf"):  # Windows has none, and refuses by itself
        there = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if there and seeds * one > there:
        key, value = ("network.layers", None) if one > there else ("seeds", seeds)
        said = f"weights and gradients take {seeds * one / 1e9:.3g} GB of {there / 1e9:.3g} GB"
        raise config.fault(key, value, f"{said}; use a smaller network, or fewer seeds")
