"""The devices and the processes that share a run."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config
from bpeq.training.data_parallel import data_mesh
from bpeq.types import DataError

ARRIVAL = 60
"""Seconds that processes wait for each other at the start, and for a sign of life later."""


def check_options(
    config: Config,
    processes: int | None,
    coordinator: str | None,
    index: int | None,
    count: int | None,
) -> bool:
    """Checks the options for several processes; returns whether there are to be several.

    Args:
      config: what is to be run.
      processes: --processes, how many on this machine.
      coordinator: --coordinator, HOST:PORT of process 0, or "auto".
      index: --process-id. count: --process-count.

    Raises:
      ConfigError: an option is wrong, or one process must run the config.
    """
    if processes is not None and processes < 1:
        raise ConfigError("--processes", "", processes, "must be a whole number >= 1")
    if coordinator is None:
        for option, value in (("--process-id", index), ("--process-count", count)):
            if value is not None:
                raise ConfigError(option, "", value, "means nothing without --coordinator")
    elif coordinator != "auto":
        port = re.fullmatch(r"\S+:(\d{1,5})", coordinator)
        if port is None or not 0 < int(port[1]) < 2**16:
            remedy = "must be HOST:PORT or auto, the port 1 to 65535"
            raise ConfigError("--coordinator", "", coordinator, remedy)
        if count is None or count < 1:
            raise ConfigError("--process-count", "", count, "must be a whole number >= 1")
        if index is None or not 0 <= index < count:
            raise ConfigError("--process-id", "", index, f"must be 0 to {count - 1}")
    several = coordinator is not None or (processes or 1) > 1
    if several and config.experiment is not None:
        remedy = "a study's own steps run in one process"
        raise config.error("experiment", config.experiment, remedy)
    if several:  # before any is started: each has one device or more
        _check_batch(config, processes or count or 1)
    return several


def join_processes(coordinator: str, index: int | None = None, count: int | None = None) -> None:
    """Makes this process one of several that share a run: before any device is asked for.

    Args:
      coordinator: HOST:PORT of the first process; "auto": that, index and count are what the
        cluster's own environment says (Slurm, Open MPI, Kubernetes, a TPU pod).

    Raises:
      ConfigError: that says nothing.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM from us
    address = None if coordinator == "auto" else coordinator
    try:
        jax.distributed.initialize(
            address,
            count,
            index,
            initialization_timeout=ARRIVAL,
            heartbeat_timeout_seconds=ARRIVAL,
        )
    except ValueError as error:
        remedy = "the environment does not say it (see docs/devices.md); give HOST:PORT"
        raise ConfigError("--coordinator", "", coordinator, remedy) from error


def is_main_process() -> bool:
    """Whether this process writes the run's files and prints."""
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@contextmanager
def run_folder_of(folder: Path) -> Iterator[Path]:
    """Where this process writes: the main one into the run's folder, others into a copy of it.

    The copy lets all processes resume from the same checkpoint. It is removed at the end.

    Raises:
      DataError: the processes do not see the same files in the folder.
    """
    if not jax.distributed.is_initialized() or jax.process_count() == 1:
        yield folder
        return
    with tempfile.TemporaryDirectory() as scratch:
        place = folder if is_main_process() else Path(scratch) / "run"
        if not is_main_process() and folder.is_dir():
            shutil.copytree(folder, place)
        files = (p for p in place.rglob("*") if p.suffix in (".safetensors", ".json", ".jsonl"))
        sizes = sorted((p.name, p.stat().st_size) for p in files)
        if _differ(str(sizes)):  # they also wait for each other
            remedy = "is not the same to all processes: it must be where all of them can read"
            raise DataError(f"{folder}: {remedy}")
        yield place


def assert_same_config(config: Config, checksum: str) -> None:
    """Checks that all processes have the same settings and data; else weights would drift apart.

    The path of the data may differ.

    Args:
      config: this process's config.
      checksum: of its data.

    Raises:
      ConfigError: the settings differ. DataError: the data differ.
    """
    if jax.process_count() == 1:
        return
    tree = config.as_dict()
    tree["data"].pop("path", None)
    settings = json.dumps(tree, sort_keys=True, default=str)
    if _differ(settings):
        remedy = "the settings are not the same in all processes"
        raise ConfigError(str(config.path), remedy=remedy)
    if _differ(checksum):
        raise DataError(f"{config.path}: the data are not the same in all processes")


def any_process(stop: Callable[[], int | None]) -> Callable[[], int | None]:
    """A `stop` for all processes: if one got a signal, all stop after the same step."""
    if jax.process_count() == 1:
        return stop

    def signal() -> int | None:
        return int(_gather(stop() or 0).max()) or None

    return signal


def _gather(number: int) -> np.ndarray:
    """Every process's number, below 2^32, once all have come to this place."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.uint32(number)))


def _differ(text: str) -> bool:
    """Whether processes have different texts, once all have come to this place."""
    digests = _gather(zlib.crc32(text.encode()))
    return bool((digests != digests[0]).any())


def device_mesh(config: Config) -> Mesh | None:
    """The devices that share each batch of a training; None for a single device.

    Raises:
      ConfigError: there are fewer devices, or they do not divide the batch into equal parts.
    """
    processes = jax.process_count()
    asked = config.run.devices or ("all" if processes > 1 else 1)
    try:
        mesh = data_mesh(asked)
    except ValueError as error:
        raise config.error("devices", asked, str(error)) from None
    if processes > 1 and mesh.size < jax.device_count():
        remedy = f"must be 'all' or {jax.device_count()}, the devices of {processes} processes"
        raise config.error("devices", asked, remedy)
    _check_batch(config, mesh.size)
    return mesh if mesh.size > 1 else None


def _check_batch(config: Config, devices: int) -> None:
    size = config.training.batch_size
    if size % devices:
        remedy = f"must be a multiple of {devices}, the devices that share a batch"
        raise config.error("training.batch_size", size, remedy)
