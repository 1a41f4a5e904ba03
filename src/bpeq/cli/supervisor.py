"""Several processes of one run: started, watched, and ended together; what happened is one line.

A process whose peer is lost hangs in a collective or is aborted from C++: it cannot say so itself.
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
"""Set in the processes that `supervise` starts: the file for what native code has to say."""
GRACE = 5.0
"""Seconds for the others to end by themselves, as they do where all refuse the same thing."""
LOST, SAID, ALONE = 3, (2, 3, 4, 130, 143), 75
"""Exit codes: of a run that lost a process; after a line of its own; of one whose peer is lost."""

_NATIVE = {
    "Failed to add port to server": "the coordinator's port is taken",
    "CoordinationService/RegisterTask": "the others did not arrive in time",
    "the JAX distributed service detected fatal errors": "it lost the others",
}
"""What JAX's C++ says as it aborts a process, and what that means."""


def supervise(argv: Sequence[str], places: Sequence[Sequence[str]], folder: Path) -> int:
    """Runs `bpeq ARGV PLACE` for every place, and ends all where one ends badly.

    The first one has the terminal. A signal is passed on, for them to save and stop.

    Returns:
      The exit code, after one line on stderr where a process was lost.
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
        said = f"{which} {_ending(codes[who])}{words}"
    print(f"bpeq: {said}; what was saved is in {folder}", file=sys.stderr)
    return 1 if codes[who] == 1 else LOST


def local_places(count: int) -> list[list[str]]:
    """The place of each of `count` processes on this machine, around a port that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = ["--coordinator", f"127.0.0.1:{port}", "--process-count", str(count)]
    return [[*shared, "--process-id", str(i)] for i in range(count)]


def supervised() -> bool:
    return SUPERVISED in os.environ


def settle_in() -> None:
    """In a supervised process: what native code prints goes to the log; it ends with its parent."""
    for name in ("stdout", "stderr"):
        own = os.dup(getattr(sys, name).fileno())
        setattr(sys, name, os.fdopen(own, "w", buffering=1, encoding="utf-8"))
    log = os.open(os.environ[SUPERVISED], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)

    def watch() -> None:
        os.read(0, 1)  # nothing is ever written: it returns when the parent is gone
        os._exit(128 + signal.SIGTERM)

    threading.Thread(target=watch, daemon=True).start()


def leave(code: int) -> int:
    """Ends a supervised process that failed at once: else it would wait for its peers to agree."""
    if code and supervised():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return code


def alone(error: Exception) -> int:
    """The exit code of a process that JAX says has lost its peers; its words go to the log."""
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
            start_new_session=True,  # a Ctrl-C reaches them through us alone, once
        )


def _watch(children: Sequence[subprocess.Popen]) -> list[int | None]:
    """The exit codes when all have ended, or a while after one has ended badly."""
    told, until = False, float("inf")
    while any(child.poll() is None for child in children) and time.monotonic() < until:
        number = signals.asked_to_stop()
        if number is not None and not told:
            told = True
            for child in children:
                child.send_signal(number)
        if until == float("inf") and any(child.poll() for child in children):
            until = time.monotonic() + GRACE
        time.sleep(0.05)
    return [child.poll() for child in children]


def _blame(code: int | None) -> int:
    """How likely a process is what the others failed of: ended from outside, or with a word."""
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
    """What it said last, by preference in a line of ours; the network layer's greetings aside."""
    text = log.read_text(errors="replace")
    for mark, meaning in _NATIVE.items():
        if mark in text:
            return f" ({meaning})"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("[Gloo]")]
    ours = [line.removeprefix("bpeq: ") for line in lines if line.startswith("bpeq: ")]
    said = (ours or lines)[-1:]
    return f" ({said[0][:200]})" if said else ""
