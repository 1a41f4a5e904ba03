"""Switches for programs that bpeq traces in order to read or count them, not to run them fast."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar


class Switch:
    """A switch that is on inside `with switch.on():` and off elsewhere; `switch()` reads it.

    Code that is traced inside the block sees the switch on. Each thread and task has its own state.

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
        """A context in which the switch is on."""
        token = self._state.set(True)
        try:
            yield
        finally:
            self._state.reset(token)

    def __call__(self) -> bool:
        """Whether the switch is on."""
        return self._state.get()


disable_fast_paths = Switch("disable_fast_paths")
"""Programs follow the formulas, without shortcuts that save time. Counts of operations use it."""

carries_all = Switch("carries_all")
"""Loops carry whole states, so that an audit finds each state in the program by its name."""
