"""The command that continues a run."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def resume_command(folder: Path, options: Mapping[str, Any] | None = None) -> str:
    """The command that continues a run.

    Args:
      folder: the run folder.
      options: options of the command and their values, of which None is left out; None: the
        processes that began the run, by its environment.json.

    Returns:
      The command line.

    Example:
      >>> resume_command(Path("my runs"), {"--processes": 2})
      "bpeq run 'my runs' --resume --processes 2"
    """
    if options is None:
        try:
            environment = json.loads((folder / "environment.json").read_bytes())
            options = {"--processes": environment.get("processes")}
        except (OSError, ValueError, AttributeError):  # the run has not begun, or it is damaged
            options = {}
    chosen = (f" {name} {value}" for name, value in options.items() if value is not None)
    return f"bpeq run {shlex.quote(str(folder))} --resume{''.join(chosen)}"
