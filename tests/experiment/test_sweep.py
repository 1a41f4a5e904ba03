"""Sweeps: every run once, whoever runs it and whoever is killed; a failure loses that run only."""

from __future__ import annotations

import collections
import csv
import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest
from filelock import FileLock

from bpeq.config.loading import ConfigError, load_config
from bpeq.experiment import sweep as sweeping
from bpeq.experiment import sweep_grid, tune
from bpeq.runs import lock, run_folder
from bpeq.types import DataError

CONFIG = """\
data.name = "xor"
network.layers = ["dense(4)", "tanh", "dense(1)"]
rule = {name = "backprop"}
optimizer = {name = "sgd", learning_rate = 0.1}
training = {epochs = 4, batch_size = 4, evaluate_every = 2}
"""
RATES = ("--grid", "optimizer.learning_rate=0.1,0.2,1e30")


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    return path


def log(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "sweep.log").read_text().splitlines()]


def ends(folder: Path) -> collections.Counter:
    """How often each run came to its end."""
    return collections.Counter(row["run"] for row in log(folder) if row["event"] == "finished")


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("rule.beta=0.1,0.2", ["0.1", "0.2"]),
        ("network.layers.0=dense(4, bias=false),'a,b'", ["dense(4, bias=false)", "'a,b'"]),
        ("optimizer.layer_rates=[1.0, 2.0],[3.0, 4.0]", ["[1.0, 2.0]", "[3.0, 4.0]"]),
    ],
)
def test_commas_inside_of_brackets_and_quotes_are_the_values(text, values):
    assert list(sweep_grid.read_grids([text]).values()) == [values]


def test_a_failure_loses_that_run_only_and_the_same_command_runs_nothing_twice(
    call, config, tmp_path
):
    folder = tmp_path / "sweep"
    said = call("sweep", config, *RATES, "--seeds", 2, "--out", folder)
    assert said.code == 4
    assert len(said.err) == 1
    assert "1 of 3 runs failed" in said.err[0]
    assert "diverged" in said.err[0]
    sweep = json.loads((folder / "sweep.json").read_text())
    states = {row["settings"]["optimizer.learning_rate"]: row["state"] for row in sweep["runs"]}
    assert states == {0.1: "finished", 0.2: "finished", 1e30: "failed"}
    for row in sweep["runs"][:2]:
        summary = json.loads((folder / row["run"] / "summary.json").read_text())
        assert summary["metrics"] == row["metrics"]
        assert len(row["metrics"]["test_error"]["values"]) == 2
    with (folder / "sweep.csv").open() as file:
        table = list(csv.DictReader(file))
    assert [row["optimizer.learning_rate"] for row in table] == ["0.1", "0.2", "1e+30"]
    mean = sweep["runs"][0]["metrics"]["test_loss"]["mean"]
    assert float(table[0]["test_loss_mean"]) == mean
    assert {p.name for p in folder.iterdir()} >= {"report.html", "sweep.png"}
    assert len(log(folder)) == 6  # each started and ended
    before = [row["run"] for row in log(folder)]
    again = call("sweep", config, *RATES, "--seeds", 2, "--out", folder)
    assert again.code == 4
    assert [row["run"] for row in log(folder)] == before
    # a longer grid runs what is new; a record of failure that was deleted gives another try
    (folder / f"{sweep['runs'][2]['run']}.failed.json").unlink()
    more = call("sweep", config, RATES[0], f"{RATES[1]},0.3", "--seeds", 2, "--out", folder)
    assert more.code == 4
    assert len(log(folder)) == 10
    assert set(ends(folder).values()) == {1}
    assert len(ends(folder)) == 3


def test_what_another_worker_has_is_left_to_it_until_it_has_gone(config, tmp_path):
    grid = sweep_grid.read_grids(["optimizer.learning_rate=0.1,0.2"])
    found = sweep_grid.grid_runs(load_config(config), grid)
    folder = tmp_path / "sweep"
    sweeping.open_folder(folder)
    said = []

    def progress(done, total, row):
        said.append(row["said"])
        if "waiting" in row["said"]:
            other.release()  # as the system does when a process ends

    other = FileLock(folder / sweeping.CLAIMS / found[0].name)
    other.acquire()
    sweeping.run_all(found, folder, progress)
    assert "waiting for 1 that others run" in said
    assert [row["run"] for row in log(folder)] == [found[1].name] * 2 + [found[0].name] * 2


def test_a_worker_that_comes_second_to_an_empty_folder_joins_in(tmp_path, monkeypatch):
    """Another one makes the sweep's folder after this one has looked, and before it makes it."""
    claim = run_folder.create_folder

    def late(folder):
        monkeypatch.undo()
        sweeping.open_folder(folder)
        return claim(folder)

    monkeypatch.setattr(run_folder, "create_folder", late)
    sweeping.open_folder(tmp_path / "sweep")
    assert {p.name for p in (tmp_path / "sweep").iterdir()} == {sweeping.CLAIMS}


