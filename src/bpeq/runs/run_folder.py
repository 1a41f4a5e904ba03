"""The run folder: each file is written in one step, so that none is ever incomplete."""

from __future__ import annotations

import itertools
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

import jax
import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from bpeq.runs import host_arrays
from bpeq.runs.resume import resume_command
from bpeq.types import DataError

LOCK, HOLDER, PROBE = ".lock", ".holder", ".writable"
MARKS = ("config.toml", "summary.json", "comparison.json", "metrics.jsonl")


def create_folder(folder: Path) -> Path:
    """Creates a folder for a run and checks that it can be written.

    Args:
      folder: the run folder.

    Returns:
      The folder.

    Raises:
      FileExistsError: the folder holds a run or is not empty. Nothing was changed.
      DataError: the folder cannot be created or written.
    """
    try:
        refuse_if_used(folder)
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / PROBE
        probe.touch()
        probe.unlink(missing_ok=True)  # another process may check at the same time
    except (PermissionError, NotADirectoryError) as error:
        raise DataError(f"{folder}: cannot write there: {error.strerror}") from error
    except FileExistsError:
        raise
    except OSError as error:
        raise DataError(f"{folder}: {error.strerror or error}") from error
    return folder


def refuse_if_used(folder: Path) -> None:
    """Checks that a path is free for a new run: absent, or a folder with nothing but a lock.

    Args:
      folder: the path.

    Raises:
      FileExistsError: it is a file, or a folder with other files.
    """
    if folder.exists() and not folder.is_dir():
        raise FileExistsError(f"{folder} is a file, not a folder")
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if LOCK in names:  # a run was killed before it wrote anything
        names = {name for name in names if not name.endswith(".part")}
    names -= {LOCK, HOLDER, PROBE}
    if names:
        kind = "already holds a run" if names & {*MARKS} else "is not empty"
        more = ""
        if "config.toml" in names:
            more = f", or continue it: {resume_command(folder)}"
        elif "comparison.json" in names:
            more = ", or continue the comparison with --resume"
        raise FileExistsError(f"the folder {folder} {kind}; name a new one{more}")


def remove_if_unstarted(folder: Path) -> None:
    """Removes the folder of a run that has logged no row, unless it holds other files.

    Args:
      folder: the run folder.
    """
    if (folder / "metrics.jsonl").exists():
        return
    for name in ("config.toml", "environment.json", HOLDER, LOCK):
        with suppress(PermissionError):  # Windows does not delete a locked file
            (folder / name).unlink(missing_ok=True)
    if not any(folder.iterdir()):
        folder.rmdir()


def next_free(parent: Path, name: str) -> Path:
    """The first of parent/name, parent/name-2, … that does not exist.

    Args:
      parent: the parent folder.
      name: the name of the folder.

    Returns:
      The path.
    """
    return next(path for path in _numbered(parent, name) if not path.exists())


def newest_taken(parent: Path, name: str) -> Path:
    """The last of parent/name, parent/name-2, … before the first that does not exist.

    Args:
      parent: the parent folder.
      name: the name of the folder.

    Returns:
      The path.
    """
    folders = itertools.pairwise(_numbered(parent, name))
    return next(path for path, following in folders if not following.exists())


def _numbered(parent: Path, name: str) -> Iterator[Path]:
    yield parent / name
    yield from (parent / f"{name}-{number}" for number in itertools.count(2))


def write_text(path: Path, text: str) -> None:
    """Writes a text file in one step: to a temporary file, to the disk, then renamed.

    Args:
      path: the file.
      text: its content.

    Raises:
      DataError: the disk is full or the folder cannot be written.
    """
    write_bytes(path, text.encode("utf-8", "surrogateescape"))


