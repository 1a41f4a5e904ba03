"""One writer a run folder: who is refused, who is named, and what a lock leaves behind."""

from __future__ import annotations

import errno
import os
import signal
import socket
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from bpeq.runs import lock, manifest, run_folder
from bpeq.types import Caution, DataError

HOLD = """\
import sys
from pathlib import Path
from bpeq.runs import lock
with lock.lock_folder(Path(sys.argv[1])):
    print("locked", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that has the folder `run` until its input ends."""
    argv, pipe = [sys.executable, "-c", HOLD, str(tmp_path / "run")], subprocess.PIPE
    with subprocess.Popen(argv, stdin=pipe, stdout=pipe) as process:
        assert process.stdout.readline() == b"locked\n"
        yield process
        process.kill()


def refused(folder: Path, resume: bool) -> str:
    with pytest.raises(lock.Locked) as caught, lock.lock_folder(folder, resume):
        pass
    return str(caught.value)


def test_a_second_process_is_refused_until_the_first_is_killed(holder, tmp_path):
    who = f"process {holder.pid} on {socket.gethostname()}"
    for resume in (False, True):
        assert refused(tmp_path / "run", resume).endswith(who)
    holder.send_signal(signal.SIGKILL)
    holder.wait()
    with lock.lock_folder(tmp_path / "run"):  # a killed one leaves an empty folder
        assert refused(tmp_path / "run", True).endswith(
            f"process {os.getpid()} on {socket.gethostname()}"
        )


def test_a_lock_leaves_nothing_that_counts_as_content(tmp_path):
    folder = tmp_path / "run"
    for _ in range(2):
        with lock.lock_folder(folder):
            manifest.write_manifest(folder)
            assert manifest.read(folder) == {}
            (folder / manifest.NAME).unlink()
    assert {path.name for path in folder.iterdir()} <= {run_folder.LOCK}
    run_folder.remove_if_unstarted(folder)
    assert not folder.exists()


def test_a_damaged_note_of_the_holder_still_refuses(tmp_path):
    with lock.lock_folder(tmp_path / "run"):
        (tmp_path / "run" / run_folder.HOLDER).write_text("{")
        assert refused(tmp_path / "run", False).endswith("by another process")


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_without_locks_a_run_is_warned_and_a_claim_is_an_error(tmp_path, monkeypatch, number):
    def flock(*args: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.warns(Caution, match="has no locks"), lock.lock_folder(tmp_path / "run"):
        pass
    with pytest.raises(lock.NoLocks), lock.lock_file(tmp_path / "claim"):
        pass


def test_a_file_that_cannot_be_made_is_a_data_error(tmp_path):
    (tmp_path / "claim").mkdir()
    with pytest.raises(DataError) as caught, lock.lock_file(tmp_path / "claim"):
        pass
    assert not isinstance(caught.value, lock.NoLocks)


def test_a_claim_is_given_to_one_and_then_to_the_next(tmp_path):
    with warnings.catch_warnings(action="error"), lock.lock_file(tmp_path / "claim") as first:
        with lock.lock_file(tmp_path / "claim") as second:
            assert (first, second) == (True, False)
        with lock.lock_file(tmp_path / "claim") as second:  # whom the refused one did not release
            assert not second
    with lock.lock_file(tmp_path / "claim", wait=True) as third:
        assert third
