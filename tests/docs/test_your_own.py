"""docs/your_own.md, executed as a newcomer would: its files are written, its commands run."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bpeq
from bpeq.config.registry import KINDS

PAGE = (Path(__file__).parents[2] / "docs" / "your_own.md").read_text()
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", PAGE, re.S)
LINES = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]
COMMANDS = {line.partition(" --out ")[2] or line: line for line in LINES if line[:5] == "bpeq "}
SHORT = ["--seeds", "2", "--set", "training.epochs=10"]  # for runs of five seeds


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    """The page's files, in a folder that is the working directory."""
    folder, before = tmp_path_factory.mktemp("your_own"), Path.cwd()
    for kind, block in BLOCKS:
        named = re.match(r"# (\S+\.(?:py|toml))(, continued)?\n", block)
        assert (named is not None) == bool(kind)  # every listing says which file it is
        if named:
            assert (folder / named[1]).exists() == bool(named[2])
            with (folder / named[1]).open("a") as file:
                file.write(f"\n\n{block}" if named[2] else block)
    os.chdir(folder)
    yield folder
    os.chdir(before)
    sys.modules.pop("mine", None)


@pytest.fixture(scope="module")
def ran(page, call):
    """A command of the page by its --out, or by itself -> what it left; each is run once."""
    done: dict[str, Any] = {}

    def ran(name: str) -> Any:
        if name not in done:
            words = shlex.split(COMMANDS[name])[1:]
            short = SHORT if words[0] in ("run", "compare") and "mine.toml" in words else []
            said = call(*words, *short)
            assert said.code == 0, said.err
            files = {"compare": "comparison.json", "fidelity": "fidelity.json"}
            result = page / name / files.get(words[0], "summary.json")
            done[name] = json.loads(result.read_text()) if result.exists() else said.out
        return done[name]

    return ran


def errors(result: dict[str, Any]) -> list[float]:
    return result["metrics"]["test_error"]["values"]


