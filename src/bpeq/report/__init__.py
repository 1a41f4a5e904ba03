"""Reports: terminal tables, plots and one self-contained HTML page, from run folders only.

This import does not load matplotlib, rich or jinja2. The functions that need them load them.
"""

from __future__ import annotations

from pathlib import Path

from bpeq.core.paths import user_path
from bpeq.report import page
from bpeq.report.comparison import comparison_page, tuning_table
from bpeq.report.comparison_tables import comparison_table, pairs_table
from bpeq.report.fidelity import fidelity_page, fidelity_table
from bpeq.report.run import run_page, run_table
from bpeq.report.sweep import sweep_page, sweep_table

__all__ = [
    "comparison_table",
    "fidelity_table",
    "pairs_table",
    "run_table",
    "sweep_table",
    "tuning_table",
    "write_report",
]

_PAGES = {
    "comparison.json": comparison_page,
    "fidelity.json": fidelity_page,
    "sweep.json": sweep_page,
    "summary.json": run_page,
    "metrics.jsonl": run_page,
}
"""The file that marks a folder, and the page of such a folder."""


def write_report(folder: Path) -> Path:
    """Writes the report of a folder: of a comparison, a fidelity result, a sweep or a run.

    comparison.json marks a comparison, fidelity.json a fidelity result, and sweep.json a sweep.
    summary.json or metrics.jsonl marks a run. The pictures and tables of the report stand beside
    report.html: see the function of each page.

    Args:
      folder: the folder with these files. The report is written into it.

    Returns:
      The path of report.html.

    Raises:
      ValueError: there is no such folder, or it holds none of these files.
      DataError: a file is truncated or corrupt. The message names the file, and the line of
        metrics.jsonl.
    """
    folder = user_path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    for name, page_of in _PAGES.items():
        if (folder / name).exists():
            return page.write(page_of(folder), folder / "report.html")
    raise ValueError(f"{folder}: no run and no comparison: holds none of {', '.join(_PAGES)}")
