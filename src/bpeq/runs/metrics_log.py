"""metrics.jsonl: rows are added where they belong, and read back as they were."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from bpeq.runs import run_folder
from bpeq.types import DataError

Values = dict[str, np.ndarray]
"""Metric -> `[seeds]`"""


class Journal:
    """metrics.jsonl: rows are added at a place that is known, and what stands behind it is cut off.

    So a row that a killed run began to write, or a resumed one writes again, is there once.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._sum = path, 0, hashlib.sha256()

    def append(self, row: Any) -> dict[str, Any]:
        """One more row, handed to the system at once; it is returned as it will be read back.

        Raises:
          DataError: it cannot be written.
        """
        line = json.dumps(run_folder.plain(row), allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                if file.tell() != self.size:
                    file.truncate(self.size)
                file.write(line)
        except OSError as error:
            said = error.strerror or error
            raise DataError(f"{self.path}: cannot write: {said}") from error
        self.size += len(line)
        self._sum.update(line)
        return json.loads(line)

    def mark(self) -> dict[str, Any]:
        """How much there is, and its checksum."""
        return {"bytes": self.size, "sha256": self._sum.hexdigest()}

    def sync(self) -> None:
        """All of it is on the disk."""
        if self.size:
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def go_to(self, mark: dict[str, Any]) -> bool:
        """Goes on from a mark, if what stands before it is what stood there."""
        try:
            content = self.path.read_bytes() if mark["bytes"] else b""
        except OSError:
            return False
        found = hashlib.sha256(content[: mark["bytes"]])
        if len(content) < mark["bytes"] or found.hexdigest() != mark["sha256"]:
            return False
        self.size, self._sum = mark["bytes"], found
        return True

    def rows(self, start: int) -> list[dict[str, Any]]:
        """Those from byte `start` on."""
        if self.size == start:
            return []
        return [json.loads(line) for line in self.path.read_bytes()[start : self.size].splitlines()]


def canonical(row: dict[str, Any], values: Values) -> dict[str, Any]:
    """A row that was read back: null is NaN, and the values have their dtypes again.

    JSON has no infinities: they are NaN too, in a loop that was resumed as in one that was not.
    """
    kept = {k: math.nan if v is None else v for k, v in row.items()}
    kept["values"] = {k: np.array(v, values[k].dtype) for k, v in row["values"].items()}
    return kept
