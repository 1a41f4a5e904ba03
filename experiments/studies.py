"""Runs the studies and rewrites the tables and pictures in their READMEs.

    python experiments/studies.py                          all of them, each into runs/studies/NAME
    python experiments/studies.py vision gan               some of them
    python experiments/studies.py vision --from DIR        no run: the tables of a run folder

A study's claims stand in `experiments/NAME/claims.toml`: what is claimed, what is expected, and
how what was measured is written, with the metrics of summary.json in braces: {test_error:2%} is the
mean ± standard deviation over seeds in percent, two decimals; {mse:4} with four; {modes:each} every
seed.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
STUDIES = ("vision", "depth", "sequence", "language", "autoencoder", "gan", "control")
BEGIN, END = "<!-- made by `make studies` -->", "<!-- end -->"


class Measured:
    """A metric of summary.json, as the braces of a claim write it."""

    def __init__(self, statistic: dict[str, Any]) -> None:
        self.mean, self.std = statistic["mean"], statistic["std"]
        self.values = statistic["values"]

    def __format__(self, how: str) -> str:
        if how == "each":
            return ", ".join(f"{value:.4g}" for value in self.values)
        digits, scale, unit = int(how.rstrip("%") or 2), 1.0, ""
        if how.endswith("%"):
            scale, unit = 100.0, " %"
        spread = f" ± {scale * self.std:.{digits}f}" if len(self.values) > 1 else ""
        return f"{scale * self.mean:.{digits}f}{spread}{unit}"


def table(name: str, summary: dict[str, Any], date: str) -> str:
    """The Markdown table of a study's claims, filled in from a run."""
    claims = tomllib.loads((HERE / name / "claims.toml").read_text())["claim"]
    found = {key: Measured(statistic) for key, statistic in summary["metrics"].items()}
    lines = ["| claim | command | expected | measured |", "| --- | --- | --- | --- |"]
    for claim in claims:
        command = claim.get("command", f"`bpeq run configs/{name}.toml`")
        cells = (claim["says"], command, claim["expected"], claim["measured"].format(**found))
        lines.append(f"| {' | '.join(cells)} |")
    seeds, machine = summary["seeds"], summary["environment"]
    device = f"{machine['cpu_count']} shared CPU cores"
    if machine["backend"] != "cpu":
        device = machine["devices"][0]
    minutes = summary["seconds"]["total"] / 60
    many = "1 seed" if seeds == 1 else f"{seeds} seeds, mean ± std"
    return "\n".join([*lines, "", f"{many}; {minutes:.1f} minutes in all on {device}, {date}."])


def rewrite(name: str, folder: Path) -> None:
    """Puts a run's table and pictures into the study's folder."""
    written = folder / "summary.json"
    summary = json.loads(written.read_text())
    date = time.strftime("%Y-%m-%d", time.localtime(written.stat().st_mtime))
    readme = HERE / name / "README.md"
    text = readme.read_text()
    before, _, rest = text.partition(BEGIN)
    _, found, after = rest.partition(END)
    if not found:
        sys.exit(f"{readme}: must hold the lines {BEGIN} and {END}, between which the table goes")
    readme.write_text(f"{before}{BEGIN}\n{table(name, summary, date)}\n{END}{after}")
    for picture in summary["pictures"]:
        shutil.copyfile(folder / picture, HERE / name / picture)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(STUDIES))
    parser.add_argument("--from", dest="folder", type=Path, help="a finished run of the one study")
    given = parser.parse_args()
    for name in given.names or STUDIES:
        if name not in STUDIES:
            parser.error(f"no study {name!r}; allowed: {', '.join(STUDIES)}")
    if given.folder is not None and len(given.names) != 1:
        parser.error("--from takes the name of one study")
    for name in given.names or STUDIES:
        folder = given.folder
        if folder is None:
            folder = Path("runs") / "studies" / name
            shutil.rmtree(folder, ignore_errors=True)
            config = HERE.parent / "configs" / f"{name}.toml"
            command = [Path(sys.executable).with_name("bpeq"), "run", config, "--out", folder]
            done = subprocess.run(command, check=False)
            if done.returncode:
                sys.exit(done.returncode)
        rewrite(name, folder)


if __name__ == "__main__":
    main()
