"""Checkpoints: the state of a loop in one safetensors file, with its manifest inside the file."""

from __future__ import annotations

import glob
import hashlib
import json
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from safetensors.numpy import load, save

from bpeq.runs import host_arrays, run_folder
from bpeq.runs.metrics_log import MetricsLog, Values, as_read
from bpeq.types import Caution, DataError

FOLDER, FORMAT = "checkpoints", 2
_CHECKSUM = b'"sha256":"'
"""The text before a file's checksum, in its header."""
_PLACE = ("done", "row", "log", "start")
"""The fields of a checkpoint that its manifest holds."""


class Checkpoint(NamedTuple):
    """All that the rest of a loop depends on, in host memory.

    Args:
      done: the number of turns done.
      carry: the carry of the loop, with random keys as their data.
      values: the metrics measured last.
      row: the entries that identify the last row, such as its epoch.
      log: the length and the checksum of the metrics log.
      start: the byte of the log where the rows of this loop begin.
    """

    done: int
    carry: Any
    values: Values
    row: dict[str, Any]
    log: dict[str, Any]
    start: int


class DamagedCheckpoint(Exception):
    """A checkpoint file cannot be used. The message says why."""


def write(path: Path, arrays: dict[str, np.ndarray], manifest: dict[str, Any]) -> None:
    """Writes one checkpoint file in a single step, with a checksum of all its other bytes.

    Args:
      path: the file. Its name is part of the checkpoint.
      arrays: the arrays by name, of any dtype.
      manifest: the other content of the checkpoint, in the form of JSON.

    Raises:
      DataError: the disk is full or cannot be written.
    """
    kinds = {name: [array.dtype.name, list(array.shape)] for name, array in arrays.items()}
    text = json.dumps(run_folder.to_json({**manifest, "name": path.name, "arrays": kinds}))
    packed = {name: host_arrays.pack(array) for name, array in arrays.items()}
    content = save(packed, {"manifest": text, "sha256": "0" * 64})
    at = content.index(_CHECKSUM) + len(_CHECKSUM)
    run_folder.write_bytes(path, content[:at] + _checksum(content, at) + content[at + 64 :])


