"""`bpeq run`: trains a config into a run folder."""

from __future__ import annotations

import shlex

import typer

from bpeq.cli import app as _app
from bpeq.cli.app import (
    ConfigFile,
    Coordinator,
    Out,
    ProcessCount,
    Processes,
    ProcessId,
    Resume,
    Seeds,
    Set,
    app,
)


@app.command()
def run(
    context: typer.Context,
    config: ConfigFile,
    set_: Set = None,
    out: Out = None,
    seeds: Seeds = None,
    resume: Resume = False,
    processes: Processes = None,
    coordinator: Coordinator = None,
    process_id: ProcessId = None,
    process_count: ProcessCount = None,
) -> int:
    """Train a config; write a run folder with metrics, parameters and a report."""
    from bpeq.cli import signals, supervisor
    from bpeq.cli.terminal import bar, console
    from bpeq.experiment import distributed, train
    from bpeq.experiment.resume import has_started, is_finished, reload_config
    from bpeq.report import run_table, write_report
    from bpeq.runs import manifest

    # Load the config, or that of the run to resume, and choose the folder.
    if resume and config.is_dir():
        extra = [] if seeds is None else [f"seeds={seeds}"]
        checked, folder = reload_config(config, [*(set_ or []), *extra]), out or config
    else:
        checked = _app.load(config, set_, seeds)
        folder = _app.folder(out, checked.name, resume)
    # Check the options for several processes. A finished run needs nothing more.
    if coordinator is not None and not supervisor.supervised():
        _check_alone(processes)
    several = distributed.check_options(checked, processes, coordinator, process_id, process_count)
    ended = resume and has_started(checked, folder) and is_finished(folder)
    report = "report.html"
    if ended and (folder / report).exists() and manifest.has_manifest(folder, report):
        console.print(f"{folder} is finished; nothing was changed", soft_wrap=True, highlight=False)
        return 0
    # Start several processes, or join them.
    signals.begin_saving()
    if several and not supervisor.supervised():
        places = [[]] if coordinator is not None else supervisor.local_places(processes or 1)
        return supervisor.supervise([*context.obj, "--out", str(folder)], places, folder)
    if coordinator is not None:
        distributed.join_processes(coordinator, process_id, process_count)
    # Train in this process.
    study = checked.experiment is not None
    try:
        with (
            bar("steps" if study else "epochs") as track,
            distributed.run_folder_of(folder) as place,
        ):
            name = checked.name if study else checked.rule.name
            progress = track(name) if distributed.is_main_process() else None
            stop = signals.asked_to_stop
            summary = train.run(checked, place, progress, stop, resume=resume)
    except train.Interrupted as stopped:
        raise _app.add_command(
            stopped, f"bpeq run {shlex.quote(str(folder))} --resume"
        ) from stopped
    # The main process writes the report.
    if "metrics" in summary and distributed.is_main_process():
        console.print(run_table(summary))
        page = write_report(folder)
        manifest.add_report(folder, page)
        console.print(f"{page}", soft_wrap=True, highlight=False)
    return 0


def _check_alone(processes: int | None) -> None:
    """Raises ConfigError if both `--processes` and `--coordinator` are given."""
    from bpeq.config.errors import ConfigError

    if processes is not None:  # a user must not give both; processes that bpeq starts have both
        remedy = "means processes of this machine alone; leave out --coordinator"
        raise ConfigError("--processes", "", processes, remedy)
