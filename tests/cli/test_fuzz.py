"""Whatever stands in a file or behind an option: the work is done, or one line says why not.

Never a traceback, never exit code 1, nothing written over. BPEQ_FUZZ=20 tries twenty times as many.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import tomllib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import pytest
import tomli_w
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from bpeq.cli import signals
from bpeq.runs import checkpoints, host_arrays, manifest, run_folder
from bpeq.runs.metrics_log import MetricsLog
from bpeq.types import DataError

CONFIG = """\
data.name = "xor"
network.layers = ["dense(3)", "tanh", "dense(1)"]
rule = {name = "eqprop", beta = 0.2}
rules.backprop.optimizer.learning_rate = 0.5
solvers.free = {name = "fixed_steps", steps = 3}
solvers.nudged = {name = "fixed_steps", steps = 2}
optimizer = {name = "adam", learning_rate = 0.01}
training = {epochs = 4, batch_size = 4}
"""
TIMES = int(os.environ.get("BPEQ_FUZZ", "1"))


def fuzz(examples: int) -> settings:
    beside = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
    return settings(
        max_examples=examples * TIMES,
        deadline=None,
        derandomize=TIMES == 1,
        database=None,
        suppress_health_check=beside,
    )


@pytest.fixture(scope="module")
def workshop(call, tmp_path_factory) -> Path:
    """A config, a run that is done, and one that was stopped halfway."""
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "c.toml").write_text(CONFIG)
    asked = iter([None, 15])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run", "c.toml", "--out", "done").code == 0
        patch.setattr(signals, "asked_to_stop", lambda: next(asked))
        assert call("run", "c.toml", "--out", "half").code == 143
    return folder


@pytest.fixture(autouse=True)
def desk(workshop, tmp_path, monkeypatch) -> Path:
    """Copies of these, where nothing is compiled."""
    shutil.copytree(workshop, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(jax.stages.Lowered, "compile", compiled)
    return tmp_path


class Compiled(BaseException):
    """So far all was well. A sweep counts an Exception as its run's failure."""


def compiled(*args: Any, **more: Any) -> Any:
    raise Compiled


def told(call, *argv: object) -> int:
    """Runs a command until it compiles: 0, or the exit code after one line."""
    try:
        said = call(*argv)
    except Compiled:
        return 0
    assert said.code in (0, 2, 3), said
    assert len(said.err) == (said.code != 0), said
    return said.code


@pytest.fixture
def to_the_door(monkeypatch) -> None:
    """What is wrong with a config is known before a folder is made; there it ends."""
    monkeypatch.setattr("bpeq.runs.lock.lock_folder", compiled)
    monkeypatch.setattr("bpeq.experiment.sweep.open_folder", compiled)


# --- trees, and what can be done to them -------------------------------------------------------

ODD = [
    None,
    True,
    -1,
    0,
    1,
    2**31,
    2**63,
    10**30,
    1.5,
    -0.0,
    1e-320,
    1e308,
    "",
    "x",
    "a\0b",
    "../x",
]
ODD += [
    [],
    [1],
    ["dense(3)"],
    [[[]]],
    {},
    {"a": 1},
    {"name": "dense"},
    "9" * 400,
    "dense(9)",
    "ü\n",
]
ODD += [float("nan"), float("inf"), "os:system", "/dev/zero", "__import__('os').system('touch x')"]


def places(tree: Any, path: tuple = ()) -> list[tuple]:
    """The paths of everything in a tree."""
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    found = []
    for key, value in inner:
        found.append((*path, key))
        if isinstance(value, dict | list):
            found += places(value, (*path, key))
    return found


def change(tree: Any, path: tuple, how: str, value: Any) -> None:
    """One place of a tree dropped, replaced, renamed, or put a level deeper."""
    *outer, last = path
    for step in outer:
        tree = tree[step]
    if how == "drop":
        del tree[last]
    elif how == "rename" and isinstance(tree, dict):
        tree[f"{last}_"] = tree.pop(last)
    elif how == "nest":
        tree[last] = {str(last): tree[last]}
    else:
        tree[last] = value


