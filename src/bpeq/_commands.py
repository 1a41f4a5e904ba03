"""The commands of the command line: thin, they call the library and print what it returns."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from bpeq.config import Config
    from bpeq.looping import Interrupted

app = typer.Typer(
    help="Train networks by backpropagation, equilibrium propagation and their kin, from configs.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="a TOML config")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="override a setting, such as rule.beta=0.1"),
]
Out = Annotated[Path | None, typer.Option("--out", help="the run folder; runs/NAME if not given")]
Resume = Annotated[
    bool, typer.Option("--resume", help="go on with what --out holds; of a run CONFIG may be it")
]
Seeds = Annotated[int | None, typer.Option("--seeds", help="initialisations trained side by side")]
Processes = Annotated[
    int | None, typer.Option("--processes", help="processes on this machine that share each batch")
]
Coordinator = Annotated[
    str | None, typer.Option("--coordinator", help="HOST:PORT of process 0, or auto: a cluster's")
]
ProcessId = Annotated[int | None, typer.Option("--process-id", help="which process this is")]
ProcessCount = Annotated[int | None, typer.Option("--process-count", help="of how many")]


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
    from bpeq import _launch, _signals, cluster, experiment, resuming, sealing
    from bpeq._terminal import bar, console
    from bpeq.report import run_table, write_run_report

    if resume and config.is_dir():
        extra = [] if seeds is None else [f"seeds={seeds}"]
        checked, folder = resuming.reload(config, [*(set_ or []), *extra]), out or config
    else:
        checked = _load(config, set_, seeds)
        folder = _folder(out, checked.name, resume)
    several = cluster.check(checked, processes, coordinator, process_id, process_count)
    ended = resume and resuming.begun(checked, folder) and resuming.finished(folder)
    if ended and (folder / "report.html").exists():
        console.print(f"{folder} is finished; nothing was changed", soft_wrap=True, highlight=False)
        return 0
    _signals.begin_saving()
    if several and not _launch.supervised():
        places = [[]] if coordinator is not None else _launch.local_places(processes or 1)
        return _launch.supervise([*context.obj, "--out", str(folder)], places, folder)
    if coordinator is not None:
        cluster.join(coordinator, process_id, process_count)
    study = "experiment" in checked.tree
    try:
        with bar("steps" if study else "epochs") as track, cluster.workplace(folder) as place:
            name = checked.name if study else checked.tree["rule"]["name"]
            progress = track(name) if cluster.first() else None
            stop = _signals.asked_to_stop
            summary = experiment.run(checked, place, progress, stop, resume=resume)
    except experiment.Interrupted as stopped:
        raise _resumable(stopped, f"bpeq run {shlex.quote(str(folder))} --resume") from stopped
    if "metrics" in summary and cluster.first():
        console.print(run_table(summary))
        page = write_run_report(folder)
        sealing.seal(folder, changed=[page])
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
    from bpeq import _signals, comparison, experiment
    from bpeq._terminal import bar, console
    from bpeq.report import comparison_table, tuning_table, write_comparison_report

    checked = _load(config, set_, seeds)
    names = _names(rules)
    _check_trials(tune)
    folder = _folder(out, f"{checked.name}-compare", resume)
    _signals.begin_saving()
    try:
        with bar() as track:
            stop = _signals.asked_to_stop
            result = comparison.compare(checked, names, folder, track, stop, tune, resume)
    except experiment.Interrupted as stopped:
        again = f"the same command, --out {shlex.quote(str(folder))} --resume"
        raise _resumable(stopped, again) from stopped
    console.print(comparison_table(result))
    if tune is not None:
        console.print(tuning_table(result))
    console.print(f"{write_comparison_report(folder)}", soft_wrap=True, highlight=False)
    comparison.raise_diverged(result)


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
    from bpeq import microscope
    from bpeq._terminal import bar, console
    from bpeq.report import fidelity_table, write_fidelity_report

    checked = _load(config, set_, None)
    names = _names(rules) if rules is not None else [checked.tree["rule"]["name"]]
    folder = _folder(out, f"{checked.name}-fidelity")
    with bar("measurements") as track:
        result = microscope.measure(checked, names, folder, trained, track("fidelity"))
    console.print(fidelity_table(result))
    console.print(f"{write_fidelity_report(folder)}", soft_wrap=True, highlight=False)


@app.command()
def check(
    config: ConfigFile,
    set_: Set = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="also check what EP demands of the system's energy")
    ] = False,
) -> int:
    """Check every layer's hand-written backward, and the energy's, against autodiff."""
    from bpeq._terminal import check_table, console, contract_table
    from bpeq.checking import check_problem, check_system
    from bpeq.cli import DONE, NUMERICAL, say

    checked = _load(config, set_, None)
    contract = check_system(checked) if energy else None  # before anything is printed
    rows = check_problem(checked)
    console.print(check_table(rows))
    if contract is not None:
        console.print(contract_table(contract))
    broken = [f.name for f in contract or () if f.passed is False]
    wrong = [row.name for row in rows if not row.passed]
    said = (
        [f"{len(wrong)} of {len(rows)} rows are past tolerance: {', '.join(wrong)}"]
        if wrong
        else []
    )
    if broken:
        said.append(f"the energy breaks its contract: {', '.join(broken)}")
    return say(f"{config}: {'; '.join(said)}", NUMERICAL) if said else DONE


@app.command()
def audit(
    config: ConfigFile,
    rules: Annotated[
        str | None, typer.Option("--rules", help="names, separated by commas; all if not given")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="tables for a document")] = False,
    set_: Set = None,
) -> None:
    """Tell what each weight's update takes: states and phases, transposed weights, error passes."""
    from bpeq import locality
    from bpeq._terminal import audit_tables, console
    from bpeq.auditing import audit_rules

    found, notes = audit_rules(_load(config, set_, None), None if rules is None else _names(rules))
    if markdown:
        console.print(locality.markdown(found), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(*audit_tables(found))
    for name, note in notes.items():
        console.print(f"{name} is left out: {note}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def report(folders: Annotated[list[Path], typer.Argument(metavar="DIR...")]) -> None:
    """Write the report of a finished run or comparison anew."""
    from bpeq._schema import ConfigError
    from bpeq._terminal import console
    from bpeq.report import write_report

    for folder in folders:
        try:
            path = write_report(folder)
        except ValueError as error:
            raise error if type(error) is not ValueError else ConfigError(str(error)) from error
        console.print(f"{path}", soft_wrap=True, highlight=False)


@app.command()
def show(
    what: Annotated[str, typer.Argument(help="rules, layers, data, … or rule, layer, …, config")],
    name: Annotated[str, typer.Argument(help="which one, or the config's file")] = "",
    set_: Set = None,
) -> None:
    """List what there is, show one factory's settings and docstring, or a config as resolved."""
    from bpeq._terminal import console
    from bpeq.showing import describe

    console.print(describe(what, name, set_ or ()), markup=False, highlight=False, soft_wrap=True)


def _names(rules: str) -> list[str]:
    from bpeq._schema import ConfigError

    names = [name.strip() for name in rules.split(",") if name.strip()]
    if not names or len(set(names)) < len(names):
        raise ConfigError(f"--rules = {rules!r}: must be different rules, such as backprop,eqprop")
    return names


def _check_trials(tune: int | None) -> None:
    from bpeq._schema import ConfigError

    if tune is not None and tune < 1:
        raise ConfigError(f"--tune = {tune}: must be a whole number >= 1")


def _load(path: Path, overrides: list[str] | None, seeds: int | None) -> Config:
    from bpeq.config import load

    extra = [] if seeds is None else [f"seeds={seeds}"]
    return load(path, [*(overrides or []), *extra])


def _resumable(stopped: Interrupted, command: str) -> Interrupted:
    return type(stopped)(stopped.signal, f"{stopped}; go on with: {command}")


def _folder(out: Path | None, name: str, resume: bool = False) -> Path:
    from bpeq import runs

    place = runs.latest if resume else runs.fresh
    return place(Path("runs"), name) if out is None else out