@pytest.mark.long
def test_the_script_trains_the_energy_by_both_rules(page):
    """Beside it, on the same split, a linear readout errs on 3.9 %."""
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "train.py"]
    done = subprocess.run(command, cwd=page, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = re.findall(r"(\w+): test error (.*)%", done.stdout)
    assert [name for name, _ in found] == ["eqprop", "recurrent_backprop"]
    assert all(float(error) < 3.0 for _, error in found)


def test_the_energy_has_a_dict_state_and_a_skip_and_about_twelve_lines():
    source = next(block for _, block in BLOCKS if block.startswith("# mine.py\n"))
    body = source[source.index("    def energy") :].splitlines()
    assert len([line for line in body if line.strip()]) <= 13


@pytest.mark.long
def test_the_energy_learns_from_a_config_what_its_frozen_control_cannot(ran):
    pairs = list(zip(errors(ran("energy")), errors(ran("frozen")), strict=True))
    assert len(pairs) == 2
    assert all(learned < frozen for learned, frozen in pairs)
    sizes = {row["name"]: row["parameters"] for row in ran("energy")["layers"]}
    assert sizes == {"in": 128 * 64, "out": 10 * 128, "skip": 10 * 64}


def test_the_frozen_control_keeps_its_input_weights(ran, page):
    ran("frozen")
    loaded = bpeq.load_run(page / "frozen")
    fresh = jax.eval_shape(lambda: loaded.params)
    assert set(fresh) == {"in", "out", "skip"}
    assert float(abs(loaded.params["skip"]).max()) > 0.01  # drawn as zeros: it has learned
    assert float(loaded.params["in"].std()) == pytest.approx(4 / 8, rel=0.02)  # as drawn


def test_a_loaded_run_gives_the_errors_of_its_summary(ran, page):
    summary = ran("energy")
    loaded = bpeq.load_run(page / "energy", seed=1)
    test = loaded.data.test[1]
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"):
        output = loaded.rule.apply(loaded.params, jax.numpy.asarray(loaded.data.x[test]))
    wrong = np.asarray(output).argmax(axis=1) != loaded.data.y[test]
    assert float(wrong.mean()) == pytest.approx(errors(summary)[1], abs=1e-6)


@pytest.mark.long
def test_fidelity_names_the_weights_and_the_states_by_the_users_keys(ran):
    found = ran("fidelity")
    assert set(found["rules"]) == {"eqprop", "vector_field_eqprop"}
    for row in found["rules"].values():
        assert set(row["layers"]) == {"in", "out", "skip"}
        assert row["reference_residual"] < 1e-11
        assert row["converged"] == 1
        assert row["cosine"] > 0.999
    assert set(found["equilibrium"]["saturated"]) == {"hidden", "output"}
    assert found["equilibrium"]["asymmetry"] < 1e-14
    assert set(found["rules"]["eqprop"]["nudge"]["amplitude"]) == {"hidden", "output"}


@pytest.mark.long
def test_own_energy_and_own_rule_stand_beside_the_built_in_ones_and_the_controls(ran):
    rows = ran("compared")["rules"]
    own = ["eqprop", "recurrent_backprop", "mine:only_mistakes"]
    assert list(rows) == [*own, "linear_readout", "frozen_hidden"]
    means = {name: row["metrics"]["test_error"]["mean"] for name, row in rows.items()}
    for name in own:
        assert means[name] < min(means["linear_readout"], means["frozen_hidden"])
    note = (
        "eqprop, recurrent_backprop on the settled system and mine:only_mistakes on the "
        "feed-forward map differentiate different functions"
    )
    assert any(each.startswith(note) for each in ran("compared")["notes"])


def test_the_rules_own_section_applies_and_set_wins_over_it(ran, page):
    ran("compared")
    kept = json.loads((page / "compared" / "mine.only_mistakes" / "summary.json").read_text())
    assert kept["config"]["rule"] == {"name": "mine:only_mistakes", "threshold": 0.2}
    assert ran("all-errors")["config"]["rule"]["threshold"] == 0


def test_with_no_threshold_the_rule_is_backprop(ran, call, page):
    rule = ran("all-errors")
    said = call("run", "mine.toml", "--set", "rule.name=backprop", "--out", "bp", *SHORT)
    assert said.code == 0
    assert json.loads((page / "bp" / "summary.json").read_text())["metrics"] == rule["metrics"]


def test_show_prints_the_range_and_the_docstring(ran):
    assert ran("bpeq show rule mine:only_mistakes").splitlines() == [
        "mine:only_mistakes",
        "  threshold      a number >= 0, default 0.1",
        "  wired from the rest of the config: network (Layer), cost (Cost)",
        "",
        "Backpropagation of the output errors above a threshold.",
    ]


@pytest.mark.long
def test_own_layer_passes_the_check_and_own_data_are_learned(ran):
    rows = [
        line.split("│") for line in ran("bpeq check ring.toml").splitlines() if "1: gain" in line
    ]
    assert [row[4].strip() for row in rows] == ["ok", "ok"]
    (error,) = errors(ran("ring"))
    assert error < 0.1  # always the larger class: 0.49


@pytest.mark.parametrize("line", [line for line in LINES if line.startswith("bpeq: ")])
def test_the_error_lines_of_the_page_are_what_is_said(line, page, call, monkeypatch):
    source = (page / "mine.py").read_text()
    wrong = [] if "--set" not in line else ["--set", "system.hidden=0"]
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    sys.modules.pop("mine", None)
    try:
        if not wrong:
            (page / "mine.py").write_text(source.replace('s["hidden"] **', 's["hiden"] **'))
        said = call("run", "mine.toml", *wrong)
    finally:
        (page / "mine.py").write_text(source)
        sys.modules.pop("mine", None)
    assert (said.code, said.err) == (2, [line])


def test_the_table_has_a_row_for_all_that_was_compared():
    rows = re.findall(r"^\| `(?:mine:)?(\w+)`|^\| null control: ([\w ]+)", PAGE, re.M)
    assert {name for name, _ in rows if name} <= {*KINDS["rules"], "only_mistakes"}
    assert len(rows) == 6


def test_the_study_trains_at_each_rate(ran):
    metrics = ran("rates")["metrics"]
    assert sorted(metrics) == ["test_error_0.5", "test_error_2.0"]
    assert max(errors[0] for errors in (m["values"] for m in metrics.values())) < 0.5
