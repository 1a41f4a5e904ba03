"""`bpeq compare`: trains a config under several rules."""

from __future__ import annotations

import shlex
from typing import Annotated

import typer

from bpeq.cli import app as _app
from bpeq.cli.app import (
    ConfigFile,
    Out,
    Resume,
    Seeds,
    Set,
    app,
)


@app.command()
def compare(
    config: ConfigFile,
    rules: Annotated[str, typer.Option("--rules", help="names, separated by commas")],
    set_: Set = None,
    out: Out = None,
    seeds: Seeds = None,
    tune: Annotated[
        int | None, typer.Option("--tune", help="trials a rule, chosen by validation error")
    ] = None,
    resume: Resume = False,
) -> None:
    """Train a config under several rules and the null controls, and compare the results."""
    from bpeq.cli import signals
    from bpeq.cli.terminal import bar, console
    from bpeq.experiment import compare, train
    from bpeq.report import comparison_table, tuning_table, write_report

    checked = _app.load(config, set_, seeds)
    names = _app.names(rules)
    _check_trials(tune)
    folder = _app.folder(out, f"{checked.name}-compare", resume)
    signals.begin_saving()
    try:
        with bar() as track:
            stop = signals.asked_to_stop
            result = compare.run_comparison(checked, names, folder, track, stop, tune, resume)
    except train.Interrupted as stopped:
        again = f"the same command, --out {shlex.quote(str(folder))} --resume"
        raise _app.add_command(stopped, again) from stopped
    console.print(comparison_table(result))
    if tune is not None:
        console.print(tuning_table(result))
    console.print(f"{write_report(folder)}", soft_wrap=True, highlight=False)
    compare.raise_diverged(result)


def _check_trials(tune: int | None) -> None:
    from bpeq.config.errors import ConfigError

    if tune is not None and tune < 1:
        raise ConfigError("--tune", "", tune, "must be a whole number >= 1")