def test_workers_write_what_a_sweep_shows_one_after_the_other(tmp_path):
    """Both would write the same temporary file, and one would rename the other's away."""
    sweeping.open_folder(tmp_path / "sweep")
    inside = []

    def worker():
        with sweeping.one_writer(tmp_path / "sweep"):
            inside.append("second")

    second = threading.Thread(target=worker)
    with sweeping.one_writer(tmp_path / "sweep"):
        second.start()
        second.join(0.2)
        inside.append("first")
    second.join()
    assert inside == ["first", "second"]


def test_a_run_that_a_process_outside_of_the_sweep_writes_is_waited_for(config, tmp_path):
    found = sweep_grid.grid_runs(load_config(config), sweep_grid.read_grids(["seed=1"]))
    folder, said = tmp_path / "sweep", []
    sweeping.open_folder(folder)
    outside = lock.lock_folder(folder / found[0].name)
    outside.__enter__()

    def progress(done, total, row):
        said.append(row["said"])
        if said.count("waiting for 1 that others run") == 1 and "waiting" in row["said"]:
            outside.__exit__(None, None, None)

    sweeping.run_all(found, folder, progress)
    assert [row["event"] for row in log(folder)] == ["started", "finished"]
    assert sweeping.failure(folder, found[0]) is None


def test_a_damaged_run_is_lost_and_a_disk_at_fault_stops_all(config, tmp_path, monkeypatch):
    found = sweep_grid.grid_runs(load_config(config), sweep_grid.read_grids(["seed=1,2"]))
    folder = tmp_path / "sweep"
    sweeping.open_folder(folder)
    (folder / found[0].name).mkdir()
    (folder / found[0].name / "config.toml").write_text("seed = ")
    sweeping.run_all(found, folder)
    failed = sweeping.failure(folder, found[0])
    assert failed is not None
    assert failed["code"] == 3
    assert f"{found[0].name}/config.toml: cannot read" in failed["said"]
    assert dict(ends(folder)) == {found[1].name: 1}

    def full(*args, **more):
        raise DataError("metrics.jsonl: cannot write") from OSError(28, "No space left on device")

    monkeypatch.setattr("bpeq.experiment.train.run", full)
    more = sweep_grid.grid_runs(load_config(config), sweep_grid.read_grids(["seed=3"]))
    with pytest.raises(DataError, match="cannot write"):
        sweeping.run_all(more, folder)
    assert sweeping.failure(folder, more[0]) is None


def test_a_file_system_without_locks_is_one_line(call, config, tmp_path, monkeypatch):
    def acquire(self):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(FileLock, "acquire", acquire)
    said = call("sweep", config, *RATES, "--out", tmp_path / "sweep")
    assert (said.code, len(said.err)) == (3, 1)
    assert ".claims/shown: cannot lock: No locks available" in said.err[0]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ((), "--grid: is missing; allowed: key=value,value such as rule.beta=0.1,0.2"),
        (("--grid", "seed"), "--grid seed: must be key=value,value such as"),
        (("--grid", "seed=1,,2"), "--grid seed=1,,2: must be key=value,value such as"),
        (("--grid", "seed=1,1"), "--grid seed = 1,1: must be different values"),
        (("--grid", "seed=1", "--grid", "seed=2"), "--grid seed = 2: is there twice"),
        (("--grid", "sed=1,2"), "--grid sed = 1: unknown key; allowed: seed"),
        (("--grid", "seed=1,-2"), "--grid seed = -2: must be a whole number >= 0"),
        (("--grid", "training.batch_size=4,5"), "--grid training.batch_size = 5: must be 1 to 4"),
        (("--grid", "seed=1,2", "--set", "seeds=0"), "--set seeds = 0: must be a whole number"),
        (("--grid", "training.epochs=1,9", "--set", "checkpoint_share=2"), "checkpoint_share = 2:"),
        (("--grid", "checkpoint_share=0.1,0.2"), "are the same run"),
        (("--grid", "devices=1,99"), "--grid devices = 99: must be 1 to "),
        (("--grid", "seed=1,2", "--set", "devices=99"), "--set devices = 99: must be 1 to "),
    ],
)
def test_what_is_wrong_with_a_grid_is_one_line_and_nothing_is_written(
    call, config, tmp_path, options, line
):
    said = call("sweep", config, "--out", tmp_path / "sweep", *options)
    assert said.code == 2
    assert len(said.err) == 1
    assert line in said.err[0]
    assert not (tmp_path / "sweep").exists()


@pytest.mark.parametrize(
    ("texts", "space"),
    [
        (["0.1", "0.2"], ["0.1", "0.2"]),
        (["1e-4..1e-1:log"], (1e-4, 0.1, True)),
        (["4..16"], (4, 16, False)),
        (["-1.5..2"], (-1.5, 2.0, False)),
    ],
)
def test_a_range_is_two_numbers_of_one_kind(texts, space):
    assert sweep_grid.read_range("key", texts) == space


