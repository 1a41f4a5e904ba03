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
"""Seconds that a process waits for the others at the start, and for their heartbeat later."""


def check_options(
    config: Config,
    processes: int | None,
    coordinator: str | None,
    index: int | None,
    count: int | None,
) -> bool:
    """Checks the options for several processes.

    Args:
      config: the config to run.
      processes: `--processes`, the number of processes on this machine; None if not given.
      coordinator: `--coordinator`, HOST:PORT of process 0, or "auto"; None if not given.
      index: `--process-id`, 0 to `count - 1`; None if not given.
      count: `--process-count`, at least 1; None if not given.

    Returns:
      True if several processes share the run.

    Raises:
      ConfigError: an option is wrong, or the config must run in one process.
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
    if several:  # each process has at least one device, so this fails before a process starts
        _check_batch(config, processes or count or 1)
    return several


def join_processes(coordinator: str, index: int | None = None, count: int | None = None) -> None:
    """Makes this process one of several that share a run. Call it before JAX looks for devices.

    Args:
      coordinator: HOST:PORT of the first process; "auto": the environment of the cluster gives
        address, index and count (Slurm, Open MPI, Kubernetes, a TPU pod).
      index: the number of this process; None: the environment gives it.
      count: the number of processes; None: the environment gives it.

    Raises:
      ConfigError: the environment does not give them.
    """
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_enable_preemption_service", False)  # the service would catch SIGTERM
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
    """Whether this process writes the run's files and prints.

    Returns:
      True for process 0, and for a run with one process.
    """
    return not jax.distributed.is_initialized() or jax.process_index() == 0


@contextmanager
def run_folder_of(folder: Path) -> Iterator[Path]:
    """Gives the folder where this process writes: the run folder, or a copy of it.

    The main process writes into the run folder. Every other process writes into its own copy, so
    that all processes resume from the same checkpoint. The copy is removed at the end.

    Args:
      folder: the run folder.

    Returns:
      A context manager that gives the folder of this process.

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
        if _differ(str(sizes)):  # this call also waits for all processes
            remedy = "is not the same to all processes: it must be where all of them can read"
            raise DataError(f"{folder}: {remedy}")
        yield place


def assert_same_config(config: Config, checksum: str) -> None:
    """Checks that all processes have the same settings and data.

    Otherwise each process would train other weights. The path of the data may differ.

    Args:
      config: the config of this process.
      checksum: the checksum of its data.

    Raises:
      ConfigError: the settings differ.
      DataError: the data differ.
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
    """Turns `stop` into a function that gives all processes the same answer.

    Args:
      stop: returns the number of a signal that this process got, else None.

    Returns:
      A function that returns a number if any process got a signal. So all stop after the same step.
    """
    if jax.process_count() == 1:
        return stop

    def signal() -> int | None:
        return int(_gather(stop() or 0).max()) or None

    return signal


def _gather(number: int) -> np.ndarray:
    """Waits for all processes, then returns the number of each, below 2^32."""
    from jax.experimental.multihost_utils import process_allgather

    return np.asarray(process_allgather(np.uint32(number)))


def _differ(text: str) -> bool:
    """Waits for all processes, then says whether their texts differ."""
    digests = _gather(zlib.crc32(text.encode()))
    return bool((digests != digests[0]).any())


def device_mesh(config: Config) -> Mesh | None:
    """Makes the mesh of devices that share each batch.

    Args:
      config: the config. Its `devices` is the number of devices, "all", or absent: one device, or
        all devices of several processes.

    Returns:
      The mesh; None for a single device.

    Raises:
      ConfigError: the machine has fewer devices, or the batch does not divide evenly among them.
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
