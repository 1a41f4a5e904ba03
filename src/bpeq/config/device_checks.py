"""Checks the devices of this machine: that they exist, their precision and their memory."""

from __future__ import annotations

import os

import jax
import jax.numpy as jnp

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config
from bpeq.types import Params


def check_devices(config: Config) -> None:
    """Checks that JAX has a device that computes in the config's precision.

    Args:
      config: the config.

    Raises:
      ConfigError: JAX has no device, or its devices do not compute in float64.
    """
    try:
        kind = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:  # AssertionError: none of its kind
        problem = str(error).partition("\n")[0] or "there is no such device"
        remedy = f"{problem}; allowed: what this machine has, such as cpu"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError("JAX_PLATFORMS", value=platforms, remedy=remedy) from None
    if not config.double:
        return
    try:
        with jax.enable_x64(True):
            name = jax.block_until_ready(jnp.ones(()) + 1).dtype.name
    except jax.errors.JaxRuntimeError:
        name = "nothing"
    if name != config.precision:
        remedy = f"its {kind} devices have none; allowed: 'float32'"
        raise config.error("precision", config.precision, remedy)


def check_memory(config: Config, params: Params, rows: int) -> None:
    """Checks that the weights, gradients and training rows of all seeds fit into memory.

    Without this check, a system that overcommits memory would kill the process without a message.

    Args:
      config: the config.
      params: the parameters of one seed, or their shapes.
      rows: the number of training examples of one seed.

    Raises:
      ConfigError: they do not fit.
    """
    leaves = jax.tree.leaves(params)
    one = 2 * sum(leaf.size * getattr(leaf.dtype, "itemsize", 4) for leaf in leaves) + 8 * rows
    stats = jax.local_devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit")
    if memory is None and hasattr(os, "sysconf"):  # Windows has none, and refuses by itself
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = config.seeds * one
    if memory and needed > memory:
        key, value = ("network.layers", None) if one > memory else ("seeds", config.seeds)
        sizes = f"weights and gradients take {needed / 1e9:.3g} GB of {memory / 1e9:.3g} GB"
        raise config.error(key, value, f"{sizes}; use a smaller network, or fewer seeds")
