"""`bpeq fidelity`: compares each rule's gradient with the exact gradient."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpeq.cli import app as _app
from bpeq.cli.app import (
    ConfigFile,
    Out,
    Set,
    app,
)


@app.command()
def fidelity(
    config: ConfigFile,
    rules: Annotated[
        str | None, typer.Option("--rules", help="names, separated by commas; the config's own")
    ] = None,
    trained: Annotated[
        Path | None, typer.Option("--run", help="a run folder, for its weights; initial if absent")
    ] = None,
    set_: Set = None,
    out: Out = None,
) -> None:
    """Compare each rule's gradient, layer by layer, with the exact one of the same function."""
    from bpeq.cli.terminal import bar, console
    from bpeq.experiment import fidelity
    from bpeq.report import fidelity_table, write_report

    checked = _app.load(config, set_, None)
    names = _app.names(rules) if rules is not None else [checked.rule.name]
    folder = _app.folder(out, f"{checked.name}-fidelity")
    with bar("measurements") as track:
        result = fidelity.measure_fidelity(checked, names, folder, trained, track("fidelity"))
    console.print(fidelity_table(result))
    console.print(f"{write_report(folder)}", soft_wrap=True, highlight=False)
