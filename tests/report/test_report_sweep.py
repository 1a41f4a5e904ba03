"""The page of a sweep shows the figures of sweep.json, each in its column."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser
from pathlib import Path

from bpeq.report import write_report

RUNS = [
    {"run": "a", "settings": {"rule.beta": 0.1}, "state": "finished",
     "metrics": {"test_error": [0.02, 0.04], "validation_error": [0.03, 0.03]}},
    {"run": "b", "settings": {"rule.beta": 0.2}, "state": "finished",
     "metrics": {"test_error": [0.05, 0.05], "validation_error": [0.01, 0.03]}},
    {"run": "c", "settings": {"rule.beta": 0.4}, "state": "failed", "failed": "diverged"},
]  # fmt: skip


class Table(HTMLParser):
    """The rows of a page's tables, each a list of its cells' texts."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self._inside = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._inside = True

    def handle_endtag(self, tag: str) -> None:
        self._inside &= tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._inside:
            self.rows[-1][-1] = re.sub(r"\s+", " ", self.rows[-1][-1] + data).strip()


def test_each_figure_of_a_sweep_stands_in_its_column(tmp_path: Path) -> None:
    (tmp_path / "sweep.json").write_text(json.dumps({"name": "digits", "runs": RUNS}))
    head, *rows = Table(write_report(tmp_path)).rows
    assert head == ["run", "beta", "validation error, %", "test error, %", "state"]
    assert rows == [
        ["a", "0.1", "3.00 ± 0.00", "3.00 ± 1.41", "finished"],
        ["b", "0.2", "2.00 ± 1.41", "5.00 ± 0.00", "finished"],
        ["c", "0.4", "", "", "failed"],
    ]
