"""What a run leaves behind: its keys, its numbers, and that they can be had again."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

import bpeq
from bpeq.cli import signals
from bpeq.types import DataError

XOR = """\
seed = 3
seeds = 3

[data]
name = "xor"

[network]
layers = ["dense(3)", "tanh", "dense(1)"]

[optimizer]
name = "sgd"
learning_rate = 0.5

[training]
epochs = 4
batch_size = 4
evaluate_every = 2
"""
BLOBS = """\
seeds = 3

[data]
name = "npz"
path = "{path}"
splits = 2

[network]
layers = ["dense(5)", "tanh", "dense(3)"]

[solvers.free]
name = "fixed_point"
tolerance = 1e-4
max_steps = 30

[solvers.nudged]
name = "fixed_steps"
steps = 3

[rule]
name = "eqprop"
beta = 0.2

[optimizer]
name = "adam"
learning_rate = 0.02

[training]
epochs = 2
batch_size = 20
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Another folder for each test, and no pictures, which take half of a small run's time."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bpeq.report.write_report", lambda folder: folder / "report.html")


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def summary(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "summary.json").read_text())


def run(call, folder: Path, text: str, *argv: object, out: str = "out") -> Path:
    """A finished run's folder."""
    config = folder / "c.toml"
    config.write_text(text)
    said = call("run", config, "--out", folder / out, *argv)
    assert (said.code, said.err) == (0, [])
    return folder / out


def sets(*pairs: str) -> list[str]:
    return [f"--set={pair}" for pair in pairs]