@st.composite
def changed(draw: Callable[..., Any], tree: Any, most: int = 2) -> Any:
    """A tree with one to `most` places changed."""
    made = copy.deepcopy(tree)
    for _ in range(draw(st.integers(1, most))):
        there = places(made)
        assume(there)
        how = draw(st.sampled_from(["drop", "value", "value", "value", "rename", "nest"]))
        change(made, draw(st.sampled_from(there)), how, copy.deepcopy(draw(st.sampled_from(ODD))))
    return made


@st.composite
def spoilt(draw: Callable[..., Any], content: bytes) -> bytes:
    """A file cut short, with bytes changed, or with some put in."""
    at = draw(st.integers(0, max(0, len(content) - 1)))
    junk = draw(st.binary(max_size=4) | st.sampled_from([b"\0", b"\xff" * 8, b"[" * 5000, b"\n"]))
    how = draw(st.sampled_from(["cut", "over", "into"]))
    rest = {"cut": b"", "over": junk + content[at + len(junk) :], "into": junk + content[at:]}
    return content[:at] + rest[how]


FULL = tomllib.loads(CONFIG) | {
    "system": {"name": "hopfield", "output": "state", "nudge": "inside", "gain": 1.0},
    "cost": {"name": "squared_error"},
    "schedule": {"name": "cosine", "warmup": 0.1},
    "controls": {"optimizer": {"learning_rate": 0.1}},
    "fidelity": {"examples": 2, "betas": [0.1, 0.2], "nudgings": ["centered"]},
    "seed": 1,
    "seeds": 2,
    "precision": "float32",
    "checkpoint_share": 0.5,
    "devices": 1,
}


def without(tree: Any) -> Any:
    """None, which TOML has not, as a text."""
    if isinstance(tree, dict):
        return {key: without(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [without(value) for value in tree]
    return "none" if tree is None else tree


# --- configs and options -----------------------------------------------------------------------


@fuzz(40)
@given(tree=changed(FULL, 3))
def test_a_config_with_places_changed_is_refused_in_one_line_or_built(
    call, desk, to_the_door, tree
):
    Path("f.toml").write_text(tomli_w.dumps(without(tree)))
    told(call, "run", "f.toml", "--out", "new")
    assert {path.name for path in desk.iterdir()} == {"c.toml", "f.toml", "done", "half"}


@fuzz(40)
@given(
    path=st.sampled_from([p for place in places(FULL) if (p := ".".join(map(str, place)))]),
    value=st.sampled_from([json.dumps(value) for value in ODD]) | st.text(max_size=8),
    option=st.sampled_from(["--set", "--grid"]),
)
def test_any_value_of_any_key_on_the_command_line_is_refused_in_one_line_or_built(
    call, desk, to_the_door, path, value, option
):
    command = "run" if option == "--set" else "sweep"
    told(call, command, "c.toml", "--out", "new", option, f"{path}={value}")
    assert {path.name for path in desk.iterdir()} == {"c.toml", "done", "half"}


# --- what a run folder holds -------------------------------------------------------------------


def whole(folder: Path) -> dict[str, bytes]:
    kept = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): path.read_bytes() for path in kept if path.name not in (".lock", ".holder")}


NAMES = ["config.toml", "environment.json", "metrics.jsonl", "summary.json", "params.safetensors"]
NAMES += ["manifest.json"]


@fuzz(25)
@given(data=st.data(), name=st.sampled_from(NAMES), reseal=st.booleans())
def test_any_change_to_a_finished_run_is_one_line_of_verify_or_its_repeat(
    call, workshop, desk, data, name, reseal
):
    content = (workshop / "done" / name).read_bytes()
    if name.endswith(".json") and data.draw(st.booleans()):
        made = json.dumps(data.draw(changed(json.loads(content)))).encode()
    else:
        made = data.draw(spoilt(content))
    shutil.rmtree("done")
    shutil.copytree(workshop / "done", "done")
    Path("done", name).write_bytes(made)
    if reseal and name != "manifest.json":
        manifest.write_manifest(Path("done"))
    before = whole(Path("done"))
    told(call, "verify", "done")
    assert whole(Path("done")) == before


@fuzz(8)
@given(data=st.data(), name=st.sampled_from(["summary.json", "metrics.jsonl", "environment.json"]))
def test_any_change_to_a_finished_run_is_one_line_of_report_or_a_page(
    call, workshop, desk, data, name
):
    shutil.rmtree("done")
    shutil.copytree(workshop / "done", "done")
    Path("done", name).write_bytes(lines_changed(data, (workshop / "done" / name).read_bytes()))
    before = whole(Path("done"))
    if told(call, "report", "done"):
        assert whole(Path("done")) == before


