"""One run by two processes over loopback: one device's metrics, and a clear line for a lost one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from bpeq.cli import supervisor
from bpeq.config.loading import ConfigError, load_config
from bpeq.experiment import distributed
from bpeq.runs.resume import resume_command
from bpeq.types import DataError

CONFIG = """\
seeds = 2
precision = "float64"
data.name = "xor"
network.layers = ["dense(4)", "tanh", "dense(1)"]
rule = {name = "eqprop", beta = 0.1}
solvers.free = {name = "fixed_point", tolerance = 1e-9, max_steps = 100}
solvers.nudged = {name = "fixed_steps", steps = 5}
training = {epochs = 20, batch_size = 4, evaluate_every = 10}
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    return path


def start(*argv: object) -> subprocess.Popen:
    environment = os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(jax.config.jax_compilation_cache_dir),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    program = [sys.executable, "-c", "from bpeq.cli import script; script()", *map(str, argv)]
    pipe = subprocess.PIPE
    return subprocess.Popen(program, env=environment, stdout=pipe, stderr=pipe, text=True)


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def children(parent: int) -> list[int]:
    found = subprocess.run(["pgrep", "-P", str(parent)], capture_output=True, text=True)
    return sorted(map(int, found.stdout.split()))


@pytest.mark.long
def test_two_processes_have_the_metrics_of_one_and_the_first_one_writes(call, config, tmp_path):
    two = start("run", config, "--processes", 2, "--out", tmp_path / "two")
    assert call("run", config, "--out", tmp_path / "one").code == 0
    out, err = two.communicate(timeout=300)
    assert two.returncode == 0, err
    assert out.count("report.html") == 1
    environment = json.loads((tmp_path / "two" / "environment.json").read_text())
    assert len(environment["devices"]) == 2
    names = {p.name for p in (tmp_path / "one").iterdir()}
    assert {p.name for p in (tmp_path / "two").iterdir()} == names
    one, both = rows(tmp_path / "one"), rows(tmp_path / "two")
    assert len(one) == len(both) == 2
    for a, b in zip(one, both, strict=True):
        for name, values in a["values"].items():
            assert b["values"][name] == pytest.approx(values, rel=1e-12, abs=1e-12), name


def started(config: Path, folder: Path) -> tuple[subprocess.Popen, list[int]]:
    """A run of two processes that has logged three rows, and would log many more."""
    longer = ["--set", "training.epochs=2000000", "--set", "training.evaluate_every=1000"]
    parent = start("run", config, "--processes", 2, "--out", folder, *longer)
    until = time.monotonic() + 300
    while not (folder / "metrics.jsonl").exists() or len(rows(folder)) < 3:
        assert parent.poll() is None
        assert time.monotonic() < until
        time.sleep(0.2)
    return parent, children(parent.pid)


def ended(pids: list[int]) -> bool:
    until = time.monotonic() + 60
    while time.monotonic() < until:
        if not any(Path(f"/proc/{pid}").exists() for pid in pids):
            return True
        time.sleep(0.1)
    return False


@pytest.mark.long
@pytest.mark.parametrize("who", [0, 1])
def test_a_process_that_is_killed_ends_the_run_with_one_line(config, tmp_path, who):
    parent, pids = started(config, tmp_path / "run")
    os.kill(pids[who], signal.SIGKILL)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 3
    lines = [line for line in err.splitlines() if line.startswith("bpeq: ")]
    said = f"bpeq: process {who} of 2 was ended by SIGKILL; what was saved is in {tmp_path / 'run'}"
    assert lines == [f"{said}; go on with: bpeq run {tmp_path / 'run'} --resume --processes 2"]
    assert "Traceback" not in err
    assert ended(pids)
    assert list((tmp_path / "run" / "checkpoints").glob("*.safetensors"))


@pytest.mark.long
def test_a_run_whose_process_was_killed_goes_on_as_if_nothing_had_happened(config, tmp_path):
    """In two processes, and in the end to the very rows of one that was never interrupted."""
    length = ["--set", "training.epochs=20000", "--set", "training.evaluate_every=1000"]
    whole = start("run", config, "--processes", 2, "--out", tmp_path / "whole", *length)
    whole.communicate(timeout=300)
    parent = start("run", config, "--processes", 2, "--out", tmp_path / "run", *length)
    until = time.monotonic() + 300
    while not (tmp_path / "run" / "metrics.jsonl").exists() or len(rows(tmp_path / "run")) < 5:
        assert time.monotonic() < until
        time.sleep(0.05)
    os.kill(children(parent.pid)[1], signal.SIGKILL)
    _, err = parent.communicate(timeout=60)
    assert parent.returncode == 3, err
    again = start("run", config, "--processes", 2, "--out", tmp_path / "run", "--resume", *length)
    _, err = again.communicate(timeout=300)
    assert again.returncode == 0, err
    timed = ("seconds",)
    a, b = (
        [{k: v for k, v in r.items() if k not in timed} for r in rows(tmp_path / name)]
        for name in ("whole", "run")
    )
    assert a == b
    assert len(a) == 20


@pytest.mark.long
def test_what_all_processes_refuse_is_said_once(config, tmp_path):
    parent = start("run", config, "--processes", 3, "--out", tmp_path / "run")
    _, err = parent.communicate(timeout=120)
    assert parent.returncode == 2
    said = "training.batch_size = 4: must be a multiple of 3, the devices that share a batch"
    assert err.splitlines() == [f"bpeq: {config}:{said}"]


@pytest.mark.long
def test_a_signal_stops_all_processes_after_the_same_stretch(config, tmp_path):
    parent, pids = started(config, tmp_path / "run")
    parent.send_signal(signal.SIGTERM)
    _, err = parent.communicate(timeout=120)
    assert parent.returncode == 143
    assert "stopped after epoch" in err
    assert f"go on with: bpeq run {tmp_path / 'run'} --resume --processes 2" in err
    assert (tmp_path / "run" / "params.safetensors").exists()
    assert ended(pids)


