"""Studies: a file's `run` in place of the built-in training, with its own settings and networks."""

import base64
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.experiment.runner import Runner

STUDY = """
from typing import Annotated

import jax
import jax.numpy as jnp
from annotated_types import Ge
from matplotlib.figure import Figure

from bpeq.config.networks import build_networks
from bpeq.config.problem import seed_keys
from bpeq.training.loops import over_seeds, step_scan


def run(config, runner, *, steps: Annotated[int, Ge(1)] = 4, rate: float = 0.5, blow: bool = False):
    net = build_networks(config, {"slope": ((None,), (1,))})["slope"]
    keys = seed_keys(config.as_dict()["seed"], config.as_dict()["seeds"])

    def step(w, x, key):
        loss = 0.5 * (w * x - 3 * x) ** 2
        return (w / 0 if blow else w - rate * (w * x - 3 * x) * x), {"loss": loss}

    carry = jax.vmap(lambda key: net.init(key)[0]["w"][0, 0] * 0)(keys[:, 0])
    loop = over_seeds(step_scan(step, lambda key: jnp.ones(())))
    end, values, rows = runner.repeat(
        loop, carry, (keys[:, 2],), total=steps, every=2, name="line",
        measure=lambda w: {"gap": jnp.abs(w - 3)},
    )
    Figure().savefig(runner.folder / "line.png")
    return {"gap": values["line_gap"], "rows": len(rows)}
"""
CONFIG = """
experiment = "study.py"
seeds = 2
[networks.slope]
layers = ["dense(1)"]
input = [3]
[networks.words]
layers = ["embedding(7, 4)", "layer_norm"]
input = [5]
tokens = 7
"""


@pytest.fixture
def study(tmp_path):
    (tmp_path / "study.py").write_text(STUDY)
    (tmp_path / "c.toml").write_text(CONFIG)
    return tmp_path


def test_a_study_logs_its_own_steps_and_its_picture_joins_the_report(call, study):
    """w ← w − ½(w − 3) from 0: after 4 steps the gap is 3/16, after 2 it was 3/4."""
    said = call("run", study / "c.toml", "--out", study / "out")
    assert (said.code, said.err, said.bar) == (0, [], True)
    rows = [json.loads(line) for line in (study / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [2, 4]
    np.testing.assert_allclose([row["line_gap"] for row in rows], [3 / 4, 3 / 16])
    np.testing.assert_allclose(rows[0]["line_train_loss"], (0.5 * 9 + 0.5 * 2.25) / 2)
    summary = json.loads((study / "out" / "summary.json").read_text())
    assert summary["metrics"]["gap"]["values"] == [3 / 16, 3 / 16]
    assert summary["metrics"]["rows"]["mean"] == 2
    assert summary["pictures"] == ["line.png"]
    assert summary["seconds"]["train"] > 0
    drawn = base64.b64encode((study / "out" / "line.png").read_bytes()).decode()
    assert drawn in (study / "out" / "report.html").read_text()


def test_a_studys_saved_config_runs_again_from_anywhere(call, study, monkeypatch):
    call("run", study / "c.toml", "--out", study / "out", "--set", "study.steps=3")
    monkeypatch.chdir("/")
    said = call("run", study / "out" / "config.toml", "--out", study / "again")
    assert (said.code, said.err) == (0, [])
    first, again = (
        json.loads((study / name / "summary.json").read_text())["metrics"]
        for name in ("out", "again")
    )
    assert first == again
    assert first["gap"]["mean"] == 3 / 8  # the last stride is a short one


def test_check_walks_every_network_of_a_study(call, study):
    said = call("check", study / "c.toml")
    assert said.code == 0
    for row in (
        "slope: 0: dense",
        "words: 0: embedding",
        "words: 1: layer_norm",
        "words: whole network",
    ):
        assert row in said.out


def test_a_stride_begins_where_the_one_before_ended_and_its_last_turn_is_logged(tmp_path):
    def turns(carry, first, count):
        return carry + count, {"turn": jnp.stack([first + jnp.arange(count)] * 2)}  # two seeds

    loop = jax.jit(turns, static_argnums=2)
    repeat = Runner(tmp_path, "here").repeat
    carry, values, rows = repeat(loop, jnp.zeros((), int), (), total=5, every=2)
    assert [(row["step"], row["turn"]) for row in rows] == [(2, 1), (4, 3), (5, 4)]
    assert (int(carry), values["turn"].tolist()) == (5, [4, 4])


def test_a_study_that_diverges_exits_4_and_says_where(call, study):
    said = call("run", study / "c.toml", "--out", study / "out", "--set", "study.blow=true")
    assert said.code == 4
    assert len(said.err) == 1
    assert "line diverged in steps 1 to 2" in said.err[0]
    assert "params-line.safetensors" in said.err[0]
    assert (study / "out" / "params-line.safetensors").exists()


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("study.steps=0", "--set study.steps = 0: must be a whole number >= 1"),
        ("study.stepz=1", "--set study.stepz = 1: unknown key; allowed: steps, rate, blow; did"),
        ("networks.slope.input=3", "--set networks.slope.input = 3: must be a list, each entry"),
        ("networks.slope.depth=3", "--set networks.slope.depth = 3: unknown key; allowed: input"),
        ("networks.slope.layers=[]", "--set networks.slope.layers = []: must be a list of layers"),
        ("networks.slope.layers.0.features=0", "networks.slope.layers.0.features = 0: must be"),
        ("networks.odd=3", "--set networks.odd = 3: must be a section"),
        ('networks.slope.layers=["conv(2, kernel=3)"]', "networks.slope.layers = "),
        ("devices=2", "--set devices = 2: a study's own steps run on one device; allowed: 1"),
        ('networks.slope.layers=["dense(2)"]', "the study's slope must give 1, not 2"),
        ("networks.slope.input=[4, 3]", "the study's slope must take any, not 4 × 3"),
        ("optimizer.learning_rate=1", "--set optimizer.learning_rate = 1: the study reads no ["),
        ("training.epochs=2", "--set training.epochs = 2: the study reads no [training]"),
        ("experiment=no.py", "--set experiment = 'no.py': no such study file"),
    ],
)
def test_what_is_wrong_with_a_study_is_one_line(call, study, change, line):
    said = call("run", study / "c.toml", "--out", study / "out", "--set", change)
    assert said.code == 2
    assert len(said.err) == 1
    assert line in said.err[0]
    assert not (study / "out").exists()


