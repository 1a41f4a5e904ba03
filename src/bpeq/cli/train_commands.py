"""The commands that train: thin, they call the library and print what it returns."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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

if TYPE_CHECKING:
    from bpeq.experiment.runner import Interrupted


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
    """Train what a config says; leaves a run folder with metrics, parameters and a report."""
    from bpeq.cli import signals, supervisor
    from bpeq.cli.terminal import bar, console
    from bpeq.experiment import distributed, train
    from bpeq.experiment.resume import has_started, is_finished, reload_config
    from bpeq.report import run_table, write_run_report
    from bpeq.runs import manifest

    if resume and config.is_dir():
        extra = [] if seeds is None else [f"seeds={seeds}"]
        checked, folder = reload_config(config, [*(set_ or []), *extra]), out or config
    else:
        checked = _app.load(config, set_, seeds)
        folder = _app.folder(out, checked.name, resume)
    if coordinator is not None and not supervisor.supervised():
        _check_alone(processes)
    several = distributed.check_options(checked, processes, coordinator, process_id, process_count)
    ended = resume and has_started(checked, folder) and is_finished(folder)
    report = "report.html"
    if ended and (folder / report).exists() and manifest.has_manifest(folder, report):
        console.print(f"{folder} is finished; nothing was changed", soft_wrap=True, highlight=False)
        return 0
    signals.begin_saving()
    if several and not supervisor.supervised():
        places = [[]] if coordinator is not None else supervisor.local_places(processes or 1)
        return supervisor.supervise([*context.obj, "--out", str(folder)], places, folder)
    if coordinator is not None:
        distributed.join_processes(coordinator, process_id, process_count)
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
        raise _resumable(stopped, f"bpeq run {shlex.quote(str(folder))} --resume") from stopped
    if "metrics" in summary and distributed.is_main_process():
        console.print(run_table(summary))
        page = write_run_report(folder)
        manifest.add_report(folder, page)
        console.print(f"{page}", soft_wrap=True, highlight=False)
    return 0


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
    """Train a config under several rules and the null controls, and set them side by side."""
    from bpeq.cli import signals
    from bpeq.cli.terminal import bar, console
    from bpeq.experiment import compare, train
    from bpeq.report import comparison_table, tuning_table, write_comparison_report

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
        raise _resumable(stopped, again) from stopped
    console.print(comparison_table(result))
    if tune is not None:
        console.print(tuning_table(result))
    console.print(f"{write_comparison_report(folder)}", soft_wrap=True, highlight=False)
    compare.raise_diverged(result)


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
    """Set each rule's gradient, layer by layer, against the exact gradient of the same function."""
    from bpeq.cli.terminal import bar, console
    from bpeq.experiment import fidelity
    from bpeq.report import fidelity_table, write_fidelity_report

    checked = _app.load(config, set_, None)
    names = _app.names(rules) if rules is not None else [checked.rule.name]
    folder = _app.folder(out, f"{checked.name}-fidelity")
    with bar("measurements") as track:
        result = fidelity.measure_fidelity(checked, names, folder, trained, track("fidelity"))
    console.print(fidelity_table(result))
    console.print(f"{write_fidelity_report(folder)}", soft_wrap=True, highlight=False)


def _check_alone(processes: int | None) -> None:
    from bpeq.config.errors import ConfigError

    if processes is not None:  # as given by hand; those that we start have both
        remedy = "means processes of this machine alone; leave out --coordinator"
        raise ConfigError("--processes", "", processes, remedy)


def _check_trials(tune: int | None) -> None:
    from bpeq.config.errors import ConfigError

    if tune is not None and tune < 1:
        raise ConfigError("--tune", "", tune, "must be a whole number >= 1")


def _resumable(stopped: Interrupted, command: str) -> Interrupted:
    return type(stopped)(stopped.signal, f"{stopped}; go on with: {command}")
