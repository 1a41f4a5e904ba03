"""The devices and the processes that a run has."""

from __future__ import annotations

import jax
from jax.sharding import Mesh

from bpeq.config import Config
from bpeq.parallel import data_mesh


def shared_by(config: Config) -> Mesh | None:
    """The devices that share each batch of a training; None for one alone.

    Raises:
      ConfigError: there are not as many, or a batch does not fall into equal parts.
    """
    processes = jax.process_count()
    asked = config.tree.get("devices", "all" if processes > 1 else 1)
    try:
        mesh = data_mesh(asked)
    except ValueError as error:
        raise config.fault("devices", asked, str(error)) from None
    if processes > 1 and mesh.size < jax.device_count():
        remedy = f"must be 'all' or {jax.device_count()}, the devices of {processes} processes"
        raise config.fault("devices", asked, remedy)
    size = config.tree["training"]["batch_size"]
    if size % mesh.size:
        remedy = f"must be a multiple of {mesh.size}, the devices that share a batch"
        raise config.fault("training.batch_size", size, remedy)
    return mesh if mesh.size > 1 else None
