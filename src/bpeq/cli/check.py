"""`bpeq check`, `audit` and `verify`: they check a config, its rules, and a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from bpeq.cli import app as _app
from bpeq.cli.app import (
    ConfigFile,
    Set,
    app,
)


@app.command()
def check(
    config: ConfigFile,
    set_: Set = None,
    energy: Annotated[
        bool, typer.Option("--energy", help="also check what EP demands of the system's energy")
    ] = False,
) -> int:
    """Check every layer's hand-written backward, and the energy's, against autodiff."""
    from bpeq.cli.exit_codes import DONE, NUMERICAL, say
    from bpeq.cli.terminal import check_table, console, contract_table
    from bpeq.experiment.check import check_problem, check_system

    checked = _app.load(config, set_, None)
    contract = check_system(checked) if energy else None  # errors come before the table
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
    """List what each weight's update needs: states, phases, transposed weights, error passes."""
    from bpeq.analysis.locality import rows
    from bpeq.cli.terminal import audit_tables, console
    from bpeq.experiment.audit import audit_rules

    found, notes = audit_rules(
        _app.load(config, set_, None), None if rules is None else _app.names(rules)
    )
    if markdown:
        console.print(rows.markdown(found), markup=False, highlight=False, soft_wrap=True)
    else:
        console.print(*audit_tables(found))
    for name, note in notes.items():
        console.print(f"{name} is left out: {note}", markup=False, highlight=False, soft_wrap=True)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="the folder of a finished run")],
    files: Annotated[
        bool, typer.Option("--files", help="check the files only; no repeat of the run")
    ] = False,
) -> int:
    """Check that a run's files are unchanged, then repeat the run and compare every bit."""
    from bpeq.cli import signals
    from bpeq.cli.exit_codes import DONE, NUMERICAL, say
    from bpeq.cli.terminal import bar, console, verified_table
    from bpeq.experiment import verify

    signals.begin_saving()
    with bar("epochs or steps") as track:
        stop = signals.asked_to_stop
        found = verify.verify(folder, track("repeat"), stop, files_only=files)
    console.print(f"{folder}: every file is as its run left it", soft_wrap=True, highlight=False)
    if files:
        return DONE
    console.print(verified_table(found))
    wrong = [f"{each.file}: {each.difference}" for each in found if each.difference]
    return say(f"{folder}: its repeat differs: {'; '.join(wrong)}", NUMERICAL) if wrong else DONE
