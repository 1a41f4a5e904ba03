"""Switches for programs that are traced to be read or counted, not to be run fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Switch:
    """A switch that is on inside of `with switch.on():` and off elsewhere; `switch()` reads it.

    What is traced inside of the block sees the switch on. Threads and tasks have their own.

    Args:
      name: the name of the switch, for debugging.

    Example:
      >>> with disable_fast_paths.on():
      ...     inside = disable_fast_paths()
      >>> inside, disable_fast_paths()
      (True, False)
    """

    def __init__(self, name: str) -> None:
        self._state = ContextVar(name, default=False)

    @contextmanager
    def on(self) -> Iterator[None]:
        """The block in which the switch is on."""
        token = self._state.set(True)
        try:
            yield
        finally:
            self._state.reset(token)

    def __call__(self) -> bool:
        return self._state.get()


disable_fast_paths = Switch("disable_fast_paths")
"""Programs follow the formulas, without the ways around them that save time. For counts."""

carries_all = Switch("carries_all")
"""Loops carry whole states, so that a program can be read by the states' names. For audits."""