@pytest.fixture(scope="module")
def finished(call, tmp_path_factory) -> Path:
    """Three clouds of points, learnt by eqprop: three seeds on two splits, no seed perfect."""
    folder = tmp_path_factory.mktemp("finished")
    noise = np.random.default_rng(0)
    labels = np.arange(150) % 3
    centres = np.array([[0.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    points = centres[labels] + noise.normal(0, 0.8, (150, 2))
    np.savez(folder / "blobs.npz", x=points, y=labels)
    return run(call, folder, BLOBS.format(path=folder / "blobs.npz"))


# --- the folder --------------------------------------------------------------------------------


def test_the_folder_holds_these_files_and_nothing_half_written(finished):
    assert {path.name for path in finished.iterdir()} >= {
        "config.toml",
        "environment.json",
        "metrics.jsonl",
        "params.safetensors",
        "report.html",
        "summary.json",
    }
    assert not list(finished.rglob("*.part"))


def test_summary_has_the_keys_that_scripts_read(finished):
    found = summary(finished)
    assert {"config", "seeds", "metrics", "seconds", "environment"} <= set(found)
    assert {"compile", "train", "total"} <= set(found["seconds"])
    assert found["seeds"] == 3
    assert found["rule"] == "eqprop"
    assert set(found["metrics"]) == {
        f"{split}_{name}" for split in ("train", "validation", "test") for name in ("error", "loss")
    }
    for statistic in found["metrics"].values():
        assert set(statistic) == {"mean", "std", "values"}
    assert {"python", "versions", "devices", "cpu_count"} <= set(found["environment"])
    assert found["environment"]["versions"]["jax"] == jax.__version__
    assert found["environment"] == json.loads((finished / "environment.json").read_text())


def test_config_toml_is_the_summarys_config_and_loads_again(finished):
    config = bpeq.load_run(finished).config
    assert config.as_dict() == summary(finished)["config"]
    rest = {"points": 4, "turns": 2, "start": "own", "relaxation": "same"}
    assert config.as_dict()["rule"] == {
        "name": "eqprop",
        "beta": 0.2,
        "nudging": "centered",
        **rest,
    }


def test_metrics_has_an_object_for_each_logged_epoch(finished):
    logged = rows(finished)
    per_epoch = 108 // 20  # 150 points, a fifth to test on, a tenth of the rest to validate
    assert [row["epoch"] for row in logged] == [1, 2]
    assert [row["step"] for row in logged] == [per_epoch, 2 * per_epoch]
    for row in logged:
        assert set(row) == {
            *("epoch", "step", "seconds", "values", "sweeps", "sweeps_free", "sweeps_nudged"),
            *("train_loss", "test_loss", "test_error", "validation_loss", "validation_error"),
            "unsettled",
        }
        assert 0 <= row["unsettled"] <= 1
        assert all(len(values) == 3 for values in row["values"].values())
    assert 0 < logged[0]["seconds"] <= logged[1]["seconds"]


def test_a_logged_number_is_the_mean_over_seeds(finished):
    for row in rows(finished):
        for name, values in row["values"].items():
            assert row[name] == pytest.approx(np.mean(values), rel=1e-6)


def test_sweeps_are_the_free_ones_and_both_nudged_phases(finished):
    for row in rows(finished):
        assert row["sweeps_nudged"] == 3
        assert row["sweeps"] == pytest.approx(row["sweeps_free"] + 2 * 3, rel=1e-6)
        assert 1 < row["sweeps_free"] <= 30


def test_statistics_are_mean_sample_deviation_and_values(finished):
    for statistic in summary(finished)["metrics"].values():
        values = statistic["values"]
        assert len(values) == 3
        assert statistic["mean"] == pytest.approx(np.mean(values), rel=1e-12)
        assert statistic["std"] == pytest.approx(np.std(values, ddof=1), rel=1e-12)
    assert len(set(summary(finished)["metrics"]["test_loss"]["values"])) == 3


def test_the_summary_is_the_last_epochs_not_the_best(finished):
    last = rows(finished)[-1]["values"]
    metrics = summary(finished)["metrics"]
    for name in ("test_error", "test_loss", "validation_error", "validation_loss"):
        assert metrics[name]["values"] == last[name]


def test_a_run_without_out_takes_the_next_free_name(call, tmp_path):
    (tmp_path / "runs" / "c").mkdir(parents=True)
    (tmp_path / "c.toml").write_text(XOR)
    said = call("run", "c.toml", *sets("training.epochs=1"))
    assert (said.code, said.err) == (0, [])
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["c", "c-2"]
    assert not list((tmp_path / "runs" / "c").iterdir())


def test_report_writes_the_page_anew(call, finished, tmp_path, monkeypatch):
    monkeypatch.undo()  # with its pictures
    folder = copy(finished, tmp_path / "copy")
    (folder / "report.html").unlink()
    said = call("report", folder)
    assert (said.code, said.err, said.out) == (0, [], f"{folder}/report.html\n")
    assert (folder / "report.html").read_text().startswith("<!")


@pytest.mark.parametrize("name", ["report.html", "learning_curves.png"])
def test_a_report_that_does_not_fit_on_the_disk_is_named_and_the_old_one_stays(
    call, finished, tmp_path, monkeypatch, name
):
    monkeypatch.undo()  # with its pictures
    folder = copy(finished, tmp_path / "copy")
    (folder / name).write_text("old")
    replace = Path.replace

    def full(self: Path, target: Path) -> Path:
        if target.name == name:
            raise OSError(errno.ENOSPC, "No space left on device")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", full)
    said = call("report", folder)
    line = f"bpeq: {folder / name}: cannot write: No space left on device"
    assert (said.code, said.err) == (3, [line])
    assert (folder / name).read_text() == "old"
    assert not list(folder.glob("*.part"))


def test_a_study_is_run_instead_of_training(call, tmp_path):
    (tmp_path / "study.py").write_text(
        "def run(config, runner, *, depth: int = 3):\n"
        "    (runner.folder / 'found.txt').write_text(f\"{config.as_dict()['seed']} {depth}\")\n"
        "    return {'mse': [1.0, 3.0], 'depth': depth}\n"
    )
    (tmp_path / "c.toml").write_text('seed = 7\nexperiment = "study.py"\n')
    said = call("run", tmp_path / "c.toml", "--out", tmp_path / "out", "--set", "study.depth=5")
    assert (said.code, said.err) == (0, [])
    assert (tmp_path / "out" / "found.txt").read_text() == "7 5"
    metrics = json.loads((tmp_path / "out" / "summary.json").read_text())["metrics"]
    assert metrics["mse"] == {"mean": 2.0, "std": pytest.approx(2**0.5), "values": [1.0, 3.0]}
    assert metrics["depth"]["values"] == [5.0]


# --- load_run ----------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_loaded_params_give_the_summarys_errors_again(finished, seed):
    loaded = bpeq.load_run(finished, seed=seed)
    data, metrics = loaded.data, loaded.summary["metrics"]
    outputs = np.asarray(jax.jit(loaded.rule.apply)(loaded.params, jnp.asarray(data.x)))
    wrong = outputs.argmax(-1) != data.y
    losses = 0.5 * ((outputs - np.eye(3)[data.y]) ** 2).sum(-1)
    for split in ("train", "validation", "test"):
        chosen = getattr(data, split)[seed % 2]
        error = metrics[f"{split}_error"]["values"][seed]
        assert round(error * len(chosen)) == wrong[chosen].sum()
        assert error == pytest.approx(wrong[chosen].mean(), rel=1e-6)  # a float32 mean
        loss = metrics[f"{split}_loss"]["values"][seed]
        if split != "train":  # train_loss is that of the last epoch's steps, under way
            assert loss == pytest.approx(losses[chosen].mean(), rel=1e-5)


def test_load_run_hands_out_the_seed_that_was_asked_for(finished):
    first, third = bpeq.load_run(finished), bpeq.load_run(finished, seed=2)
    stored = load_file(finished / "params.safetensors")
    for name, weights in (("0/w", "w"), ("0/b", "b")):
        array = next(a for key, a in stored.items() if key.replace(".", "/").endswith(name))
        np.testing.assert_array_equal(first.params[0][weights], array[0])
        np.testing.assert_array_equal(third.params[0][weights], array[2])
        np.testing.assert_array_equal(third.all_params[0][weights], array)
        assert first.params[0][weights].dtype == jnp.float32
    assert not np.array_equal(first.params[0]["w"], third.params[0]["w"])


@pytest.mark.parametrize("seed", [-1, 3])
def test_load_run_refuses_a_seed_that_did_not_run(finished, seed):
    with pytest.raises(ValueError, match=f"load_run: seed = {seed}: the run has seeds 0 to 2"):
        bpeq.load_run(finished, seed=seed)


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for path in folder.iterdir():
        if path.is_file():
            (to / path.name).write_bytes(path.read_bytes())
    return to


def test_load_run_of_an_unfinished_run_is_a_data_error(finished, tmp_path):
    folder = copy(finished, tmp_path / "copy")
    (folder / "summary.json").unlink()
    with pytest.raises(DataError, match=r"copy/summary\.json: cannot read: .*No such file"):
        bpeq.load_run(folder)


def test_load_run_of_truncated_params_is_a_data_error(finished, tmp_path):
    folder = copy(finished, tmp_path / "copy")
    content = (folder / "params.safetensors").read_bytes()
    (folder / "params.safetensors").write_bytes(content[:-4])
    with pytest.raises(DataError, match=r"copy/params\.safetensors: cannot read: "):
        bpeq.load_run(folder)


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("features = 5", "features = 6", r"float32\[3, 5\], the config makes float32\[3, 6\]"),
        ('"float32"', '"float64"', r"float32\[3, 5\], the config makes float64\[3, 5\]"),
        ("seeds = 3", "seeds = 2", r"float32\[3, 5\], the config makes float32\[2, 5\]"),
    ],
)
def test_load_run_of_another_networks_params_is_a_data_error(finished, tmp_path, old, new, problem):
    folder = copy(finished, tmp_path / "copy")
    text = (folder / "config.toml").read_text()
    assert text.count(old) == 1
    (folder / "config.toml").write_text(text.replace(old, new))
    with pytest.raises(DataError, match=problem):
        bpeq.load_run(folder)


# --- repeats, seeds, precision -----------------------------------------------------------------


def numbers(folder: Path) -> list[Any]:
    """All metrics of a run, and its weights, without timings."""
    logged = [{k: v for k, v in row.items() if "seconds" not in k} for row in rows(folder)]
    weights = [array.tolist() for _, array in sorted(load_file(params(folder)).items())]
    return [
        logged,
        summary(folder)["metrics"] if (folder / "summary.json").exists() else 0,
        weights,
    ]


def params(folder: Path) -> Path:
    return folder / "params.safetensors"


@pytest.fixture(scope="module")
def doubles(call, tmp_path_factory) -> Path:
    """One seed in float64, evaluated once, after three epochs."""
    folder = tmp_path_factory.mktemp("doubles")
    one = sets("precision=float64", "seeds=1", "training.epochs=3", "training.evaluate_every=9")
    return run(call, folder, XOR, *one)


def test_the_same_seed_repeats_bit_for_bit_and_another_differs(call, tmp_path):
    one, two = (run(call, tmp_path, XOR, out=name) for name in ("one", "two"))
    other = run(call, tmp_path, XOR, *sets("seed=4"), out="other")
    assert numbers(one) == numbers(two)
    first, second = (summary(folder)["metrics"]["test_loss"]["values"] for folder in (one, other))
    assert len({*first, *second}) == 6


def test_a_seed_does_not_depend_on_its_neighbours_nor_on_the_evaluation_stride(
    call, tmp_path, doubles
):
    three = run(call, tmp_path, XOR, *sets("precision=float64", "training.epochs=3"))
    for name, array in load_file(params(doubles)).items():
        np.testing.assert_allclose(load_file(params(three))[name][:1], array, rtol=1e-12)
    assert [row["epoch"] for row in rows(three)] == [2, 3]
    assert [row["epoch"] for row in rows(doubles)] == [3]


def test_a_float64_run_is_in_float64_throughout(doubles):
    loaded = bpeq.load_run(doubles)
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded.params)} == {jnp.dtype("float64")}
    output = loaded.rule.apply(loaded.params, jnp.asarray(loaded.data.x, jnp.float64))
    loss = 0.5 * np.mean((np.asarray(output) - loaded.data.y) ** 2)
    found = loaded.summary["metrics"]["test_loss"]
    assert found["values"] == [pytest.approx(loss, rel=1e-14)]
    assert (found["mean"], found["std"]) == (found["values"][0], 0.0)