@pytest.mark.parametrize(
    ("code", "line"),
    [
        ("1 / 0", "cannot be run: study.py, line 1: ZeroDivisionError: division by zero"),
        ("def run(config):\n    return {}", "has no function run(config, runner, ...)"),
        ("raise SystemExit(0)", "cannot be run: study.py, line 1: SystemExit: 0"),
        ("def run(config, runner, a: Nowhere = 1): ...", "NameError: name 'Nowhere' is not"),
        (
            "def run(config, runner, a: 'Nowhere' = 1): ...",
            "the signature of its run cannot be read: name 'Nowhere' is not defined",
        ),
        ("import nowhere_to_be_found", "cannot be run: study.py, line 1: ModuleNotFoundError"),
    ],
)
def test_a_study_file_that_cannot_be_run_is_one_line(call, study, code, line):
    (study / "study.py").write_text(code + "\n")
    said = call("check", study / "c.toml")
    assert said.code == 2
    assert len(said.err) == 1
    assert line in said.err[0]


@pytest.mark.parametrize(
    ("body", "line"),
    [
        ("return {'a': [1][3]}", "fails: study.py, line 2: IndexError: list index out of range"),
        ("open(runner.folder / 'no')", "fails: study.py, line 2: FileNotFoundError"),
        ("raise SystemExit(0)", "fails: study.py, line 2: SystemExit: 0"),
        ("return {'a': 'word'}", "fails: could not convert string"),
        ("return 3", "fails: TypeError: run returned int, not metrics by their names"),
        ("return {'a': [[1.0]]}", "fails: TypeError: metric a has shape (1, 1), not a number"),
    ],
)
def test_a_study_that_fails_is_one_line_and_leaves_nothing(call, study, body, line):
    (study / "study.py").write_text(f"def run(config, runner):\n    {body}\n")
    said = call("run", study / "c.toml", "--out", study / "out")
    assert said.code == 2
    assert len(said.err) == 1
    assert line in said.err[0]
    assert not (study / "out").exists()


def test_what_a_study_has_logged_stays_when_it_fails(call, study):
    (study / "study.py").write_text(STUDY.replace("    Figure()", "    rows[9]\n    Figure()"))
    said = call("run", study / "c.toml", "--out", study / "out")
    assert said.code == 2
    assert (study / "out" / "metrics.jsonl").exists()
    assert (study / "out" / "config.toml").exists()


def test_a_network_that_a_study_needs_and_has_not_is_one_line(call, study):
    (study / "c.toml").write_text(CONFIG.replace("networks.slope", "networks.slop"))
    said = call("run", study / "c.toml", "--out", study / "out")
    assert (said.code, len(said.err)) == (2, 1)
    assert "c.toml:networks.slope: is missing" in said.err[0]


@pytest.mark.parametrize("command", [("compare", "--rules", "backprop"), ("fidelity",)])
def test_a_study_without_data_has_nothing_to_compare(call, study, command):
    said = call(command[0], study / "c.toml", *command[1:])
    assert (said.code, len(said.err)) == (2, 1)
    assert "c.toml:data.name: is missing; only `bpeq run` and `check` need none" in said.err[0]


def test_study_settings_without_a_study_are_refused(call, study):
    (study / "c.toml").write_text('[data]\nname = "xor"\n[study]\nsteps = 3\n')
    said = call("run", study / "c.toml", "--out", study / "out")
    assert said.code == 2
    assert "are settings of an experiment, and none is named" in said.err[0]
