"""A run that was stopped or killed, wherever, and gone on with is the run that never was."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import shutil
import signal
import socket
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bpeq.cli import signals
from bpeq.experiment.runner import Runner
from bpeq.runs import host_arrays, lock, run_folder
from bpeq.runs.metrics_log import MetricsLog
from bpeq.types import Caution

POINTS = """\
seeds = 2
checkpoint_share = 1.0

[data]
name = "npz"
path = "points.npz"
splits = 1

[network]
layers = ["dense(5)", "tanh", "dense(3)"]

[optimizer]
name = "adam"
learning_rate = 0.02

[training]
epochs = 4
batch_size = 20
"""
SETTLE = """\
[solvers.free]
name = "fixed_point"
tolerance = 1e-4
max_steps = 30

[solvers.nudged]
name = "fixed_steps"
steps = 3
"""
RULES = {
    "adam": '[rule]\nname = "backprop"\n',
    "feedback": '[rule]\nname = "kolen_pollack"\n[rules.kolen_pollack.optimizer]\nname = "adamw"\n'
    "learning_rate = 0.02\nweight_decay = 0.01\n",
    "random signs": f'{SETTLE}[rule]\nname = "eqprop"\nnudging = "random-sign"\n',
    "chosen beta": f'{SETTLE}[rule]\nname = "eqprop"\nbeta = "auto"\n',
    "kept states": f'{SETTLE}[rule]\nname = "eqprop"\nstart = "kept"\n',
}
SIMPLE = POINTS + RULES["adam"]
SHORT = SIMPLE.replace("epochs = 4", "epochs = 2")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bpeq.report.write_report", _page)
    noise = np.random.default_rng(0)
    labels = np.arange(60) % 3
    centres = np.array([[0.0, 1.0], [1.0, -1.0], [-1.0, -1.0]])
    np.savez(tmp_path / "points.npz", x=centres[labels] + noise.normal(0, 0.8, (60, 2)), y=labels)


def _page(folder: Path) -> Path:
    (folder / "report.html").write_text("<!DOCTYPE html>")
    return folder / "report.html"


def rows(folder: Path) -> list[dict[str, Any]]:
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if "seconds" not in k} for row in logged]


def bits(path: Path) -> dict[str, bytes]:
    return {name: array.tobytes() for name, array in load_file(path).items()}


def files(folder: Path) -> dict[str, bytes]:
    found = {p for p in folder.rglob("*") if p.is_file() and p.name not in (".lock", ".holder")}
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def stops_after(monkeypatch, count: int) -> None:
    """A signal comes after so many rows, of this process's next run."""
    left = [count]

    def stop() -> int | None:
        left[0] -= 1
        return signal.SIGTERM if left[0] <= 0 else None

    monkeypatch.setattr(signals, "asked_to_stop", stop)


def stopped(call, monkeypatch, text: str, after: int, out: str = "out") -> Path:
    """The folder of a run that a signal ended after so many rows."""
    Path("c.toml").write_text(text)
    stops_after(monkeypatch, after)
    said = call("run", "c.toml", "--out", out)
    how = (
        f"bpeq: stopped after epoch {after} of 4; saved {out}; go on with: bpeq run {out} --resume"
    )
    assert (said.code, said.err) == (143, [how])
    monkeypatch.setattr(signals, "asked_to_stop", lambda: None)
    return Path(out)


def whole(call, text: str) -> Path:
    Path("c.toml").write_text(text)
    said = call("run", "c.toml", "--out", "whole")
    assert (said.code, said.err) == (0, [])
    return Path("whole")


def same(folder: Path, other: Path) -> None:
    assert rows(folder) == rows(other)
    assert bits(folder / "params.safetensors") == bits(other / "params.safetensors")
    metrics = [json.loads((f / "summary.json").read_text())["metrics"] for f in (folder, other)]
    assert metrics[0] == metrics[1]


# --- the bits ----------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES)
def test_a_stopped_run_goes_on_to_the_very_bits_of_one_that_was_not(call, monkeypatch, rule):
    never = whole(call, POINTS + RULES[rule])
    folder = stopped(call, monkeypatch, POINTS + RULES[rule], 1)
    stops_after(monkeypatch, 2)  # of the three that are left
    assert call("run", folder, "--resume").code == 143
    monkeypatch.setattr(signals, "asked_to_stop", lambda: None)
    said = call("run", "c.toml", "--out", folder, "--resume")
    assert (said.code, said.err) == (0, [])
    same(folder, never)
    assert set(files(folder)) == set(files(never))


