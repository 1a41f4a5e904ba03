"""Reports: terminal tables, plots and one self-contained HTML page, from run folders only.

This import does not load matplotlib, rich or jinja2. The functions that need them load them.
"""

from __future__ import annotations

from pathlib import Path

from bpeq.report.comparison import write_comparison_report
from bpeq.report.comparison_tables import comparison_table
from bpeq.report.fidelity import fidelity_table, write_fidelity_report
from bpeq.report.run import run_table, write_run_report
from bpeq.report.sweep import sweep_table, write_sweep_report
from bpeq.report.tuning import tuning_table

__all__ = [
    "comparison_table",
    "fidelity_table",
    "run_table",
    "sweep_table",
    "tuning_table",
    "write_comparison_report",
    "write_fidelity_report",
    "write_report",
    "write_run_report",
    "write_sweep_report",
]


def write_report(folder: Path) -> Path:
    """Writes the report of a folder: of a comparison, a fidelity result, a sweep or a run.

    comparison.json marks a comparison, fidelity.json a fidelity result, and sweep.json a sweep.
    summary.json or metrics.jsonl marks a run.

    Args:
      folder: the folder with these files. The report is written into it.

    Returns:
      The path of report.html.

    Raises:
      ValueError: there is no such folder, or it holds none of these files.
      DataError: a file is truncated or corrupt. The message names the file, and the line of
        metrics.jsonl.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder")
    writers = {
        "comparison.json": write_comparison_report,
        "fidelity.json": write_fidelity_report,
        "sweep.json": write_sweep_report,
        "summary.json": write_run_report,
        "metrics.jsonl": write_run_report,
    }
    for name, write in writers.items():
        if (folder / name).exists():
            return write(folder)
    raise ValueError(f"{folder}: no run and no comparison: holds none of {', '.join(writers)}")