def test_solved_is_the_share_of_seeds_without_an_error(call, tmp_path):
    folder = run(call, tmp_path, XOR, *sets("training.epochs=150", "training.evaluate_every=25"))
    for row in rows(folder):
        errors = np.array(row["values"]["test_error"])
        assert row["values"]["solved"] == (errors == 0).astype(float).tolist()
        assert row["solved"] == pytest.approx(np.mean(errors == 0), rel=1e-6)
    assert any(0 < row["solved"] < 1 for row in rows(folder))
    assert summary(folder)["metrics"]["solved"]["values"] == rows(folder)[-1]["values"]["solved"]


def test_a_regression_reports_its_error_in_the_datas_unit(call, tmp_path):
    text = XOR.replace('"xor"', '"diabetes"').replace("batch_size = 4", "batch_size = 100")
    folder = run(call, tmp_path, text, *sets("optimizer.learning_rate=0.01"))
    loaded = bpeq.load_run(folder)
    chosen, metrics = loaded.data.test[0], loaded.summary["metrics"]
    target = loaded.data.y[chosen].astype(np.float64)
    gap = np.asarray(loaded.rule.apply(loaded.params, jnp.asarray(loaded.data.x[chosen]))) - target
    assert metrics["test_rmse"]["values"][0] == pytest.approx(
        75 * np.sqrt((gap**2).mean()), rel=1e-5
    )
    r2 = 1 - (gap**2).sum() / ((target - target.mean()) ** 2).sum()
    assert metrics["test_r2"]["values"][0] == pytest.approx(r2, rel=1e-4)


