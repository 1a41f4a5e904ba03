"""The run folder: what a run leaves behind, written so that nothing half-done passes for done."""

from __future__ import annotations

import json
import math
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from bpeq.types import DataError

LOCK, HOLDER, PROBE = ".lock", ".holder", ".writable"
MARKS = ("config.toml", "summary.json", "comparison.json", "metrics.jsonl")


def claim(folder: Path) -> Path:
    """Makes a folder for a run.

    Raises:
      FileExistsError: it already holds a run, or is not empty; nothing is touched.
      DataError: it cannot be made or written to.
    """
    try:
        claimable(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / PROBE
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may look at the same time
    except (PermissionError, NotADirectoryError) as error:
        raise DataError(f"{folder}: cannot write there: {error.strerror}") from error
    except FileExistsError:
        raise
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from error
    return folder


def claimable(folder: Path) -> None:
    """Raises FileExistsError where a folder is none, or has more in it than a lock's remains."""
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if LOCK in names:  # a run that was killed before it had written anything
        names = {name for name in names if not name.endswith(".part")}
    names -= {LOCK, HOLDER, PROBE}
    if names:
        kind = "already holds a run" if names & {*MARKS} else "is not empty"
        raise FileExistsError(f"the folder {folder} {kind}; name a new one")


def disclaim(folder: Path) -> None:
    """Takes a claim back: a folder goes in which no step has been logged and nothing else is."""
    if (folder / "metrics.jsonl").exists():
        return
    for name in ("config.toml", "environment.json", HOLDER, LOCK):
        with suppress(PermissionError):  # Windows keeps the lock's file while it is locked
            (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def fresh(parent: Path, name: str) -> Path:
    """The first of parent/name, parent/name-2, … that does not exist."""
    number = 1
    while (parent / (name if number == 1 else f"{name}-{number}")).exists():
        number += 1
    return parent / (name if number == 1 else f"{name}-{number}")


def latest(parent: Path, name: str) -> Path:
    """The last of parent/name, parent/name-2, … that exists; the first where none does."""
    number = 1
    while (parent / f"{name}-{number + 1}").exists():
        number += 1
    return parent / (name if number == 1 else f"{name}-{number}")


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none: to a temporary one, to the disk, then renamed."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a whole file or none.

    Raises:
      DataError: the disk is full or the folder cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
        _settle(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot write: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """JSON with NaN and infinities as null, since JSON has none."""
    write_text(path, json.dumps(plain(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *parts: str) -> dict[str, Any]:
    """A JSON object.

    Args:
      parts: keys that it must have, each with an object of its own.

    Raises:
      DataError: the file is absent, is not JSON, or holds something else.
    """
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot read: {getattr(error, 'strerror', '') or error}"
        ) from error
    if not isinstance(found, dict):
        raise DataError(f"{path}: is damaged: it is no JSON object")
    for part in parts:
        if not isinstance(found.get(part), dict):
            raise DataError(f"{path}: is damaged: it has no {part}")
    return found


def plain(value: Any) -> Any:
    """Arrays and NumPy scalars as Python's own, non-finite numbers as None."""
    if isinstance(value, dict):
        return {str(key): plain(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain(part) for part in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_arrays(path: Path, tree: Any) -> None:
    """A pytree's arrays as one safetensors file, named by tree path."""
    from safetensors.numpy import save

    arrays = {name: np.ascontiguousarray(leaf) for name, leaf in _named(tree)}
    write_bytes(path, save(arrays))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of a file by their names. Raises DataError where it is absent or corrupt."""
    from safetensors import SafetensorError
    from safetensors.numpy import load

    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot read: {error}") from error


def load_arrays(path: Path, template: Any) -> Any:
    """The arrays of a file in the structure of `template`, whose shapes and dtypes they must have.

    Raises:
      DataError: absent, corrupt, or of another network.
    """
    import jax

    arrays = read_arrays(path)
    wanted = dict(_named(template))
    if set(arrays) != set(wanted):
        odd = sorted(set(arrays) ^ set(wanted))
        raise DataError(f"{path}: holds another network: {', '.join(odd[:4])} do not match")
    for name, leaf in wanted.items():
        found = arrays[name]
        if found.shape != leaf.shape or found.dtype != leaf.dtype:
            raise DataError(
                f"{path}: {name} is {found.dtype}{list(found.shape)}, the config makes "
                f"{leaf.dtype}{list(leaf.shape)}"
            )
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in wanted])


def environment() -> dict[str, Any]:
    """What a repeat would need to match: versions, platform, devices, flags that change numbers."""
    import jax

    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "devices": [device.device_kind for device in jax.devices()],
        "backend": jax.default_backend(),
        "versions": {name: version(name) for name in ("bpeq", "jax", "jaxlib", "numpy", "optax")},
        "matmul_precision": getattr(jax.config, "jax_default_matmul_precision", None) or "default",
        "xla_flags": os.environ.get("XLA_FLAGS", ""),
    }


def differences(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What of an environment has changed, in words; empty where nothing has."""
    found = []
    for key in now:
        old, new = then.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict):
            found += [f"{k} {old.get(k)} then, {v} now" for k, v in new.items() if old.get(k) != v]
        elif old != new:
            found.append(f"{key} {old!r} then, {new!r} now")
    return ", ".join(found)


def _settle(folder: Path) -> None:
    """A renaming is on the disk once its folder is. Windows cannot do this for a folder."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _named(tree: Any) -> Iterator[tuple[str, Any]]:
    import jax

    from bpeq.core import trees

    yield from zip(trees.names(tree), jax.tree.leaves(tree), strict=True)