@pytest.mark.long
def test_processes_end_with_their_launcher(config, tmp_path):
    parent, pids = started(config, tmp_path / "run")
    parent.kill()
    parent.communicate()
    assert ended(pids)


def test_the_command_that_continues_a_run_has_its_processes(tmp_path):
    folder = tmp_path / "a run"
    folder.mkdir()
    start = f"bpeq run '{folder}' --resume"
    assert resume_command(folder) == start
    (folder / "environment.json").write_text('{"processes": 3}')
    assert resume_command(folder) == f"{start} --processes 3"
    options = {"--coordinator": "h:1", "--process-count": 2, "--process-id": 0}
    words = "--coordinator h:1 --process-count 2 --process-id 0"
    assert resume_command(folder, options) == f"{start} {words}"


def test_a_lost_process_leaves_the_whole_command_that_continues_its_run(
    call, config, tmp_path, monkeypatch
):
    """The processes are played by programs that end at once; the folder holds a begun run."""
    folder = tmp_path / "run"

    def start(argv: list[str], log: Path, first: bool) -> subprocess.Popen:
        folder.mkdir(exist_ok=True)
        (folder / "config.toml").touch()
        program = [sys.executable, "-c", "import os; os.kill(os.getpid(), 9)"]
        return subprocess.Popen(program, stdin=subprocess.PIPE)

    monkeypatch.setattr(supervisor, "_start", start)
    said = call("run", config, "--out", folder, "--processes", 2)
    assert said.code == 3
    (line,) = said.err
    assert line.endswith(f"; go on with: bpeq run {folder} --resume --processes 2")


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--processes", 0], "--processes = 0: must be a whole number >= 1"),
        (["--coordinator", "here"], "--coordinator = 'here': must be HOST:PORT or auto"),
        (["--coordinator", "h:65536"], "--coordinator = 'h:65536': must be HOST:PORT or auto"),
        (["--coordinator", "h:1"], "--process-count: must be a whole number >= 1"),
        (
            ["--coordinator", "h:1", "--process-count", 2, "--process-id", 2],
            "--process-id = 2: must be 0 to 1",
        ),
        (["--process-id", 1], "--process-id = 1: means nothing without --coordinator"),
    ],
)
def test_what_is_wrong_with_the_options_is_one_line_and_nothing_is_written(
    call, config, tmp_path, options, line
):
    said = call("run", config, "--out", tmp_path / "run", *options)
    assert said.code == 2
    assert len(said.err) == 1
    assert line in said.err[0]
    assert not (tmp_path / "run").exists()


def test_auto_outside_of_a_cluster_is_one_line(monkeypatch):
    def initialize(*args: object, **more: object) -> None:
        raise ValueError("coordinator_address should be defined.")

    monkeypatch.setattr(jax.config, "update", lambda *setting: None)
    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(
        ConfigError, match="--coordinator = 'auto': the environment does not say it"
    ):
        distributed.join_processes("auto")


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (("seed=1", "a"), ("seed=2", "a"), "c.toml: the settings are not the same in all proc"),
        (("seed=1", "a"), ("seed=1", "b"), "c.toml: the data are not the same in all processes"),
        (("seed=1", "a"), ("seed=1", "a"), ""),
    ],
)
def test_processes_that_would_not_compute_the_same_are_refused(
    config, monkeypatch, one, other, said
):
    """Each hands in a digest of what it has; the second process is played by a second call."""
    handed: list[int] = []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(distributed, "_gather", lambda n: handed.append(n) or np.array([n, n]))
    distributed.assert_same_config(load_config(config, [one[0]]), one[1])
    there = iter(handed)
    monkeypatch.setattr(distributed, "_gather", lambda n: np.array([next(there), n]))
    if not said:
        return distributed.assert_same_config(load_config(config, [other[0]]), other[1])
    with pytest.raises((ConfigError, DataError), match=said):
        distributed.assert_same_config(load_config(config, [other[0]]), other[1])


@pytest.mark.parametrize(
    ("log", "words"),
    [
        ("[Gloo] Rank 1 is connected to 1 peer ranks.", ""),
        (
            "E1 add_port.cc:83] Failed to add port to server: No",
            " (the coordinator's port is taken)",
        ),
        ("bpeq: c.toml: odd\n[Gloo] Rank 1", " (c.toml: odd)"),
        (
            "F1 ] fatal: Deadline\nRPC: /x.CoordinationService/RegisterTask\n  @ 0x7f main",
            " (the others did not arrive in time)",
        ),
        (
            "F1 client.h:80] the JAX distributed service detected fatal errors. This\n @ 0x7f",
            " (it lost the others)",
        ),
        ("Traceback (most recent call last):\n  File\nOSError: no", " (OSError: no)"),
    ],
)
def test_what_a_lost_process_said_last_is_told(tmp_path, log, words):
    (tmp_path / "log").write_text(log)
    assert supervisor._last_words(tmp_path / "log") == words


@pytest.mark.parametrize(
    ("codes", "who"),
    [
        ([None, -signal.SIGKILL], 1),
        ([supervisor.ALONE, -signal.SIGKILL], 1),
        ([-signal.SIGABRT, -signal.SIGKILL], 1),
        ([supervisor.ALONE, 1], 1),
        ([-signal.SIGABRT, None], 0),
        ([None, supervisor.ALONE, None], 1),
    ],
)
def test_the_process_that_the_others_lost_is_named(codes, who):
    assert max(range(len(codes)), key=lambda i: supervisor._blame(codes[i])) == who