# --- ends that are not the planned one ---------------------------------------------------------


def test_a_diverging_run_exits_4_and_keeps_what_it_had(call, tmp_path):
    (tmp_path / "c.toml").write_text(XOR)
    argv = sets("optimizer.learning_rate=1e6", "training.evaluate_every=1", "training.epochs=50")
    said = call("run", "c.toml", "--out", "out", *argv)
    assert said.code == 4
    last = rows(tmp_path / "out")[-1]["epoch"]
    assert 1 <= last < 50
    assert len(said.err) == 1
    assert said.err[0].startswith(f"bpeq: c.toml: diverged in epoch {last + 1} (step {last + 1}): ")
    assert said.err[0].endswith(
        "; try a smaller optimizer.learning_rate than 1000000.0; the last good checkpoint is "
        f"out/checkpoints/1-{last:09d}.safetensors, the parameters of epoch {last} are in "
        "out/params.safetensors"
    )
    weights = load_file(tmp_path / "out" / "params.safetensors")
    assert all(np.isfinite(array).all() for array in weights.values())
    assert max(np.abs(array).max() for array in weights.values()) > 1e5
    assert not (tmp_path / "out" / "summary.json").exists()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_run_after_the_stretch_and_saves(
    call, tmp_path, monkeypatch, number, code
):
    (tmp_path / "c.toml").write_text(XOR)
    monkeypatch.setattr(signals, "asked_to_stop", lambda: number)
    said = call("run", "c.toml", "--out", "out")
    how = "go on with: bpeq run out --resume"
    assert (said.code, said.err) == (code, [f"bpeq: stopped after epoch 2 of 4; saved out; {how}"])
    assert [row["epoch"] for row in rows(tmp_path / "out")] == [2]
    assert not (tmp_path / "out" / "summary.json").exists()
    # What was saved is the run of two epochs, in whose last stretch a signal changes nothing.
    whole = run(call, tmp_path, XOR, *sets("training.epochs=2"), out="whole")
    assert rows(tmp_path / "out")[-1]["values"] == rows(whole)[-1]["values"]
    stopped = load_file(params(tmp_path / "out"))
    for name, array in load_file(params(whole)).items():
        np.testing.assert_array_equal(stopped[name], array)


