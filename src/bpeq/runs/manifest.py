"""The manifest of a finished run folder: every file's checksum, so that none changes unseen."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

from bpeq.runs import run_folder
from bpeq.types import DataError

NAME = "manifest.json"
VOUCHED = ("config.toml", "environment.json", "metrics.jsonl", "params.safetensors", "summary.json")
"""What a manifest must name where it is there: nobody may make it vouch for less."""


def seal(folder: Path) -> None:
    """Writes manifest.json over all files below a folder."""
    _write(folder, {name: checksum(folder / name) for name in _names(folder)})


def renew(folder: Path, page: Path) -> None:
    """Takes a report that was written since, with its picture, into a sealed folder's manifest.

    The other entries stay: a file that was changed meanwhile is found all the same.
    """
    if not sealed(folder):
        return
    pages = {page.name, "learning_curves.png"}
    known = {name: found for name, found in read(folder).items() if name not in pages}
    new = {name: checksum(folder / name) for name in pages if (folder / name).exists()}
    _write(folder, known | new)


def sealed(folder: Path, name: str = "") -> bool:
    """Whether a folder has a manifest, in which there is that file."""
    return (folder / NAME).exists() and (not name or name in read(folder))


def read(folder: Path) -> dict[str, str]:
    """Each file's checksum, by its path in the folder.

    Raises:
      DataError: it cannot be read, or names what is not in the folder.
    """
    files = run_folder.read_json(folder / NAME).get("sha256")
    if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
        raise DataError(f"{folder / NAME}: is damaged: it has no checksums")
    for path in map(PurePosixPath, files):
        if path.is_absolute() or ".." in path.parts or "\0" in str(path):
            raise DataError(f"{folder / NAME}: is damaged: {str(path)!r} is no file of its folder")
    return files


def faults(folder: Path) -> dict[str, str]:
    """What is wrong with each file that is not as it was when the folder was sealed."""
    found, known = {}, read(folder)
    for name, expected in known.items():
        path = folder / name
        try:
            if path.exists() and not path.is_file():  # such as a pipe, which would never end
                found[name] = "is no file"
            elif checksum(path) != expected:
                found[name] = "was changed"
        except FileNotFoundError:
            found[name] = "is missing"
        except OSError as error:
            found[name] = f"cannot be read: {error.strerror}"
    for name in VOUCHED:
        if name not in known and (folder / name).exists():
            found[name] = f"is not in {NAME}"
    return found


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, sums: dict[str, str]) -> None:
    run_folder.write_json(folder / NAME, {"format": 1, "sha256": dict(sorted(sums.items()))})


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    own = (
        n
        for n in names
        if n != NAME
        and Path(n).name not in (run_folder.LOCK, run_folder.HOLDER)
        and not n.endswith(".part")
    )
    return sorted(own)
