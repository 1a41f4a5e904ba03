"""Adds up the seconds that a run spends, by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up seconds by name. They include the seconds before an interruption.

    `started` is the start of the run, by `time.perf_counter`. `spent` holds the seconds by name.
    """

    def __init__(self) -> None:
        self.spent = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.started = time.perf_counter()
        self._earlier = dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time of a block to a name.

        Args:
          name: the name, such as "compile"; a new name starts at 0.
        """
        before = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - before

    @property
    def elapsed(self) -> float:
        """Seconds since this process started its part of the run."""
        return time.perf_counter() - self.started

    def seconds(self) -> dict[str, float]:
        """The seconds of the whole run.

        Returns:
          Seconds by name, and `total`.
        """
        return {**self.spent, "total": self.elapsed + self._earlier.get("total", 0.0)}

    def add_earlier(self, earlier: dict[str, float]) -> None:
        """Adds the seconds of the interrupted process.

        Every loop of a resumed run reports the seconds of all earlier loops again. So each call
        replaces the values of the call before.

        Args:
          earlier: what `seconds` returned in the interrupted process.
        """
        for name in earlier.keys() - {"total"}:
            more = earlier[name] - self._earlier.get(name, 0.0)
            self.spent[name] = self.spent.get(name, 0.0) + more
        self._earlier = dict(earlier)