class Killed(BaseException):
    """Nothing in bpeq catches it: what was on the disk then is what there is."""


class Loop:
    """Two loops of a study, each with every kind of leaf; `run` gives all that comes out."""

    def __init__(self) -> None:
        def turn(carry: Any, i: Any) -> tuple[Any, Any]:
            w, z, half, count, flag, key = carry
            key, own = jax.random.split(key)
            w = jnp.float32(0.9) * w + jax.random.normal(own, w.shape, jnp.float32)
            z = z * jnp.complex64(0.6 + 0.8j) + w.sum().astype(jnp.complex64)
            half = (half + w.astype(jnp.bfloat16)).astype(jnp.bfloat16)
            loss = jnp.stack([w.sum(), jnp.where(i == 2, jnp.float32(jnp.inf), z.real)])
            return (w, z, half, count + 1, ~flag, key), loss

        @jax.jit
        def run(carry: Any, keys: Any, first: Any) -> tuple[Any, Any]:
            carry, found = jax.lax.scan(turn, carry, first + jnp.arange(2))
            return carry, {"found": found.T}

        run_any = lambda carry, keys, first, count: run(carry, keys, first)  # noqa: E731
        self._run = jax.jit(run_any, static_argnums=3)
        self._start = (
            *(jnp.zeros(3, jnp.float32), jnp.complex64(1j), jnp.ones(3, jnp.bfloat16)),
            *(jnp.int32(0), jnp.asarray(True), jax.random.key(7)),
        )

    def run(self, folder: Path, resume: bool = False) -> Any:
        folder.mkdir(exist_ok=True)
        runner = Runner(folder, "loop", identity={"config": "one"}, resume=resume)
        ends = []
        for name in ("first", "second"):
            carry, values, logged = runner.repeat(
                self._run,
                self._start,
                (jax.random.key(1),),
                total=6,
                every=2,
                measure=lambda carry: {"w": carry[0][:2]},
                name=name,
            )
            assert {v.dtype.name for row in logged for v in row["values"].values()} == {"float32"}
            ends.append([_bytes((carry, values)), [_bytes(row["values"]) for row in logged]])
            ends[-1].append([{k: v for k, v in r.items() if k not in OURS} for r in logged])
        return str(ends), rows(folder)


OURS = ("seconds", "values")


def _bytes(tree: Any) -> list[Any]:
    host = jax.tree.leaves(host_arrays.to_host(tree))
    return [(np.asarray(leaf).dtype.name, np.asarray(leaf).tobytes()) for leaf in host]


@contextlib.contextmanager
def killed_at(monkeypatch, moment: int) -> Iterator[list[int]]:
    """The nth time that a run touches the disk it is killed, in the midst of it; counts them."""
    count = [0]

    def before(
        f: Callable[..., Any], half: Callable[..., None] | None = None
    ) -> Callable[..., Any]:
        def touched(*args: Any, **more: Any) -> Any:
            count[0] += 1
            if count[0] == moment:
                if half is not None:
                    half(*args)
                raise Killed
            return f(*args, **more)

        return touched

    def half_a_row(log: MetricsLog, row: Any) -> None:
        with log.path.open("ab") as file:
            file.truncate(log.size)
            file.write(b'{"step": 2, "trai')

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", before(lambda handle: None))
        for name in ("replace", "unlink", "mkdir"):
            patch.setattr(Path, name, before(getattr(Path, name)))
        patch.setattr(MetricsLog, "append", before(MetricsLog.append, half_a_row))
        yield count


def test_a_study_killed_at_any_write_and_gone_on_with_loses_and_doubles_nothing(
    tmp_path, monkeypatch
):
    loop = Loop()
    with jax.enable_x64(False), jax.numpy_dtype_promotion("standard"), warnings.catch_warnings():
        warnings.simplefilter("ignore", Caution)  # of what was half written
        monkeypatch.setattr(os, "fsync", lambda handle: None)
        with killed_at(monkeypatch, -1) as count:
            never = loop.run(tmp_path / "never")
        assert (count[0] > 40, len(never[1])) == (True, 6)
        for moment in range(1, count[0] + 1):
            folder = tmp_path / str(moment)
            with pytest.raises(Killed), killed_at(monkeypatch, moment):
                loop.run(folder)
            again = moment // 2 + 1  # and once more, while it goes on
            with contextlib.suppress(Killed), killed_at(monkeypatch, again):
                loop.run(folder, resume=True)
            assert loop.run(folder, resume=True) == never, moment
            shutil.rmtree(folder)


