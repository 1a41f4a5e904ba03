"""Starts, watches and ends the processes of one run, and reports a lost process in one line.

If a process is lost, the others hang in a collective operation, or C++ code aborts them. They
cannot report it themselves.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from bpeq.cli import signals

SUPERVISED = "BPEQ_SUPERVISED"
"""The environment variable of a supervised process. It names the log for native output."""
GRACE = 5.0
"""Seconds that the other processes have to end by themselves, for example with the same error."""
LOST, SAID, ALONE = 3, (2, 3, 4, 130, 143), 75
"""Exit codes: the run lost a process; a process printed its own line; a process lost its peers."""

_NATIVE = {
    "Failed to add port to server": "the coordinator's port is taken",
    "CoordinationService/RegisterTask": "the others did not arrive in time",
    "the JAX distributed service detected fatal errors": "it lost the others",
}
"""What JAX's C++ code prints when it aborts a process, and what the text means."""


def supervise(
    argv: Sequence[str], places: Sequence[Sequence[str]], folder: Path, again: str
) -> int:
    """Runs `bpeq ARGV PLACE` for every place. If one process fails, the others are ended.

    Only the first process writes to the terminal. A signal goes to all processes, so that they save
    and stop.

    Args:
      argv: the arguments that all processes share.
      places: the arguments of each process, as `local_places` returns them.
      folder: the run folder, for the message.
      again: the command that continues the run, for the message.

    Returns:
      The exit code. If a process was lost, one line on stderr says so.
    """
    with tempfile.TemporaryDirectory() as logs:
        files = [Path(logs) / f"{i}" for i in range(len(places))]
        children: list[subprocess.Popen] = []
        try:
            for place, log in zip(places, files, strict=True):
                children.append(_start([*argv, *place], log, first=not children))
            codes = _watch(children)
        finally:
            for child in children:
                child.kill()
                child.communicate()
        if not any(codes):
            return 0
        if codes[0] in SAID:
            return codes[0]
        who = max(range(len(codes)), key=lambda i: _blame(codes[i]))
        which = f"process {who} of {len(codes)}" if len(codes) > 1 else "the process"
        words = "" if codes[who] == -signal.SIGKILL else _last_words(files[who])
        reason = f"{which} {_ending(codes[who])}{words}"
    advice = f"; go on with: {again}" if (folder / "config.toml").exists() else ""
    print(f"bpeq: {reason}; what was saved is in {folder}{advice}", file=sys.stderr)
    return 1 if codes[who] == 1 else LOST


def local_places(count: int) -> list[list[str]]:
    """The arguments of each process on this machine, with a port that is free now.

    Args:
      count: the number of processes, at least 1.

    Returns:
      The arguments for each process.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = ["--coordinator", f"127.0.0.1:{port}", "--process-count", str(count)]
    return [[*shared, "--process-id", str(i)] for i in range(count)]


def supervised() -> bool:
    """Whether `supervise` started this process.

    Returns:
      True if the variable `BPEQ_SUPERVISED` is set.
    """
    return SUPERVISED in os.environ


def settle_in() -> None:
    """Prepares a supervised process: native output goes to the log, and it ends with its parent."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        how = {"buffering": 1, "encoding": stream.encoding, "errors": stream.errors}
        setattr(sys, name, os.fdopen(os.dup(stream.fileno()), "w", **how))
    log = os.open(os.environ[SUPERVISED], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def watch() -> None:
        os.read(0, 1)  # the parent never writes, so this returns when the parent ends
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def leave(code: int) -> int:
    """Ends a supervised process at once if it failed, so that it does not wait for the others.

    Args:
      code: the exit code of the process.

    Returns:
      `code`, if the process goes on.
    """
    if code and supervised():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def alone(error: Exception) -> int:
    """Reports that JAX has lost the other processes. The message goes to the log.

    Args:
      error: the error of JAX.

    Returns:
      The exit code for a process that lost the others.
    """
    os.write(2, f"{str(error).splitlines()[0]}\n".encode())
    return ALONE


def _start(argv: Sequence[str], log: Path, first: bool) -> subprocess.Popen:
    program = [sys.executable, "-c", "from bpeq.cli import script; script()", *argv]
    with log.open("ab") as file:
        return subprocess.Popen(
            program,
            env=os.environ | {SUPERVISED: str(log)},
            stdin=subprocess.PIPE,
            stdout=None if first else subprocess.DEVNULL,
            stderr=None if first else file,
            start_new_session=True,  # so a Ctrl-C reaches them once, from this process
        )


def _watch(children: Sequence[subprocess.Popen]) -> list[int | None]:
    """The exit codes when all processes have ended, or `GRACE` seconds after one has failed."""
    forwarded, until = False, float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        number = signals.asked_to_stop()
        if number is not None and not forwarded:
            forwarded = True
            for child in children:
                child.send_signal(number)
        if until == float("inf") and any(child.poll() for child in children):
            until = time.monotonic() + GRACE
        time.sleep(0.05)
    return [child.poll() for child in children]


def _blame(code: int | None) -> int:
    """Ranks how likely a process caused the failure: killed first, then failed by itself."""
    if code is None or code in (0, ALONE):
        return 0 if code in (None, 0) else 1
    return 3 if code == -signal.SIGKILL else 2


def _ending(code: int | None) -> str:
    if code is None:
        return "did not end"
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return "lost the others" if code == ALONE else f"ended with exit code {code}"


def _last_words(log: Path) -> str:
    """The last line of a log: a line of bpeq if there is one, without the lines of Gloo."""
    text = log.read_text(encoding="utf-8", errors="replace")
    for mark, meaning in _NATIVE.items():
        if mark in text:
            return f" ({meaning})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("[Gloo]")]
    ours = [line.removeprefix("bpeq: ") for line in lines if line.startswith("bpeq: ")]
    last = (ours or lines)[-1:]
    return f" ({last[0][:200]})" if last else ""
