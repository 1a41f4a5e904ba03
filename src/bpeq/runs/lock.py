"""One writer a run folder: an advisory lock that the system lets go of when its process ends."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bpeq.runs import run_folder
from bpeq.types import Caution, DataError

_NONE = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # a file system without locks


class Locked(FileExistsError):
    """Another process is writing into the folder. Exit code 2."""


@contextmanager
def held(folder: Path, resume: bool = False) -> Iterator[None]:
    """A folder for one run, made if need be, that nobody else may write into until it is done.

    Args:
      resume: the folder may hold a run already, whose half-written files are cleared away.

    Raises:
      Locked: another process has it. FileExistsError: without `resume` it already holds a run, or
      it is not empty. DataError: it cannot be made or written to. Nothing was touched then.
    """
    if not resume or not any((folder / name).exists() for name in (run_folder.LOCK, "config.toml")):
        refuse_if_held(folder)
        run_folder.claim(folder)
    try:
        file = (folder / run_folder.LOCK).open("a+")
    except OSError as error:
        raise DataError(f"{folder}: cannot write there: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise Locked(_refusal(folder)) from None
        except OSError as error:
            if error.errno not in _NONE:
                raise DataError(
                    f"{folder / run_folder.LOCK}: cannot lock: {error.strerror}"
                ) from error
            said = f"{folder}: its file system has no locks: nothing keeps a second writer off"
            warnings.warn(said, Caution, stacklevel=3)
        if not resume:
            run_folder.claim(folder)  # another may have begun and ended meanwhile
        _write(file, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}))
        if resume:
            for part in (folder / run_folder.PROBE, *folder.rglob("*.part")):
                part.unlink(missing_ok=True)
        try:
            yield
        finally:
            _write(file, "")


def refuse_if_held(folder: Path) -> None:
    """Raises Locked, which names who is writing into a folder, before it is said to hold a run."""
    try:
        with (folder / run_folder.LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        raise Locked(_refusal(folder)) from None
    except OSError:
        return


def _refusal(folder: Path) -> str:
    try:
        holder = json.loads((folder / run_folder.LOCK).read_text())
        who = f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"the folder {folder} is being written by {who}"


def _write(file: object, text: str) -> None:
    """In place: the lock belongs to the file, and a new one would not have it."""
    try:
        os.ftruncate(file.fileno(), 0)  # type: ignore[attr-defined]
        os.write(file.fileno(), text.encode())  # type: ignore[attr-defined]
    except OSError:
        pass  # a full disk: the lock holds all the same
