"""A run that was stopped or killed, wherever, and gone on with is the run that never was."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from bpeq import _signals, packing
from bpeq.journal import Journal
from bpeq.looping import Runner
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


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bpeq.report.write_run_report", _page)
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
    found = {p for p in folder.rglob("*") if p.is_file()}
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


def stops_after(monkeypatch, count: int) -> None:
    """A signal comes after so many rows, of this process's next run."""
    left = [count]

    def stop() -> int | None:
        left[0] -= 1
        return signal.SIGTERM if left[0] <= 0 else None

    monkeypatch.setattr(_signals, "asked_to_stop", stop)


def stopped(call, monkeypatch, text: str, after: int, out: str = "out") -> Path:
    """The folder of a run that a signal ended after so many rows."""
    Path("c.toml").write_text(text)
    stops_after(monkeypatch, after)
    said = call("run", "c.toml", "--out", out)
    how = (
        f"bpeq: stopped after epoch {after} of 4; saved {out}; go on with: bpeq run {out} --resume"
    )
    assert (said.code, said.err) == (143, [how])
    monkeypatch.setattr(_signals, "asked_to_stop", lambda: None)
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
    monkeypatch.setattr(_signals, "asked_to_stop", lambda: None)
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
            ends.append([_bytes((carry, values)), [_bytes(row["values"]) for row in logged]])
            ends[-1].append([{k: v for k, v in r.items() if k not in OURS} for r in logged])
        return str(ends), rows(folder)


OURS = ("seconds", "values")


def _bytes(tree: Any) -> list[Any]:
    host = jax.tree.leaves(packing.to_host(tree))
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

    def half_a_row(journal: Journal, row: Any) -> None:
        with journal.path.open("ab") as file:
            file.truncate(journal.size)
            file.write(b'{"step": 2, "trai')

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", before(lambda handle: None))
        for name in ("replace", "unlink", "mkdir"):
            patch.setattr(Path, name, before(getattr(Path, name)))
        patch.setattr(Journal, "append", before(Journal.append, half_a_row))
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
        assert (count[0] > 60, len(never[1])) == (True, 6)
        for moment in range(1, count[0] + 1):
            folder = tmp_path / str(moment)
            with pytest.raises(Killed), killed_at(monkeypatch, moment):
                loop.run(folder)
            again = moment // 2 + 1  # and once more, while it goes on
            with contextlib.suppress(Killed), killed_at(monkeypatch, again):
                loop.run(folder, resume=True)
            assert loop.run(folder, resume=True) == never, moment
            shutil.rmtree(folder)
