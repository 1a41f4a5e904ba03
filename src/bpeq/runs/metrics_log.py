"""metrics.jsonl: a log of rows that can continue at a known byte."""

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
"""Metric -> `[seeds]`."""


class MetricsLog:
    """The file metrics.jsonl. A new row begins at a known byte; anything behind it is removed.

    So each row occurs once, even if a killed run wrote half of it or a resumed run writes it again.

    Args:
      path: the file. It need not exist.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size, self._checksum = path, 0, hashlib.sha256()

    def append(self, row: Any) -> dict[str, Any]:
        """Adds one row and passes it to the operating system.

        Args:
          row: the entries by name.

        Returns:
          The row as it is read back from JSON.

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
        """The present end of the log.

        Returns:
          `bytes`, the length, and `sha256`, the checksum of these bytes.
        """
        return {"bytes": self.size, "sha256": self._checksum.hexdigest()}

    def sync(self) -> None:
        """Waits until all rows are on the disk."""
        if self.size:
            with self.path.open("ab") as file:
                os.fsync(file.fileno())

    def go_to(self, position: dict[str, Any]) -> bool:
        """Sets the log back to an earlier end.

        Args:
          position: a result of `position`.

        Returns:
          False, without any change, if the bytes before this end have changed.
        """
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
        """Reads the rows from a byte on.

        Args:
          start: the byte.

        Returns:
          The rows.
        """
        if self.size == start:
            return []
        return [json.loads(line) for line in self.path.read_bytes()[start : self.size].splitlines()]


def as_read(row: dict[str, Any], values: Values) -> dict[str, Any]:
    """Restores the types of a row that was read back: null becomes NaN, values get their dtypes.

    JSON has no infinities, so they become NaN. This is the same in a resumed and an uninterrupted
    loop.

    Args:
      row: the row from JSON.
      values: the metrics whose dtypes the row gets.

    Returns:
      The row.
    """
    kept = {k: math.nan if v is None else v for k, v in row.items()}
    kept["values"] = {k: np.array(v, values[k].dtype) for k, v in row["values"].items()}
    return kept
