"""Seconds spent, by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class Clock:
    """Adds up seconds by name, including those before an interruption.

    started: when the whole began, by `time.perf_counter`. spent: the seconds by name.
    """

    def __init__(self) -> None:
        self.spent = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.started = time.perf_counter()
        self._earlier = dict[str, float]()

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Adds the time that a block takes to the seconds of a name."""
        before = time.perf_counter()
        try:
            yield
        finally:
            self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - before

    @property
    def elapsed(self) -> float:
        """Seconds since the start of this process's part."""
        return time.perf_counter() - self.started

    def seconds(self) -> dict[str, float]:
        """What was spent by name, and the `total`."""
        return {**self.spent, "total": self.elapsed + self._earlier.get("total", 0.0)}

    def add_earlier(self, earlier: dict[str, float]) -> None:
        """Adds the `seconds` of the process that was interrupted.

        The next loop of a run names all earlier loops' seconds again. So the last call counts.
        """
        for name in earlier.keys() - {"total"}:
            more = earlier[name] - self._earlier.get(name, 0.0)
            self.spent[name] = self.spent.get(name, 0.0) + more
        self._earlier = dict(earlier)
