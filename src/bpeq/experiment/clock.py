"""Seconds spent, by name."""

from __future__ import annotations

import time


class Clock:
    """Adds up seconds by name, those before an interruption too. born: when the whole began."""

    def __init__(self) -> None:
        self.spent = {"compile": 0.0, "train": 0.0, "evaluate": 0.0}
        self.born = time.perf_counter()
        self._name, self._before = "", dict[str, float]()

    def __call__(self, name: str) -> Clock:
        self._name = name
        return self

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent = time.perf_counter() - self._began
        self.spent[self._name] = self.spent.get(self._name, 0.0) + spent

    @property
    def elapsed(self) -> float:
        """Seconds since then."""
        return time.perf_counter() - self.born

    def all(self) -> dict[str, float]:
        """What was spent, and the `total`."""
        return {**self.spent, "total": self.elapsed + self._before.get("total", 0.0)}

    def go_on(self, before: dict[str, float]) -> None:
        """Adds what `all` said in the process that is gone on from; the last such word counts."""
        for name in before.keys() - {"total"}:
            more = before[name] - self._before.get(name, 0.0)
            self.spent[name] = self.spent.get(name, 0.0) + more
        self._before = dict(before)