def lines_changed(data: Any, content: bytes) -> bytes:
    """One of a file's JSON objects changed as a tree, or the bytes of the whole."""
    lines = content.splitlines() if content.startswith(b'{"') else [content]
    if data.draw(st.booleans()):
        return data.draw(spoilt(content))
    at = data.draw(st.integers(0, len(lines) - 1))
    lines[at] = json.dumps(data.draw(changed(json.loads(lines[at])))).encode()
    return b"\n".join([*lines, b""])


@fuzz(25)
@given(data=st.data(), name=st.sampled_from(["config.toml", "environment.json", "metrics.jsonl"]))
def test_any_change_to_a_stopped_run_is_one_line_of_resume_and_writes_nothing_over(
    call, workshop, desk, data, name
):
    content = (workshop / "half" / name).read_bytes()
    if name == "environment.json" and data.draw(st.booleans()):
        made = json.dumps(data.draw(changed(json.loads(content)))).encode()
    else:
        made = data.draw(spoilt(content))
    shutil.rmtree("half")
    shutil.copytree(workshop / "half", "half")
    Path("half", name).write_bytes(made)
    before = whole(Path("half"))
    try:
        said = call("run", "half", "--resume")
    except Compiled:
        return
    assert said.code in (2, 3)
    assert whole(Path("half")) == before


@pytest.fixture
def saved(desk) -> tuple[checkpoints.Checkpoints, Any, Path, dict[Path, bytes]]:
    """Two checkpoints of a small carry, what they are restored into, the newest, all files."""
    log = MetricsLog(desk / "metrics.jsonl")
    carry = {"w": jnp.arange(3.0), "key": jax.random.key(0), "z": jnp.ones(2, complex)}
    made = checkpoints.Checkpoints(desk / "points", "1", {"config": "c"}, [jax.random.key(1)])
    for done in (1, 2):
        row = {"epoch": done}
        log.append({**row, "loss": 1.0, "values": {"loss": [1.0]}})
        host = host_arrays.to_host(carry)
        values = {"loss": jnp.ones(1)}
        checkpoint = checkpoints.Checkpoint(done, host, values, row, log.position(), 0)
        made.save(checkpoint, {"total": 1.0})
    return made, carry, made.path(2), {p: p.read_bytes() for p in made.folder.iterdir()}


@fuzz(40)
@given(data=st.data())
def test_any_change_to_a_checkpoint_is_an_older_one_or_a_data_error(saved, desk, data):
    made, carry, path, kept = saved
    for each, content in kept.items():
        each.write_bytes(content)
    rows = (desk / "metrics.jsonl").read_bytes()
    path.write_bytes(data.draw(spoilt(kept[path])))
    with contextlib.suppress(DataError), warnings.catch_warnings(action="ignore"):
        point, seconds, _ = made.newest(carry, MetricsLog(desk / "metrics.jsonl"))
        assert point.done in (1, 2)
        shapes = [
            jax.tree.map(jnp.shape, each) for each in (point.carry, host_arrays.to_host(carry))
        ]
        assert shapes[0] == shapes[1]
        assert all(isinstance(spent, int | float) for spent in seconds.values())
    assert (desk / "metrics.jsonl").read_bytes() == rows


@fuzz(30)
@given(data=st.data())
def test_any_change_to_parameters_is_a_data_error_or_the_same_shapes(workshop, desk, data):
    content = (workshop / "done" / "params.safetensors").read_bytes()
    shapes = {"0": {"b": (1, 3), "w": (1, 2, 3)}, "2": {"b": (1, 1), "w": (1, 3, 1)}}
    template = jax.tree.map(lambda s: jnp.zeros(s, "float32"), shapes, is_leaf=_is_shape)
    assert run_folder.load_arrays(Path("done/params.safetensors"), template)
    Path("p.safetensors").write_bytes(data.draw(spoilt(content)))
    with contextlib.suppress(DataError):
        found = run_folder.load_arrays(Path("p.safetensors"), template)
        assert jax.tree.map(jnp.shape, found) == shapes


def _is_shape(node: Any) -> bool:
    return isinstance(node, tuple)
