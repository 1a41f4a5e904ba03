"""The commands that train a config: `bpeq run`, `compare` and `sweep`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer

from bpeq.cli import options, signals, supervisor


@options.app.command()
def run(
    context: typer.Context,
    config: options.ConfigFile,
    set_: options.Set = None,
    out: options.Out = None,
    seeds: options.Seeds = None,
    resume: options.Resume = False,
    processes: Annotated[
        int | None, typer.Option(help="processes on this machine that share each batch")
    ] = None,
    coordinator: Annotated[
        str | None, typer.Option(help="HOST:PORT of process 0, or auto in a cluster")
    ] = None,
    process_id: Annotated[int | None, typer.Option(help="the number of this process")] = None,
    process_count: Annotated[int | None, typer.Option(help="the number of processes")] = None,
) -> int:
    """Train a config; write a run folder with metrics, parameters and a report."""
    from bpeq.cli.terminal import bar, console, print_text
    from bpeq.config.errors import ConfigError
    from bpeq.experiment import distributed, train
    from bpeq.experiment.saved_run import has_started, is_finished
    from bpeq.report import run_table, write_report
    from bpeq.runs import manifest
    from bpeq.runs.resume import resume_command

    # Load the config, or that of the run to resume, and choose the folder.
    checked = options.load(config, set_, seeds, resume)
    same = config if resume and config.is_dir() else None
    folder = out or same or options.result_folder(None, checked.name, resume)
    # Check the options for several processes. A finished run needs nothing more.
    if None not in (coordinator, processes) and not supervisor.supervised():
        remedy = "means processes of this machine alone; leave out --coordinator"
        raise ConfigError("--processes", "", processes, remedy)
    several = distributed.check_options(checked, processes, coordinator, process_id, process_count)
    if resume and has_started(checked, folder) and is_finished(folder, "report.html"):
        print_text(f"{folder} is finished; nothing was changed")
        return 0
    # Start several processes, or join them. The command that continues the run needs their options.
    shared: dict[str, object] = {"--processes": processes}
    if processes is None:
        shared = {
            "--coordinator": coordinator,
            "--process-count": process_count,
            "--process-id": process_id,
        }
    again = resume_command(folder, shared)
    signals.begin_saving()
    if several and not supervisor.supervised():
        places = [[]] if coordinator is not None else supervisor.local_places(processes or 1)
        argv = [*context.obj, "--out", str(folder)]
        return supervisor.supervise(argv, places, folder, again)
    if coordinator is not None:
        distributed.join_processes(coordinator, process_id, process_count)
    # Train in this process.
    study = checked.experiment is not None
    unit, name = ("steps", checked.name) if study else ("epochs", checked.rule.name)
    with bar(unit, f"go on with: {again}") as track, distributed.run_folder_of(folder) as place:
        progress = track(name) if distributed.is_main_process() else None
        summary = train.run(checked, place, progress, signals.asked_to_stop, resume=resume)
    # The main process writes the report.
    if "metrics" in summary and distributed.is_main_process():
        console.print(run_table(summary))
        page = write_report(folder)
        manifest.add_report(folder, page)
        print_text(page)
    return 0


@options.app.command()
def compare(
    config: options.ConfigFile,
    rules: Annotated[str, typer.Option(help="names, separated by commas")],
    set_: options.Set = None,
    out: options.Out = None,
    seeds: options.Seeds = None,
    tune: Annotated[
        int | None, typer.Option(help="tuning trials of each rule, ranked by validation error")
    ] = None,
    resume: options.Resume = False,
) -> None:
    """Train a config under several rules and the null controls, and compare the results."""
    from bpeq.cli.terminal import bar, console, print_text
    from bpeq.experiment import compare
    from bpeq.report import comparison_table, pairs_table, tuning_table, write_report

    checked, names = options.load(config, set_, seeds), options.rule_names(rules)
    folder = options.result_folder(out, f"{checked.name}-compare", resume)
    signals.begin_saving()
    advice = f"go on with: the same command, --out {shlex.quote(str(folder))} --resume"
    with bar("epochs", advice) as track:
        how = (track, signals.asked_to_stop, tune, resume)
        result = compare.run_comparison(checked, names, folder, *how)
    console.print(comparison_table(result))
    if result["paired"]:
        console.print(pairs_table(result))
    if tune is not None:
        console.print(tuning_table(result))
    print_text(write_report(folder))
    compare.raise_diverged(result)


@options.app.command()
def sweep(
    config: options.ConfigFile,
    grid: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE,...", help="the values of a setting to run"),
    ] = None,
    set_: options.Set = None,
    seeds: options.Seeds = None,
    out: options.SweepOut = None,
    search: Annotated[
        int | None, typer.Option(help="the number of trials that optuna chooses from the grid")
    ] = None,
) -> int:
    """Run a config over grids of settings. Repeat the command to resume, or to add a worker."""
    from bpeq.cli.terminal import bar, console, print_text
    from bpeq.experiment import sweep, sweep_grid, train, tune
    from bpeq.report import sweep_table, write_report
    from bpeq.runs import run_folder

    # Read the config and the grid, and check every run before the first starts.
    checked, grids = options.load(config, set_, seeds), sweep_grid.read_grids(grid or ())
    if search is None:
        runs = sweep_grid.grid_runs(checked, grids)
        sweep_grid.check_runs(runs)
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
        with bar("runs", "the same command goes on") as track:
            how = (track(f"{checked.name}, sweep"), signals.asked_to_stop)
            if search is None:
                sweep.run_all(runs, folder, *how)
            else:
                tune.search(checked, grids, search, folder, metric, *how)
    except train.Interrupted:
        write_results()
        raise
    # Show the results. A failed run sets the exit code.
    result = write_results(last=True)
    console.print(sweep_table(result))
    print_text(folder / "report.html")
    failed = [row for row in result["runs"] if row["state"] == "failed"]
    if not failed:
        return 0
    words = f"{len(failed)} of {len(result['runs'])} runs failed; the first, {failed[0]['run']}: "
    return options.say(f"{folder}: {words}{failed[0]['failed']}", failed[0]["code"])