def test_a_run_killed_at_its_first_and_last_writes_is_whole_once_gone_on_with(call, monkeypatch):
    killed_and_gone_on_with(call, monkeypatch, lambda count: (2, 5, count - 5, count - 1))


@pytest.mark.long
def test_a_run_killed_at_any_write_is_whole_once_gone_on_with(call, monkeypatch):
    killed_and_gone_on_with(call, monkeypatch, lambda count: range(1, count + 1))


def killed_and_gone_on_with(call, monkeypatch, moments: Callable[[int], Iterable[int]]) -> None:
    """From before config.toml to after the report: `moments` of those when it touches the disk."""
    with killed_at(monkeypatch, -1) as count:
        never = whole(call, SHORT)
    assert count[0] > 10
    for moment in moments(count[0]):
        with pytest.raises(Killed), killed_at(monkeypatch, moment):
            call("run", "c.toml", "--out", "out")
        said = call("run", "c.toml", "--out", "out", "--resume")
        assert (said.code, len(said.err) <= 1) == (0, True), (moment, said.err)
        same(Path("out"), never)
        assert set(files(Path("out"))) == set(files(never)), moment
        assert call("verify", "out", "--files").code == 0
        shutil.rmtree("out")


# --- what a folder is found to hold ------------------------------------------------------------


@pytest.fixture
def half(call, monkeypatch) -> Path:
    """A run that was stopped after two of four epochs, and has two checkpoints."""
    return stopped(call, monkeypatch, SIMPLE, 2)


def goes_on(call, folder: Path, err: list[str]) -> None:
    """Resumed it says this, and ends as a run that was never stopped."""
    said = call("run", folder, "--resume")
    assert (said.code, said.err) == (0, err)
    same(folder, whole(call, SIMPLE))


def newest(folder: Path) -> Path:
    found = sorted((folder / "checkpoints").glob("*.safetensors"))
    assert [path.stem for path in found] == ["1-000000001", "1-000000002"]
    return found[-1]


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-3] ^= 4
    path.write_bytes(bytes(content))


def test_of_a_damaged_checkpoint_is_told_and_the_one_before_taken(call, half):
    path = newest(half)
    flip(path)
    why = "is damaged: its checksum is wrong: the run goes on from 1-000000001.safetensors"
    goes_on(call, half, [f"bpeq: {path}: {why}"])


def test_where_every_checkpoint_is_damaged_the_run_starts_anew_and_says_so(call, half):
    for path in (half / "checkpoints").glob("*.safetensors"):
        flip(path)
    said = call("run", half, "--resume")
    assert (said.code, len(said.err)) == (0, 1)
    assert said.err[0].endswith(": the run starts anew")
    same(half, whole(call, SIMPLE))


def test_a_run_killed_before_its_first_checkpoint_starts_anew_and_says_so(call, half):
    shutil.rmtree(half / "checkpoints")
    goes_on(call, half, ["bpeq: out: has no checkpoint yet: the run starts anew"])


def test_a_row_half_written_is_cut_off(call, half):
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"epoch": 3, "st')
    goes_on(call, half, [])


@pytest.mark.parametrize("rows", [0, 1])
def test_changed_rows_are_refused_unless_a_checkpoint_stood_before_them(call, half, rows):
    lines = (half / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines[rows] = lines[rows].replace('"epoch": ', '"epoch":  ')
    (half / "metrics.jsonl").write_text("".join(lines))
    if rows:
        why = "out/metrics.jsonl was changed: the run goes on from 1-000000001.safetensors"
        return goes_on(call, half, [f"bpeq: {newest(half)}: {why}"])
    before = files(half)
    said = call("run", half, "--resume")
    assert (said.code, len(said.err)) == (3, 1)
    assert said.err[0].startswith("bpeq: out/metrics.jsonl: was changed: its rows are not those")
    assert files(half) == before


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (SIMPLE.replace('"dense(5)"', '"dense(6)"'), "is of another run: its config is not this"),
        (SIMPLE.replace("seeds = 2", "seeds = 2\nseed = 1"), "is of another run: its config"),
    ],
)
def test_a_checkpoint_of_another_network_or_seed_is_refused(call, half, monkeypatch, text, problem):
    other = stopped(call, monkeypatch, text, 2, "other")
    shutil.rmtree(half / "checkpoints")
    shutil.copytree(other / "checkpoints", half / "checkpoints")
    shutil.copy(other / "metrics.jsonl", half)
    before = files(half)
    said = call("run", half, "--resume")
    assert (said.code, len(said.err)) == (3, 1)
    assert said.err[0].startswith(f"bpeq: {newest(half)}: {problem}")
    assert files(half) == before