def read(path: Path) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """Reads one checkpoint file.

    Args:
      path: the file.

    Returns:
      The manifest and the arrays.

    Raises:
      DamagedCheckpoint: a bit has changed, or the file cannot be read.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DamagedCheckpoint(f"cannot be read: {error.strerror or error}") from error
    at = content.find(_CHECKSUM) + len(_CHECKSUM)
    if content[at : at + 64] != _checksum(content, at):
        raise DamagedCheckpoint("is damaged: its checksum is wrong")
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    manifest = json.loads(header["__metadata__"]["manifest"])
    if manifest["name"] != path.name:
        raise DamagedCheckpoint(f"is damaged: it is {manifest['name']} under another name")
    packed, kinds = load(content), manifest["arrays"].items()
    return manifest, {name: host_arrays.unpack(packed[name], *kind) for name, kind in kinds}


class Checkpoints:
    """The checkpoints of one loop of a run, in files PART-TURNS.safetensors.

    Args:
      folder: the folder of the files.
      part: the loop's name. It begins with the number of the loop in the run.
      identity: values that a resumed run must share with the checkpoint, such as the checksum of
        its config and the length of its loop.
      keys: the loop's random keys, which a resumed run must share too.
    """

    def __init__(self, folder: Path, part: str, identity: dict[str, Any], keys: list[Any]) -> None:
        self.folder, self.part, self.identity = folder, part, identity
        self.keys = {
            f"key.{i}": jax.device_get(host_arrays.data(key)) for i, key in enumerate(keys)
        }
        self.saved, self.reported = -1, False

    def path(self, done: int) -> Path:
        """The file of the checkpoint after `done` turns.

        Args:
          done: the number of turns done.

        Returns:
          The path.
        """
        return self.folder / f"{self.part}-{done:09d}.safetensors"

    def save(self, checkpoint: Checkpoint, seconds: dict[str, float]) -> Path:
        """Writes a checkpoint, and removes all others except the one before.

        Args:
          checkpoint: the state of the loop.
          seconds: the seconds that the run has spent, by name.

        Returns:
          The path of the checkpoint.

        Raises:
          DataError: the disk is full or cannot be written. The earlier checkpoints stay.
        """
        path = self.path(checkpoint.done)
        if checkpoint.done == self.saved:
            return path
        arrays = self.keys | host_arrays.named(checkpoint.carry, "carry")
        arrays |= {f"values.{name}": value for name, value in checkpoint.values.items()}
        manifest = {
            "format": FORMAT,
            **{key: getattr(checkpoint, key) for key in _PLACE},
            "identity": self.identity,
            "seconds": seconds,
            "environment": run_folder.environment(),
        }
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise DataError(f"{self.folder}: cannot write: {error.strerror or error}") from error
        write(path, {name: np.asarray(array) for name, array in arrays.items()}, manifest)
        self.saved = checkpoint.done
        self._keep(2)
        return path

    def finish(self) -> None:
        """Removes all checkpoints except the newest."""
        self._keep(1)

    def newest(
        self, carry: Any, log: MetricsLog
    ) -> tuple[Checkpoint, dict[str, float], list[dict[str, Any]]] | None:
        """Finds the newest undamaged checkpoint. It removes damaged ones, and a warning names them.

        Args:
          carry: the loop's carry at its start. The checkpoint must have the same leaves.
          log: the metrics log. It is set back to the place of the checkpoint.

        Returns:
          The checkpoint, the seconds spent until then, and the loop's rows; None if there is no
          undamaged checkpoint.

        Raises:
          DataError: a checkpoint belongs to another run, network or version of bpeq, or the metrics
            log was changed.
        """
        damaged: dict[Path, str] = {}
        result, edited = None, False
        for path in self._newest_first():
            if path.with_suffix(".json").exists():
                raise DataError(
                    f"{path}: was written by an earlier version of bpeq, in two files: "
                    "resume the run with that version, or name a new folder"
                )
            try:
                manifest, arrays = read(path)
            except DamagedCheckpoint as error:
                damaged[path] = str(error)
                continue
            self._check(path, manifest, arrays, carry)
            if not log.go_to(manifest["log"]):
                damaged[path], edited = f"{log.path} was changed", True
                continue
            checkpoint = _restore(manifest, arrays, carry)
            rows = [as_read(row, checkpoint.values) for row in log.rows(checkpoint.start)]
            result = checkpoint, manifest["seconds"], rows
            self.saved = checkpoint.done
            self._report_environment(manifest["environment"])
            break
        if edited and result is None:
            raise DataError(
                f"{log.path}: was changed: its rows are not those that the checkpoints in "
                f"{self.folder} go on from; bring it back, or name a new folder"
            )
        if damaged:
            then = f"goes on from {self.path(self.saved).name}" if result else "starts anew"
            reasons = "; ".join(f"{path}: {why}" for path, why in damaged.items())
            warnings.warn(f"{reasons}: the run {then}", Caution, stacklevel=2)
            self.reported = True
            for path in damaged:
                path.unlink(missing_ok=True)
        return result

    def _newest_first(self) -> list[Path]:
        """The files of this loop's checkpoints, newest first."""
        paths = self.folder.glob(f"{glob.escape(self.part)}-*.safetensors")
        mine = {path.stem.removeprefix(f"{self.part}-"): path for path in paths}
        return [mine[turns] for turns in sorted(filter(str.isdigit, mine), key=int, reverse=True)]

    def _keep(self, count: int) -> None:
        """Removes all checkpoints except the `count` newest."""
        for path in self._newest_first()[count:]:
            path.unlink(missing_ok=True)

    def _check(self, path: Path, manifest: Any, arrays: dict[str, np.ndarray], carry: Any) -> None:
        """Raises DataError if the checkpoint belongs to another run, network or version."""
        if manifest["format"] != FORMAT:
            raise DataError(f"{path}: was written by another version of bpeq; use that one")
        for key, ours in self.identity.items():
            if manifest["identity"].get(key) != ours:
                raise DataError(f"{path}: is of another run: its {key} is not this one's")
        leaves = {name: array for name, array in arrays.items() if not name.startswith("values.")}
        specs = host_arrays.named(host_arrays.specs(carry), "carry")
        run_folder.check_arrays(path, leaves, self.keys | specs)
        if any(not np.array_equal(arrays[name], key) for name, key in self.keys.items()):
            raise DataError(f"{path}: is of a run with other random keys")

    def _report_environment(self, environment: dict[str, Any]) -> None:
        """Warns if the checkpoint comes from another environment."""
        changes = run_folder.differences(environment, run_folder.environment())
        if changes:
            warnings.warn(
                f"{self.folder}: the run began elsewhere, and may differ from one never "
                f"interrupted in its last bits: {changes}",
                Caution,
                stacklevel=3,
            )


def _restore(manifest: dict[str, Any], arrays: dict[str, np.ndarray], carry: Any) -> Checkpoint:
    """Puts a checkpoint together from its manifest and arrays."""
    leaves = [arrays[name] for name in host_arrays.named(host_arrays.specs(carry), "carry")]
    return Checkpoint(
        carry=jax.tree.unflatten(jax.tree.structure(carry), leaves),
        values={n.removeprefix("values."): a for n, a in arrays.items() if n.startswith("values.")},
        **{key: manifest[key] for key in _PLACE},
    )


def _checksum(content: bytes, at: int) -> bytes:
    """The SHA-256 of all bytes except the 64 from `at` on, which hold the checksum."""
    view = memoryview(content)
    checksum = hashlib.sha256(view[:at])
    checksum.update(view[at + 64 :])
    return checksum.hexdigest().encode()
