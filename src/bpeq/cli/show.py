"""`bpeq show` and `bpeq report`: list parts, print configs, and rewrite reports."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpeq.cli.app import (
    Set,
    app,
)


@app.command()
def report(folders: Annotated[list[Path], typer.Argument(metavar="DIR...")]) -> None:
    """Write the reports of finished runs or comparisons again."""
    from bpeq.cli.terminal import console
    from bpeq.config.errors import ConfigError
    from bpeq.report import write_report
    from bpeq.runs import manifest

    for folder in folders:
        try:
            path = write_report(folder)
            manifest.add_report(folder, path)
        except ValueError as error:
            raise error if type(error) is not ValueError else ConfigError(str(error)) from error
        console.print(f"{path}", soft_wrap=True, highlight=False)


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="rules, layers, data, … or rule, layer, …, config")],
    name: Annotated[str, typer.Argument(help="which one, or the config's file")] = "",
    set_: Set = None,
) -> None:
    """List rules, layers and other parts, or show one part's settings, or a resolved config."""
    from bpeq.cli.terminal import console
    from bpeq.config.describe import describe

    console.print(describe(what, name, set_ or ()), markup=False, highlight=False, soft_wrap=True)