def test_ctrl_c_in_a_real_process_saves_and_says_so(tmp_path):
    (tmp_path / "c.toml").write_text(XOR)
    out = tmp_path / "out"
    program = "from bpeq.cli import script; script()"
    argv = [sys.executable, "-c", program, "run", "c.toml", "--out", str(out)]
    argv += sets("training.epochs=10000000", "training.evaluate_every=10")
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(argv, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None:
            logged = out / "metrics.jsonl"
            if logged.exists() and logged.read_text().count("\n") > 2:
                break
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
    last = rows(out)[-1]["epoch"]
    assert process.returncode == 130
    lines = [line for line in errors.splitlines() if line.startswith("bpeq: ")]
    assert lines == [
        "bpeq: stopping after this stretch and saving; once more ends at once",
        f"bpeq: stopped after epoch {last} of 10000000; saved {out}; "
        f"go on with: bpeq run {out} --resume",
    ]
    assert "Traceback" not in errors
    assert all(np.isfinite(array).all() for array in load_file(params(out)).values())


def test_a_second_run_into_the_folder_changes_no_byte(call, tmp_path):
    folder = run(call, tmp_path, XOR, *sets("training.epochs=1"))
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    said = call("run", tmp_path / "c.toml", "--out", folder)
    assert (said.code, len(said.err)) == (2, 1)
    assert said.err[0].endswith(f"or continue it: bpeq run {folder} --resume")
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before


# --- a user's own parts ------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a user's module beside the config, under a name of this test's own."""
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    written = []

    def module(name: str, code: str) -> None:
        written.append(name)
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(code))

    yield module
    for name in written:
        sys.modules.pop(name, None)


def test_a_users_rule_by_stateless_learns_as_autodiff_does(call, tmp_path, module):
    module(
        "own_rule",
        """
        import jax
        from bpeq.rules import stateless
        from bpeq.settings import Positive
        from bpeq.types import Cost, Estimate, Layer, LearningRule

        def plain(network: Layer, cost: Cost, *, gain: Positive = 1.0) -> LearningRule:
            def apply(params, x, key=None):
                return network.forward(params, x, key)[0]

            def gradient(params, batch, key):
                def loss(params):
                    output = apply(params, batch.x, key)
                    return cost.value(output, batch.y).mean(), output

                (value, output), grads = jax.value_and_grad(loss, has_aux=True)(params)
                return Estimate(jax.tree.map(lambda g: gain * g, grads), value, output, {})

            return stateless(apply, gradient, "plain")
        """,
    )
    own = run(call, tmp_path, XOR, *sets("rule.name=own_rule:plain", "rule.gain=2"), out="own")
    theirs = run(
        call, tmp_path, XOR, *sets("rule.name=autodiff", "optimizer.learning_rate=1"), out="theirs"
    )
    assert summary(own)["rule"] == "own_rule:plain"
    for name, array in load_file(params(own)).items():
        np.testing.assert_allclose(array, load_file(params(theirs))[name], rtol=1e-5)


