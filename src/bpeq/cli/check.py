"""The other commands: `bpeq fidelity`, `check`, `audit`, `verify`, `report` and `show`."""

from __future__ import annotations

from typing import Annotated

import typer

from bpeq.cli import options, signals

NUMERICAL = 4
"""The exit code for a gradient past its tolerance, or a repeat with other bits."""


@options.app.command()
def fidelity(
    config: options.ConfigFile,
    rules: Annotated[
        str | None,
        typer.Option(help="names, separated by commas; the config's rule if not given"),
    ] = None,
    trained: options.Weights = None,
    set_: options.Set = None,
    out: options.Out = None,
) -> None:
    """Compare each rule's gradient, layer by layer, with the exact one of the same function."""
    from bpeq.cli.terminal import bar, console, print_text
    from bpeq.experiment import fidelity
    from bpeq.report import fidelity_table, write_report

    checked = options.load(config, set_)
    names = options.rule_names(rules) if rules is not None else [checked.rule.name]
    folder = options.result_folder(out, f"{checked.name}-fidelity")
    with bar("measurements") as track:
        result = fidelity.measure_fidelity(checked, names, folder, trained, track("fidelity"))
    console.print(fidelity_table(result))
    print_text(write_report(folder))


@options.app.command()
def check(
    config: options.ConfigFile,
    set_: options.Set = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="also check what EP demands of the system's energy")
    ] = False,
) -> int:
    """Check every layer's hand-written backward, and the energy's, against autodiff."""
    from bpeq.cli.terminal import print_table, verdict
    from bpeq.experiment.check import check_problem, check_system

    checked = options.load(config, set_)
    contract = check_system(checked) if energy else ()  # errors come before the table
    rows = check_problem(checked)
    print_table(
        "hand-written backward against autodiff",
        ("layer", "error", "tolerance", ""),
        [(r.name, f"{r.error:.1e}", f"{r.tolerance:.0e}", verdict(r.passed)) for r in rows],
    )
    if energy:
        print_table(
            "the energy's contract, at the initial weights",
            ("finding", "", "figure", ""),
            [
                (f.name, verdict(f.passed), f"{f.figure:.2g}".replace("nan", ""), f.words)
                for f in contract
            ],
        )
    faults = []
    if wrong := [row.name for row in rows if not row.passed]:
        faults.append(f"{len(wrong)} of {len(rows)} rows are past tolerance: {', '.join(wrong)}")
    if broken := [finding.name for finding in contract if finding.passed is False]:
        faults.append(f"the energy breaks its contract: {', '.join(broken)}")
    return options.say(f"{config}: {'; '.join(faults)}", NUMERICAL) if faults else 0


@options.app.command()
def audit(
    config: options.ConfigFile,
    rules: Annotated[
        str | None, typer.Option(help="names, separated by commas; all if not given")
    ] = None,
    markdown: Annotated[bool, typer.Option("--markdown", help="tables for a document")] = False,
    set_: options.Set = None,
) -> None:
    """List what each weight's update needs: states, phases, transposed weights, error passes."""
    from bpeq.analysis.locality import rows as locality
    from bpeq.cli.terminal import print_table, print_text
    from bpeq.experiment.check import audit_rules

    checked = options.load(config, set_)
    audits, excluded = audit_rules(checked, None if rules is None else options.rule_names(rules))
    short = [column.split()[0] for column in locality.COLUMNS]
    if markdown:
        print_text(locality.markdown(audits))
    else:
        totals = [(each.rule, *locality.cells(locality.overall(each.rows))) for each in audits]
        print_table("what the updates take", ("rule", *short), totals)
        for each in audits:
            weights = [(row.weight, *locality.cells(row)) for row in each.rows]
            print_table(each.rule, ("weight", *short), weights)
        for note in locality.notes(audits):
            print_text(note)
    for name, reason in excluded.items():
        print_text(f"{name} is left out: {reason}")


@options.app.command()
def verify(
    folder: options.RunFolder,
    files: Annotated[
        bool, typer.Option("--files", help="check the files only; no repeat of the run")
    ] = False,
) -> int:
    """Check that a run's files are unchanged, then repeat the run and compare every bit."""
    from bpeq.cli.terminal import EQUAL, bar, print_table, print_text
    from bpeq.experiment import verify

    signals.begin_saving()
    with bar("epochs or steps") as track:
        stop = signals.asked_to_stop
        findings = verify.verify(folder, track("repeat"), stop, files_only=files)
    print_text(f"{folder}: every file is as its run left it")
    if files:
        return 0
    rows = [(each.file, each.compared, each.difference or EQUAL) for each in findings]
    print_table("a repeat of the run, bit by bit", ("file", "compared", ""), rows)
    wrong = [f"{each.file}: {each.difference}" for each in findings if each.difference]
    return (
        options.say(f"{folder}: its repeat differs: {'; '.join(wrong)}", NUMERICAL) if wrong else 0
    )


@options.app.command()
def report(folders: options.Folders) -> None:
    """Write the reports of finished runs or comparisons again."""
    from bpeq.cli.terminal import print_text
    from bpeq.config.errors import ConfigError
    from bpeq.report import write_report
    from bpeq.runs import manifest

    for folder in folders:
        try:
            path = write_report(folder)
            manifest.add_report(folder, path)
        except ValueError as error:
            raise error if type(error) is not ValueError else ConfigError(str(error)) from error
        print_text(path)


@options.app.command()
def show(
    what: Annotated[str, typer.Argument(help="rules, layers, data, … or rule, layer, …, config")],
    name: Annotated[str, typer.Argument(help="which one, or the config's file")] = "",
    set_: options.Set = None,
) -> None:
    """List rules, layers and other parts, or show one part's settings, or a resolved config."""
    from bpeq.cli.terminal import print_text
    from bpeq.config.describe import describe

    print_text(describe(what, name, set_ or ()))