@pytest.mark.parametrize(
    ("pair", "line"),
    [
        ("optimizer.learning_rate=0.5", "optimizer.learning_rate = 0.5: the run in out has 0.02"),
        ("training.epochs=5", "training.epochs = 5: the run in out has 4"),
        ("seeds=3", "seeds = 3: the run in out has 2"),
        ('network.layers=["dense(3)"]', "network.layers = "),
    ],
)
def test_another_config_is_refused_and_the_key_named(call, half, pair, line):
    before = files(half)
    said = call("run", "c.toml", "--out", half, "--resume", "--set", pair)
    assert (said.code, len(said.err)) == (2, 1)
    assert said.err[0].startswith(f"bpeq: --set {line}")
    assert said.err[0].endswith("; go on with its own config, or name a new folder")
    assert files(half) == before


@pytest.mark.parametrize("content", ["[]", "3", "null"])
def test_an_environment_that_is_no_object_is_one_line(call, half, content):
    (half / "environment.json").write_text(content)
    said = call("run", half, "--resume")
    line = f"bpeq: {half}/environment.json: is damaged: it is no JSON object"
    assert (said.code, said.err) == (3, [line])


def test_a_comparison_does_not_go_on_in_a_runs_folder(call, half):
    before = files(half)
    said = call("compare", "c.toml", "--rules", "backprop", "--out", half, "--resume")
    assert (said.code, len(said.err)) == (2, 1)
    assert said.err[0].startswith(f"bpeq: the folder {half} already holds a run; name a new one")
    assert files(half) == before


def test_other_data_are_refused(call, half):
    found = dict(np.load("points.npz"))
    np.savez("points.npz", x=found["x"] + 1, y=found["y"])
    said = call("run", half, "--resume")
    assert (said.code, said.err) == (
        3,
        ["bpeq: out: the data are not those that its run began with"],
    )


def test_a_finished_run_is_left_as_it_is(call):
    folder = whole(call, SIMPLE)
    before = files(folder)
    for argv in (["run", folder], ["run", "c.toml", "--out", folder]):
        said = call(*argv, "--resume")
        assert (said.code, said.out, said.err) == (
            0,
            "whole is finished; nothing was changed\n",
            [],
        )
    assert files(folder) == before


def test_without_out_the_last_run_of_that_name_goes_on_and_a_first_one_starts(call, monkeypatch):
    Path("c.toml").write_text(SIMPLE)
    Path("runs/c").mkdir(parents=True)
    (Path("runs/c") / "other").touch()
    stops_after(monkeypatch, 1)
    assert call("run", "c.toml").code == 143
    monkeypatch.setattr(signals, "asked_to_stop", lambda: None)
    assert call("run", "c.toml", "--resume").code == 0
    assert sorted(path.name for path in Path("runs").iterdir()) == ["c", "c-2"]
    assert call("run", "c.toml", "--out", "new", "--resume").err == []
    same(Path("new"), Path("runs/c-2"))


@pytest.mark.parametrize("argv", [["c.toml", "--out", "mine"], ["mine"]])
def test_a_folder_without_a_run_is_refused(call, argv):
    Path("c.toml").write_text(SIMPLE)
    Path("mine").mkdir()
    Path("mine/notes.txt").write_text("mine")
    said = call("run", *argv, "--resume")
    lines = {"mine": "mine: holds no run", "c.toml": "the folder mine is not empty; name a new one"}
    assert (said.code, said.err) == (2, [f"bpeq: {lines[argv[0]]}"])
    assert files(Path("mine")) == {"notes.txt": b"mine"}


