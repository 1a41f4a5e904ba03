"""What Ctrl-C and SIGTERM do: end at once while nothing is under way, later stop after saving."""

from __future__ import annotations

import os
import signal
from typing import Any

_seen: list[int] = []
_saving = False


def watch() -> None:
    """Takes over SIGINT and SIGTERM; called before jax is imported, or an early one gets lost."""
    signal.signal(signal.SIGINT, _handle)
    signal.signal(signal.SIGTERM, _handle)


def begin_saving() -> None:
    """From here on the first signal lets the run stop by itself and save; the second ends it."""
    global _saving
    _saving = True


def asked_to_stop() -> int | None:
    """The signal that came in, if one did."""
    return _seen[0] if _seen else None


def _handle(number: int, frame: Any) -> None:
    if not _saving or _seen:
        os.write(2, b"bpeq: interrupted; nothing was saved\n" if not _saving else b"bpeq: ended\n")
        os._exit(128 + number)
    _seen.append(number)
    os.write(2, b"bpeq: stopping after this stretch and saving; once more ends at once\n")