def test_a_users_layer_and_loader_take_checked_settings(call, tmp_path, module):
    module(
        "own_wide",
        """
        import numpy as np
        from bpeq.data import Dataset, finish, shuffled
        from bpeq.layers import dense
        from bpeq.settings import Count
        from bpeq.types import Layer

        def wide(width: Count) -> Layer:
            return dense(2 * width)

        def line(rows: Count = 40) -> Dataset:
            x = np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
            splits = shuffled(rows, 1, 0.1, 0.2)
            return finish("line", x, 3 * x, splits, task="regression", outputs=1)
        """,
    )
    own = ['network.layers=["own_wide:wide(2)", "tanh", "dense(1)"]', "data.name=own_wide:line"]
    folder = run(call, tmp_path, XOR, *sets(*own, "data.rows=30"))
    found = summary(folder)
    assert (found["data"]["name"], found["data"]["train"], found["data"]["test"]) == ("line", 22, 6)
    assert {array.shape for array in load_file(params(folder)).values()} == {
        (3, 1, 4),
        (3, 4),
        (3, 4, 1),
        (3, 1),
    }
    said = call("run", tmp_path / "c.toml", *sets(*own, "data.rows=0"))
    assert (said.code, said.err) == (
        2,
        ["bpeq: --set data.rows = 0: must be a whole number >= 1"],
    )
    wrong = 'network.layers=["own_wide:wide(0)"]'
    said = call("run", tmp_path / "c.toml", *sets(wrong))
    assert said.err == ["bpeq: --set network.layers.0.width = 0: must be a whole number >= 1"]


ENERGY = """
import jax.numpy as jnp
from bpeq.layers import chain, dense
from bpeq.settings import Positive
from bpeq.systems import from_energy
from bpeq.types import System

def linear(step: Positive = 0.5) -> System:
    # E = |s|^2 / 2 - s.(w'x): the free state is w'x, and EP's gradient exact but for 1/(1 - beta^2)
    return from_energy(
        energy=lambda p, s, x: 0.5 * jnp.sum(s**2) - jnp.sum(s * (x @ p[0]["w"])),
        init_state=lambda p, x: jnp.zeros(1, x.dtype),
        readout=lambda p, s: s,
        init=chain(dense(1, bias=False)).init,
        step_size=step,
    )
"""


def test_a_users_energy_learns_what_its_closed_form_says(call, tmp_path, module):
    module("own_energy", ENERGY)
    beta, rate = 0.6, 0.25
    text = XOR.replace(
        'layers = ["dense(3)", "tanh", "dense(1)"]', 'layers = ["dense(1, bias=False)"]'
    )
    solver = '{name = "fixed_point", tolerance = 1e-13, max_steps = 300}'
    own = run(
        call,
        tmp_path,
        text.replace(text[text.index("[network]") : text.index("[optimizer]")], ""),
        *sets("precision=float64", "rule.name=eqprop", f"rule.beta={beta}"),
        *sets("system.name=own_energy:linear", "system.step=0.25"),
        *sets(f"solvers.free={solver}", f"solvers.nudged={solver}"),
        *sets(f"optimizer.learning_rate={rate * (1 - beta**2)}"),
        out="own",
    )
    exact = run(
        call,
        tmp_path,
        text,
        *sets("precision=float64", f"optimizer.learning_rate={rate}"),
        out="exact",
    )
    (ours,), (theirs,) = (list(load_file(params(folder)).values()) for folder in (own, exact))
    np.testing.assert_allclose(ours, theirs, rtol=1e-10)
    assert rows(own)[-1]["unsettled"] == 0
    assert summary(own)["layers"] == [{"name": "0", "parameters": 2}]


def test_a_run_with_a_users_part_is_loaded_from_anywhere(call, tmp_path, module):
    """The run folder's config knows where the user's module stands; a fresh process finds it."""
    module("own_elsewhere", ENERGY)
    solver = '{name = "fixed_steps", steps = 5}'
    folder = run(
        call,
        tmp_path,
        XOR,
        *sets("rule.name=eqprop", "system.name=own_elsewhere:linear", "training.epochs=1"),
        *sets(f"solvers.free={solver}", f"solvers.nudged={solver}"),
    )
    program = f"import bpeq; print(bpeq.load_run({str(folder)!r}).params[0]['w'].shape)"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/", env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "(2, 1)\n")
