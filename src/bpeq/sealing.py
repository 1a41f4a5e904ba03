"""The manifest of a finished run folder: every file's checksum, so that none changes unseen."""

from __future__ import annotations

import hashlib
from pathlib import Path

from bpeq import runs
from bpeq.types import DataError

NAME = "manifest.json"


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
    """Each file's checksum, by its path in the folder. Raises DataError if it cannot be read."""
    manifest = runs.read_json(folder / NAME)
    files = manifest.get("sha256") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(isinstance(v, str) for v in files.values()):
        raise DataError(f"{folder / NAME}: is damaged: it has no checksums")
    return files


def faults(folder: Path) -> dict[str, str]:
    """What is wrong with each file that is not as it was when the folder was sealed."""
    found, known = {}, read(folder)
    for name, expected in known.items():
        path = folder / name
        try:
            if checksum(path) != expected:
                found[name] = "was changed"
        except FileNotFoundError:
            found[name] = "is missing"
        except OSError as error:
            found[name] = f"cannot be read: {error.strerror}"
    for name in (*runs.MARKS, "params.safetensors"):  # an entry that was taken out hides a change
        if name not in known and (folder / name).exists():
            found[name] = "is not in manifest.json"
    return found


def checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write(folder: Path, sums: dict[str, str]) -> None:
    runs.write_json(folder / NAME, {"format": 1, "sha256": dict(sorted(sums.items()))})


def _names(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    names = (path.relative_to(folder).as_posix() for path in files)
    own = (n for n in names if n != NAME and Path(n).name != runs.LOCK and not n.endswith(".part"))
    return sorted(own)
