"""metrics.jsonl: a log of rows that continues at a known place, and rows as they are read back."""

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


class MetricsLog:
    """metrics.jsonl. Rows are added at a known byte, and whatever stands behind it is cut off.

    So a row is there once, also if a killed run wrote half of it or a resumed run writes it again.

    Args:
      path: the file. It need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._checksum = path, 0, hashlib.sha256()

    def append(self, row: Any) -> dict[str, Any]:
        """Adds one row, hands it to the operating system, and returns it as it is read back.

        Raises:
          DataError: the file cannot be written.
        """
        line = json.dumps(run_folder.to_json(row), allow_nan=False).encode() + b"\n"
        try:
            with self.path.open("ab") as file:
                if file.tell() != self.size:
                    file.truncate(self.size)
                file.write(line)
        except OSError as error:
            raise DataError(f"{self.path}: cannot write: {error.strerror or error}") from error
        self.size += len(line)
        self._checksum.update(line)
        return json.loads(line)

    def position(self) -> dict[str, Any]:
        """How many bytes there are, and their checksum."""
        return {"bytes": self.size, "sha256": self._checksum.hexdigest()}

    def sync(self) -> None:
        """Waits until all rows are on the disk."""
        if self.size:
            with self.path.open("ab") as file:
                os.fsync(file.fileno())

    def go_to(self, position: dict[str, Any]) -> bool:
        """Continues at a position. False, and no change, if the bytes before it have changed."""
        size = position["bytes"]
        try:
            content = self.path.read_bytes()[:size] if size else b""
        except OSError:
            return False
        checksum = hashlib.sha256(content)
        same = (len(content), checksum.hexdigest()) == (size, position["sha256"])
        if same:
            self.size, self._checksum = size, checksum
        return same

    def rows(self, start: int) -> list[dict[str, Any]]:
        """The rows from byte `start` on."""
        if self.size == start:
            return []
        return [json.loads(line) for line in self.path.read_bytes()[start : self.size].splitlines()]


def as_read(row: dict[str, Any], values: Values) -> dict[str, Any]:
    """A row that was read back, with NaN for null and with the dtypes of `values`.

    JSON has no infinities. They become NaN, in a loop that was resumed as in one that was not.
    """
    kept = {k: math.nan if v is None else v for k, v in row.items()}
    kept["values"] = {k: np.array(v, values[k].dtype) for k, v in row["values"].items()}
    return kept