def write_bytes(path: Path, content: bytes) -> None:
    """Writes a file in one step, so that it is complete or absent.

    Args:
      path: the file.
      content: its content.

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
        fsync_directory(path.parent)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise DataError(f"{path}: cannot write: {error.strerror or error}") from error


def write_json(path: Path, content: Any) -> None:
    """Writes a JSON file. NaN and infinities become null, because JSON has none.

    Args:
      path: the file.
      content: nested dicts and lists of numbers, arrays and texts.

    Raises:
      DataError: the disk is full or the folder cannot be written.
    """
    write_text(path, json.dumps(to_json(content), indent=1, allow_nan=False) + "\n")


def read_json(path: Path, *parts: str) -> dict[str, Any]:
    """Reads a JSON object.

    Args:
      path: the file.
      parts: keys that the object must have, each with an object as its value.

    Returns:
      The object.

    Raises:
      DataError: the file is absent, is not JSON, or holds something else.
    """
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            f"{path}: cannot read: {getattr(error, 'strerror', '') or error}"
        ) from error
    if not isinstance(content, dict):
        raise DataError(f"{path}: is damaged: it is no JSON object")
    for part in parts:
        if not isinstance(content.get(part), dict):
            raise DataError(f"{path}: is damaged: it has no {part}")
    return content


def to_json(value: Any) -> Any:
    """Converts arrays and NumPy scalars to Python numbers. Numbers that are not finite become None.

    Args:
      value: nested dicts and lists of numbers, arrays and texts.

    Returns:
      The converted value.
    """
    if isinstance(value, dict):
        return {str(key): to_json(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(part) for part in value]
    if hasattr(value, "tolist"):
        return to_json(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def save_arrays(path: Path, tree: Any) -> None:
    """Writes the arrays of a tree to one safetensors file, named by their paths in the tree.

    Args:
      path: the file.
      tree: a tree of arrays.

    Raises:
      DataError: the disk is full or the folder cannot be written.
    """
    named = host_arrays.named(tree).items()
    write_bytes(path, save({name: np.ascontiguousarray(leaf) for name, leaf in named}))


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of a safetensors file.

    Args:
      path: the file.

    Returns:
      Name -> array.

    Raises:
      DataError: the file is absent or corrupt.
    """
    try:
        return load(path.read_bytes())
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: cannot read: {error}") from error


def load_arrays(path: Path, template: Any) -> Any:
    """Reads the arrays of a file into the structure of a template.

    Args:
      path: the file.
      template: a tree whose leaves have the expected shapes and dtypes.

    Returns:
      The tree of arrays.

    Raises:
      DataError: the file is absent or corrupt, or belongs to another network.
    """
    arrays, wanted = read_arrays(path), host_arrays.named(template)
    check_arrays(path, arrays, wanted)
    return jax.tree.unflatten(jax.tree.structure(template), [arrays[name] for name in wanted])


def check_arrays(path: Path, arrays: dict[str, Any], wanted: dict[str, Any]) -> None:
    """Checks that arrays of a file have the expected names, shapes and dtypes.

    Args:
      path: the file, for error messages.
      arrays: the arrays by name.
      wanted: name -> an object with the expected shape and dtype.

    Raises:
      DataError: a name, a shape or a dtype differs.
    """
    if set(arrays) != set(wanted):
        odd = sorted(set(arrays) ^ set(wanted))
        raise DataError(f"{path}: holds another network: {', '.join(odd[:4])} do not match")
    for name, leaf in wanted.items():
        array = arrays[name]
        if array.shape != leaf.shape or array.dtype != leaf.dtype:
            raise DataError(
                f"{path}: {name} is {array.dtype}{list(array.shape)}, the config makes "
                f"{leaf.dtype}{list(leaf.shape)}"
            )


def environment() -> dict[str, Any]:
    """Describes the environment: versions, platform, devices, and flags that change numbers.

    Returns:
      The content of environment.json.
    """
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
    """Lists the differences between two environments.

    Args:
      then: the earlier environment.
      now: the present environment.

    Returns:
      The differences in words; empty if there are none.
    """
    changes = []
    for key in now:
        old, new = then.get(key), now[key]
        if isinstance(new, dict) and isinstance(old, dict):
            changes += [
                f"{k} {old.get(k)} then, {v} now" for k, v in new.items() if old.get(k) != v
            ]
        elif old != new:
            changes.append(f"{key} {old!r} then, {new!r} now")
    return ", ".join(changes)


def fsync_directory(folder: Path) -> None:
    """Waits until renamed files are on the disk. Windows cannot do this for a folder.

    Args:
      folder: the folder.
    """
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
