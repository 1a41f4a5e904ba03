"""What a program is traced for, where that is something else than to be run fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Switch:
    """Off, but for what is traced in `with switch.on():`; `switch()` says which.

    Example:
      >>> with plain.on():
      ...     inside = plain()
      >>> inside, plain()
      (True, False)
    """

    def __init__(self, name: str) -> None:
        self._state = ContextVar(name, default=False)

    @contextmanager
    def on(self) -> Iterator[None]:
        token = self._state.set(True)
        try:
            yield
        finally:
            self._state.reset(token)

    def __call__(self) -> bool:
        return self._state.get()


plain = Switch("plain")
"""As the formulas say, without short cuts that only save time: for counts."""

carries_all = Switch("carries_all")
"""Loops carry whole states, so that a program can be read by their names: for audits."""