def test_other_versions_are_told_in_one_line(call, half, monkeypatch):
    now = run_folder.environment()
    monkeypatch.setattr(run_folder, "environment", lambda: {**now, "cpu_count": 99})
    said = call("run", half, "--resume")
    count = now["cpu_count"]
    assert (said.code, len(said.err)) == (0, 1)
    assert said.err[0].endswith(f" in its last bits: cpu_count {count} then, 99 now")


# --- two writers, full disks -------------------------------------------------------------------


@pytest.mark.parametrize("more", [[], ["--resume"]])
def test_a_second_writer_is_refused_and_the_first_one_named(call, half, more):
    before = files(half)
    with lock.lock_folder(half, resume=True):
        said = call("run", "c.toml", "--out", half, *more)
    who = f"process {os.getpid()} on {socket.gethostname()}"
    assert (said.code, said.err) == (2, [f"bpeq: the folder out is being written by {who}"])
    assert files(half) == before
    goes_on(call, half, [])


def test_on_a_full_disk_a_run_ends_with_3_and_then_goes_on(call, half):
    """The size limit lets rows through, but no checkpoint."""
    before = files(half)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (newest(half).stat().st_size * 3 // 4, hard))
    try:
        said = call("run", half, "--resume")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    path = "out/checkpoints/1-000000003.safetensors"
    assert (said.code, said.err) == (3, [f"bpeq: {path}: cannot write: File too large"])
    assert {k: v for k, v in files(half).items() if k in before and k != "metrics.jsonl"} == {
        k: v for k, v in before.items() if k != "metrics.jsonl"
    }
    assert not list(half.rglob("*.part"))
    goes_on(call, half, [])


# --- runs inside a run -------------------------------------------------------------------------


STUDY = """\
from bpeq import experiment

def run(config, runner):
    found = {}
    for name in ("one", "two"):
        given = {"stop": runner.stop, "resume": runner.resume}
        summary = experiment.run(config, runner.folder / name, **given)
        found[name] = summary["metrics"]["test_loss"]["values"]
    return found
"""


def test_a_study_goes_on_in_the_run_inside_it_and_runs_none_twice(call, monkeypatch):
    Path("study.py").write_text(STUDY)
    Path("c.toml").write_text(f'experiment = "study.py"\n{SIMPLE}')
    assert call("run", "c.toml", "--out", "never").code == 0
    stops_after(monkeypatch, 4 + 2)
    said = call("run", "c.toml", "--out", "out")
    how = "saved out/two; go on with: bpeq run out --resume"
    assert (said.code, said.err) == (143, [f"bpeq: stopped after epoch 2 of 4; {how}"])
    first = files(Path("out/one"))
    monkeypatch.setattr(signals, "asked_to_stop", lambda: None)
    said = call("run", "out", "--resume")
    assert (said.code, said.err) == (0, [])
    assert files(Path("out/one")) == first
    for name in ("one", "two"):
        same(Path("out", name), Path("never", name))
    ours, theirs = (json.loads((Path(f) / "summary.json").read_text()) for f in ("out", "never"))
    assert (ours["name"], ours["metrics"]) == ("c", theirs["metrics"])


def test_a_comparison_goes_on_with_the_rows_that_it_has_not(call, monkeypatch):
    Path("c.toml").write_text(SIMPLE)
    argv = ["compare", "c.toml", "--rules=backprop", "--set", "training.epochs=2", "--out"]
    monkeypatch.setattr("bpeq.report.write_report", _page)
    assert call(*argv, "never").code == 0
    stops_after(monkeypatch, 2 + 1)
    said = call(*argv, "out")
    how = "go on with: the same command, --out out --resume"
    assert (said.code, said.err) == (
        143,
        [f"bpeq: stopped after epoch 1 of 2; saved out/linear_readout; {how}"],
    )
    first = files(Path("out/backprop"))
    monkeypatch.setattr(signals, "asked_to_stop", lambda: None)
    said = call(*argv, "out", "--resume")
    assert (said.code, said.err) == (0, [])
    assert files(Path("out/backprop")) == first
    found = [json.loads((Path(f) / "comparison.json").read_text()) for f in ("out", "never")]
    metrics = [{k: row["metrics"] for k, row in each["rules"].items()} for each in found]
    assert metrics[0] == metrics[1]
    assert "interrupted" not in found[0]
