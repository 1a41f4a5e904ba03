"""File locks: one writer for each run folder. The system releases a lock when its process ends."""

from __future__ import annotations

import errno
import json
import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from bpeq.runs import run_folder
from bpeq.types import Caution, DataError

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)
"""Error numbers of a file system without locks."""


class Locked(FileExistsError):
    """Another process is writing into the folder. The exit code is 2."""


class NoLocks(DataError):
    """The file system has no locks. The exit code is 3."""


@contextmanager
def lock_file(path: Path, wait: bool = False) -> Iterator[bool]:
    """Locks a file until the block ends or the process dies. It creates the file if it is missing.

    Args:
      path: the file. Its folder must exist.
      wait: wait until another process releases the lock; the default gives up at once.

    Yields:
      Whether this process has the lock. With `wait` it always has.

    Raises:
      NoLocks: the file system has no locks.
      DataError: the file cannot be created or locked.
    """
    lock = FileLock(path, timeout=-1 if wait else 0)
    try:
        # Without flock, filelock warns and uses marker files, which stay if a process is killed.
        with warnings.catch_warnings(action="error", category=UserWarning):
            lock.acquire()
    except Timeout:
        pass
    except (NotImplementedError, UserWarning) as error:
        raise NoLocks(f"{path}: cannot lock: the file system has no locks") from error
    except OSError as error:
        kind = NoLocks if error.errno in _NO_LOCKS else DataError
        raise kind(f"{path}: cannot lock: {error.strerror or error}") from error
    try:
        yield lock.is_locked
    finally:
        lock.release()


@contextmanager
def lock_folder(folder: Path, resume: bool = False) -> Iterator[None]:
    """Creates and locks the folder of one run until the block ends.

    On a file system without locks the folder is not protected. A warning says so.

    Args:
      folder: the run folder.
      resume: the folder may already hold a run. Its incomplete files are removed.

    Raises:
      Locked: another process holds the lock.
      FileExistsError: without `resume`, the folder holds a run or is not empty.
      DataError: the folder cannot be created or written. Nothing was changed.
    """
    path = folder / run_folder.LOCK
    if not (resume and (path.exists() or (folder / "config.toml").exists())):
        refuse_if_locked(folder)
        run_folder.create_folder(folder)
    with ExitStack() as stack:
        try:
            if not stack.enter_context(lock_file(path)):
                raise Locked(_refusal(folder))
        except NoLocks:
            message = f"{folder}: its file system has no locks: nothing keeps a second writer off"
            warnings.warn(message, Caution, stacklevel=3)
        if not resume:
            run_folder.create_folder(folder)  # another process may have run here meanwhile
        holder = folder / run_folder.HOLDER
        with suppress(OSError):  # the lock also works on a full disk
            owner = {"pid": os.getpid(), "host": socket.gethostname()}
            holder.write_text(json.dumps(owner), encoding="utf-8")
        if resume:
            for part in (folder / run_folder.PROBE, *folder.rglob("*.part")):
                part.unlink(missing_ok=True)
        try:
            yield
        finally:
            holder.unlink(missing_ok=True)


def refuse_if_locked(folder: Path) -> None:
    """Checks that no process is writing into a folder.

    Args:
      folder: the run folder.

    Raises:
      Locked: a process is writing. The message names it.
    """
    path = folder / run_folder.LOCK
    if path.is_file():
        with suppress(DataError), lock_file(path) as mine:  # a writer gets the same DataError
            if not mine:
                raise Locked(_refusal(folder))


def _refusal(folder: Path) -> str:
    # The holder has its own file: filelock may empty the locked file, and Windows hides it.
    try:
        holder = json.loads((folder / run_folder.HOLDER).read_bytes())
        who = f"process {holder['pid']} on {holder['host']}"
    except (OSError, ValueError, KeyError, TypeError):
        who = "another process"
    return f"the folder {folder} is being written by {who}"
