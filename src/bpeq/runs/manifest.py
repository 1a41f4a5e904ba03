"""The manifest of a finished run folder: the checksum of every file, to detect changes."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from bpeq.runs import run_folder
from bpeq.types import DataError

NAME = "manifest.json"
REQUIRED = ["config.toml", "environment.json", "metrics.jsonl", "params.safetensors"]
REQUIRED += ["summary.json"]
"""Files that a manifest must list if the folder has them. So no entry can be dropped unseen."""


def write_manifest(folder: Path) -> None:
    """Writes manifest.json with the checksums of all files in a folder.

    Args:
      folder: the run folder.

    Raises:
      DataError: the disk is full or cannot be written.
    """
    locks = (run_folder.LOCK, run_folder.HOLDER)
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in locks)
    paths = {path.relative_to(folder).as_posix(): path for path in files if path.suffix != ".part"}
    paths.pop(NAME, None)
    _write(folder, {name: checksum(path) for name, path in paths.items()})


def add_report(folder: Path, page: Path) -> None:
    """Adds a report and its picture to the manifest of a finished folder.

    The other entries stay, so that changes of other files are still detected.

    Args:
      folder: the run folder. Without a manifest nothing happens.
      page: the report in this folder.

    Raises:
      DataError: the manifest cannot be read or written.
    """
    if not has_manifest(folder):
        return
    pages = {page.name, "learning_curves.png"}
    kept = {name: sha256 for name, sha256 in read(folder).items() if name not in pages}
    new = {name: checksum(folder / name) for name in pages if (folder / name).exists()}
    _write(folder, kept | new)


def has_manifest(folder: Path, name: str = "") -> bool:
    """Checks whether a folder has a manifest.

    Args:
      folder: the run folder.
      name: a file that the manifest must list; empty: no such file.

    Returns:
      True if the manifest exists and lists the file.

    Raises:
      DataError: the manifest cannot be read.
    """
    return (folder / NAME).exists() and (not name or name in read(folder))


def read(folder: Path) -> dict[str, str]:
    """Reads the manifest of a folder.

    Args:
      folder: the run folder.

    Returns:
      Path in the folder -> checksum.

    Raises:
      DataError: the manifest cannot be read, or names a file outside the folder.
    """
    files = run_folder.read_json(folder / NAME).get("sha256")
    if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
        raise DataError(f"{folder / NAME}: is damaged: it has no checksums")
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise DataError(f"{folder / NAME}: is damaged: {str(path)!r} is no file of its folder")
    return files


def changed_files(folder: Path) -> dict[str, str]:
    """Finds the files that changed after the manifest was written.

    Args:
      folder: the run folder.

    Returns:
      File -> what is wrong; empty if all files are unchanged.

    Raises:
      DataError: the manifest cannot be read.
    """
    wrong, known = {}, read(folder)
    for name, expected in known.items():
        path = folder / name
        try:
            if path.exists() and not path.is_file():  # reading a pipe would never end
                wrong[name] = "is no file"
            elif checksum(path) != expected:
                wrong[name] = "was changed"
        except FileNotFoundError:
            wrong[name] = "is missing"
        except OSError as error:
            wrong[name] = f"cannot be read: {error.strerror}"
    for name in REQUIRED:
        if name not in known and (folder / name).exists():
            wrong[name] = f"is not in {NAME}"
    return wrong


def checksum(path: Path) -> str:
    """Computes the SHA-256 of a file.

    Args:
      path: the file.

    Returns:
      The checksum in hexadecimal.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, sums: dict[str, str]) -> None:
    run_folder.write_json(folder / NAME, {"format": 1, "sha256": dict(sorted(sums.items()))})