@pytest.mark.parametrize("text", ["2..1", "0..1:log", "a..b", "1..1"])
def test_a_range_that_means_nothing_is_refused(text):
    with pytest.raises(ConfigError, match=r"must be LOW\.\.HIGH with LOW < HIGH"):
        sweep_grid.read_range("rule.beta", [text])


def test_a_search_runs_its_trials_and_the_same_command_runs_no_more(call, config, tmp_path):
    options = [
        "--search",
        3,
        "--grid",
        "optimizer.learning_rate=1e-2..1:log",
        *RATES[:1],
        "seed=0..9",
    ]
    for _ in range(2):
        said = call("sweep", config, *options, "--out", tmp_path / "sweep")
        assert said.code == 0, said
        sweep = json.loads((tmp_path / "sweep" / "sweep.json").read_text())
        assert [row["state"] for row in sweep["runs"]] == ["finished"] * 3
        assert len(ends(tmp_path / "sweep")) == 3
    for row in sweep["runs"]:
        assert 1e-2 <= row["settings"]["optimizer.learning_rate"] <= 1
        assert row["settings"]["seed"] in range(10)
    options[3] = "optimizer.learning_rate=0.1,0.2"
    options[1] = 4
    said = call("sweep", config, *options, "--out", tmp_path / "sweep")
    assert said.code == 2
    assert "learning_rate = 0.1,0.2: the search in this folder began with other" in said.err[0]


def test_workers_of_a_search_draw_each_a_trial_of_its_own(config, tmp_path, monkeypatch):
    """The second begins while the first has its first trial, of which nobody knows the end."""
    checked, grid = load_config(config), sweep_grid.read_grids(["optimizer.learning_rate=0.1..1.0"])
    drawn: list[float] = []

    def run_all(runs, folder, *how):
        drawn.append(runs[0].settings["optimizer.learning_rate"])
        if len(drawn) < 3:
            tune.search(checked, grid, 1, folder, "validation_error")
        raise KeyboardInterrupt

    monkeypatch.setattr(sweeping, "run_all", run_all)
    with pytest.raises(KeyboardInterrupt):
        tune.search(checked, grid, 1, tmp_path, "validation_error")
    assert len(set(drawn)) == 3


def test_a_folder_that_holds_something_else_is_refused(call, config, tmp_path):
    said = call("sweep", config, *RATES, "--out", tmp_path)
    assert said.code == 2
    assert "is not empty" in said.err[0]
    assert {p.name for p in tmp_path.iterdir()} == {"c.toml"}


@pytest.mark.long
def test_24_runs_on_two_workers_of_which_one_is_killed_and_started_again(config, tmp_path):
    """All 24 complete, none runs twice to its end, and the one that was cut short goes on."""
    folder = tmp_path / "sweep"
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    grids = ["optimizer.learning_rate=0.1,0.2,0.3,0.4,0.5,0.6", "seed=0,1,2,3"]
    length = ["training.epochs=20000", "training.evaluate_every=100", "checkpoint_share=1.0"]
    options = [*(f"--grid={g}" for g in grids), *(f"--set={s}" for s in length)]
    program = [
        sys.executable,
        "-c",
        "from bpeq.cli import script; script()",
        "sweep",
        str(config),
    ]

    def worker() -> subprocess.Popen:
        pipe = subprocess.PIPE
        argv = [*program, *options, "--out", str(folder)]
        return subprocess.Popen(argv, env=environment, stdout=pipe, stderr=pipe, text=True)

    first, second = worker(), worker()
    until = time.monotonic() + 600

    def begun() -> list[str]:
        rows = log(folder) if (folder / "sweep.log").exists() else []
        return [r["run"] for r in rows if r["worker"].endswith(f":{first.pid}")]

    while len(begun()) < 5 or not list((folder / begun()[-1]).glob("checkpoints/*")):
        assert time.monotonic() < until
        assert first.poll() is None
        time.sleep(0.02)
    os.kill(first.pid, signal.SIGKILL)
    first.communicate()
    third = worker()
    for each in (second, third):
        _, err = each.communicate(timeout=900)
        assert each.returncode == 0, err
    sweep = json.loads((folder / "sweep.json").read_text())
    assert [row["state"] for row in sweep["runs"]] == ["finished"] * 24
    assert len({row["run"] for row in sweep["runs"]}) == 24
    assert ends(folder) == {row["run"]: 1 for row in sweep["runs"]}
    events = collections.Counter(row["event"] for row in log(folder))
    assert events["finished"] == events["started"] == 24
    assert events["resumed"] == 1
    workers = {row["worker"] for row in log(folder) if row["event"] == "finished"}
    assert len(workers) >= 2
