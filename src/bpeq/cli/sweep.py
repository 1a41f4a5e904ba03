"""`bpeq sweep`: runs a config over grids of settings."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpeq.cli import app as _app
from bpeq.cli.app import ConfigFile, Seeds, Set, app


@app.command()
def sweep(
    config: ConfigFile,
    grid: Annotated[
        list[str] | None,
        typer.Option("--grid", metavar="KEY=VALUE,...", help="values that a setting takes in turn"),
    ] = None,
    set_: Set = None,
    seeds: Seeds = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="the sweep's folder; runs/NAME-sweep if not given")
    ] = None,
    search: Annotated[
        int | None, typer.Option("--search", help="trials that optuna chooses, in place of all")
    ] = None,
) -> int:
    """Run a config over grids of settings. Repeat the command to resume, or to add a worker."""
    from bpeq.cli import signals
    from bpeq.cli.exit_codes import DONE, say
    from bpeq.cli.terminal import bar, console
    from bpeq.config.errors import ConfigError
    from bpeq.experiment import sweep, sweep_runs, train, tune
    from bpeq.report import sweep_table, write_report
    from bpeq.runs import run_folder

    # Read the config and the grid, and check every run before the first starts.
    checked = _app.load(config, set_, seeds)
    grids = sweep_runs.read_grids(grid or ())
    if not grids:
        remedy = "is missing; allowed: key=value,value such as rule.beta=0.1,0.2"
        raise ConfigError("--grid", remedy=remedy)
    if search is None:
        runs = sweep_runs.grid_runs(config, checked.overrides, grids)
        sweep_runs.check_runs(runs)
    else:
        metric = tune.check_search(checked, grids, search)
    # Create or join the folder. Every worker writes sweep.json at its start and at its end.
    folder = Path("runs") / f"{checked.name}-sweep" if out is None else out
    sweep.open_folder(folder)
    signals.begin_saving()

    def write_results(last: bool = False) -> dict:
        with sweep.one_writer(folder):
            rows = runs if search is None else tune.searched_runs(checked, folder)
            result = sweep.results(checked, rows, grids, folder)
            run_folder.write_json(folder / "sweep.json", result)
            if last:
                write_report(folder)
        return result

    # Run the grid, or search it.
    write_results()
    try:
        with bar("runs") as track:
            how = (track(f"{checked.name}, sweep"), signals.asked_to_stop)
            if search is None:
                sweep.run_all(runs, folder, *how)
            else:
                tune.search(checked, grids, search, folder, metric, *how)
    except train.Interrupted as stopped:
        write_results()
        said = f"{stopped}; the same command goes on"
        raise train.Interrupted(stopped.signal, said) from stopped
    # Show the results. A failed run sets the exit code.
    result = write_results(last=True)
    console.print(sweep_table(result))
    console.print(f"{folder / 'report.html'}", soft_wrap=True, highlight=False)
    failed = [row for row in result["runs"] if row["state"] == "failed"]
    if not failed:
        return DONE
    first = failed[0]
    said = f"{len(failed)} of {len(result['runs'])} runs failed; the first, {first['run']}: "
    return say(f"{folder}: {said}{first['failed']}", first["code"])
