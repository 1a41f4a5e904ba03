"""Ctrl-C and SIGTERM end the process at once; once training starts, they save first."""

from __future__ import annotations

import os
import signal
from typing import Any

_seen: list[int] = []
_saving = False


def watch() -> None:
    """Installs handlers for SIGINT and SIGTERM. Call it before JAX is imported."""
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def begin_saving() -> None:
    """After this call the first signal lets the run save and stop; a second one ends it at once."""
    global _saving
    _saving = True


def ignore() -> None:
    """Ignores SIGINT and SIGTERM from now on. Call it when nothing is left but to exit.

    While Python shuts down it removes handlers, and a signal would then replace the exit code. It
    keeps signals ignored.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


def asked_to_stop() -> int | None:
    """The signal that asks the run to stop.

    Returns:
      The number of the signal; None if none came.
    """
    return _seen[0] if _seen else None


def _handle(number: int, frame: Any) -> None:
    if not _saving or _seen:
        os.write(2, b"bpeq: interrupted; nothing was saved\n" if not _saving else b"bpeq: ended\n")
        os._exit(128 + number)
    _seen.append(number)
    os.write(2, b"bpeq: stopping after this stretch and saving; once more ends at once\n")
