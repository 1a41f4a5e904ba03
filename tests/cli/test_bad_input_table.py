"""Bad input, a table by kind: exit 2, or 3 where data or disk is at fault, in one line, at once.

What a config may say wrong, key by key, is in `test_cli.py`; here is what surrounds a config.
"""

from __future__ import annotations

import gzip
import json
import os
import shlex
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import pytest

from bpeq.cli import signals
from bpeq.config import checks, loading
from bpeq.experiment import distributed
from bpeq.runs import checkpoints, manifest

CONFIG = """\
data.name = "xor"
network.layers = ["dense(3)", "tanh", "dense(1)"]
rule = {name = "eqprop", beta = 0.2}
solvers.free = {name = "fixed_steps", steps = 3}
solvers.nudged = {name = "fixed_steps", steps = 2}
optimizer = {name = "adam", learning_rate = 0.01}
training = {epochs = 4, batch_size = 4}
"""
HALF = "half/checkpoints/1-000000002.safetensors"
GRID = "--grid rule.beta=0.1,0.2"
MINE = "run c.toml --out new --set data.name"
NORMED = (
    """--set rule.name=backprop --set 'network.layers=["dense(3)", "batch_norm", "dense(1)"]'"""
)


class Bad(NamedTuple):
    """argv: folders named in it are there. line: how it begins. make: what is wrong on the disk."""

    argv: str
    code: int
    line: str
    make: Callable[[], Any] = lambda: None


def text(path: str, content: str | bytes) -> Callable[[], Any]:
    return lambda: Path(path).write_bytes(content.encode() if isinstance(content, str) else content)


def edit(path: str, **changes: Any) -> Callable[[], Any]:
    """A JSON object's entries replaced; `a__b` is b in a, None removes."""

    def make() -> None:
        tree = json.loads(Path(path).read_text())
        for key, value in changes.items():
            *outer, last = key.split("__")
            node = tree
            for step in outer:
                node = node[step]
            node.pop(last, None) if value is None else node.__setitem__(last, value)
        Path(path).write_text(json.dumps(tree))

    return make


def folder_for(path: str) -> Callable[[], Any]:
    """A folder where a file must be."""
    return lambda: (Path(path).unlink(), Path(path).mkdir())


def file_for(path: str) -> Callable[[], Any]:
    """A file where a folder must be."""
    return lambda: (shutil.rmtree(path), Path(path).touch())


def both(*makes: Callable[[], Any]) -> Callable[[], Any]:
    return lambda: [make() for make in makes]


def sealed(path: str, content: str | bytes) -> Callable[[], Any]:
    """A file of the finished run replaced, and the manifest with it."""
    return both(text(path, content), lambda: manifest.write_manifest(Path("done")))


def arrays(**given: Any) -> Callable[[], Any]:
    return lambda: np.savez("mine.npz", **given)


def cell(suffix: str, content: str) -> Callable[[], Any]:
    """A file of a sweep's first run."""

    def make() -> None:
        first = sorted(path.name for path in Path("sweep").iterdir() if len(path.name) == 12)[0]
        Path(f"sweep/{first}{suffix}").write_text(content)

    return make


def only_checkpoint(**identity: Any) -> Callable[[], Any]:
    """The newest checkpoint is the only one, and has this identity, or no arrays."""

    def make() -> None:
        Path("half/checkpoints/1-000000001.safetensors").unlink()
        manifest, arrays = checkpoints.read(Path(HALF))
        manifest["identity"] |= identity
        checkpoints.write(Path(HALF), arrays if identity else {}, manifest)

    return make


def idx(*shape: int) -> bytes:
    return struct.pack(f">{1 + len(shape)}I", 0x0800 + len(shape), *shape)


def mnist(images: bytes) -> Callable[[], Any]:
    def make() -> None:
        Path("data/mnist").mkdir(parents=True)
        for part in (
            "train-images-idx3",
            "train-labels-idx1",
            "t10k-images-idx3",
            "t10k-labels-idx1",
        ):
            Path(f"data/mnist/{part}-ubyte.gz").write_bytes(images)

    return make


X, Y = np.ones((20, 2)), np.array([0, 1] * 10)
NAN = np.where(np.arange(40).reshape(20, 2) == 7, np.nan, X)
DEEP = "[" * 100_000

TABLE: dict[str, list[Bad]] = {
    "malformed TOML": [
        Bad("run c.toml", 2, "c.toml: malformed TOML: Invalid value (at line 2, column 5)",
            text("c.toml", "a = 1\nb = ]\n")),
        Bad(f"sweep c.toml {GRID}", 2, "c.toml: malformed TOML: Expected '=' after a key in a key/",
            text("c.toml", "a\n")),
        Bad("compare c.toml --rules eqprop", 2, "c.toml: malformed TOML: Unclosed array",
            text("c.toml", "a = [1")),
        Bad("audit c.toml", 2, "c.toml: is not text: invalid start byte at byte 0",
            text("c.toml", b"\xff")),
        Bad("show config c.toml", 2, "c.toml: malformed TOML: a number too long, or lists nested",
            text("c.toml", f"a = {DEEP}")),
        Bad("check .", 2, ".: cannot read the config: Is a directory"),
        Bad("fidelity no.toml", 2, "no.toml: cannot read the config: No such file or directory"),
    ],
    "unknown key, and the nearest": [
        Bad("run half --resume --set trainin.epochs=3", 2,
            "--set trainin = {'epochs': 3}: unknown key; allowed: "),
        Bad("sweep c.toml --grid rule.bta=1,2", 2, "--grid rule.bta = 1: unknown key; allowed: "),
        Bad("compare c.toml --rules eqprp", 2, "--rules = 'eqprp': allowed: "),
        Bad("audit c.toml --rules backpropp", 2, "--rules = 'backpropp': allowed: "),
        Bad("show rule eqprp", 2, "show rule eqprp: allowed: "),
        Bad("swep c.toml", 2, "No such command 'swep'. Did you mean"),
        Bad("verify done --file", 2, "No such option: --file"),
    ],
    "wrong type or out of range": [
        Bad("run c.toml --set devices=gpu", 2,
            "--set devices = 'gpu': must be a whole number >= 1 or 'all'"),
        Bad("run c.toml --set checkpoint_share=1.5", 2,
            "--set checkpoint_share = 1.5: must be a number >= 0 and <= 1"),
        Bad("run c.toml --set training.unsettled=halt", 2,
            "--set training.unsettled = 'halt': must be 'record' | 'warn' | 'stop'"),
        Bad("run c.toml --seeds 0", 2, "--set seeds = 0: must be a whole number >= 1"),
        Bad("compare c.toml --rules eqprop --tune 0", 2,
            "--tune = 0: must be a whole number >= 1"),
        Bad("compare c.toml --rules eqprop --tune some", 2, "Invalid value for '--tune': "),
        Bad("fidelity c.toml --set fidelity.betas=[0]", 2,
            "--set fidelity.betas = [0]: must be a list, each entry a number > 0"),
    ],
    "a nudged phase without bound": [
        Bad("run c.toml --set rule.beta=1", 2,
            "--set rule.beta = 1.0: must be < 1 with nudging = 'centered': a linear output"),
        Bad("run c.toml --set rule.beta=3.0 --set rule.nudging=holomorphic", 2,
            "--set rule.beta = 3.0: must be < 1 with nudging = 'holomorphic': a linear output"),
        Bad("run c.toml --set rule.beta=1 --set rule.nudging=random-sign", 2,
            "--set rule.beta = 1.0: must be < 1 with nudging = 'random-sign': a linear output"),
        Bad("run c.toml --set rule.name=asymmetric_eqprop --set rule.beta=1", 2,
            "--set rule.beta = 1.0: must be < 1 with nudging = 'centered': a linear output"),
        Bad("sweep c.toml --grid rule.beta=0.5,1.0", 2,
            "--grid rule.beta = 1.0: must be < 1 with nudging = 'centered': a linear output"),
    ],
    "sizes that do not fit": [
        Bad("""run c.toml --set 'network.layers=["dense(2)"]'""", 2,
            "--set network.layers.0: one example of xor (2) gives outputs of shape (2,); it must"),
        Bad("""run c.toml --set 'network.layers=["conv(2, kernel=1)", "tanh", "dense(1)"]'""", 2,
            "--set network.layers"),
        Bad("""run c.toml --set 'network.layers=["dense(2000000000)", "tanh", "dense(1)"]'""", 2,
            "--set network.layers: weights and gradients take "),
        Bad("run c.toml --seeds 2000000000", 2,
            "--set seeds = 2000000000: weights and gradients take "),
        Bad("""run c.toml --set 'system.skips={"0-9" = "dense(1)"}'""", 2, "--set system.skips"),
        Bad("run c.toml --set optimizer.layer_rates=[0.1]", 2,
            "--set optimizer.layer_rates = [0.1]: layer_rates: 1 rates, the network has 2 blocks"),
        Bad("fidelity c.toml --set fidelity.examples=5", 2,
            "--set fidelity.examples = 5: must be 1 to 4, the training set"),
    ],
    "batch": [
        Bad("run c.toml --set training.batch_size=5", 2,
            "--set training.batch_size = 5: must be 1 to 4, the training set"),
        Bad(f"run c.toml {NORMED} --set training.batch_size=1", 2,
            "--set training.batch_size = 1: batch_norm: one value for each channel has no varia"),
        Bad(f"run c.toml {NORMED} --set fidelity.examples=1", 2,
            "--set fidelity.examples = 1: batch_norm: one value for each channel has no varianc"),
        Bad(f"compare c.toml --rules backprop {NORMED} --set training.batch_size=1", 2,
            "--set training.batch_size = 1: batch_norm: one value for each channel has no varia"),
        Bad(f"fidelity c.toml --rules autodiff {NORMED} --set fidelity.examples=1", 2,
            "--set fidelity.examples = 1: batch_norm: one value for each channel has no varianc"),
        Bad(f"sweep c.toml {NORMED} --grid training.batch_size=2,1", 2,
            "--grid training.batch_size = 1: batch_norm: one value for each channel has no vari"),
        Bad("sweep c.toml --grid training.batch_size=2,8", 2,
            "--grid training.batch_size = 8: must be 1 to 4, the training set"),
        Bad("compare c.toml --rules eqprop --set training.batch_size=5", 2,
            "--set training.batch_size = 5: must be 1 to 4, the training set"),
    ],
    "devices and processes": [
        Bad("run c.toml --set devices=2", 2,
            "--set devices = 2: must be 1 to 1, the cpu devices there are, or 'all'"),
        Bad("sweep c.toml --grid devices=2,3", 2,
            "--grid devices = 2: must be 1 to 1, the cpu devices there are, or 'all'"),
        Bad("run c.toml --processes 0", 2, "--processes = 0: must be a whole number >= 1"),
        Bad("run c.toml --processes two", 2, "Invalid value for '--processes': "),
        Bad("run c.toml --processes 3", 2,
            "c.toml:training.batch_size = 4: must be a multiple of 3, the devices that share a"),
        Bad("run c.toml --processes 1000000", 2,
            "c.toml:training.batch_size = 4: must be a multiple of 1000000, the devices"),
        Bad("run c.toml --processes 2 --coordinator h:1", 2,
            "--processes = 2: means processes of this machine alone; leave out --coordinator"),
        Bad("run c.toml --coordinator host", 2,
            "--coordinator = 'host': must be HOST:PORT or auto, the port 1 to 65535"),
        Bad("run c.toml --coordinator h:65536 --process-count 2 --process-id 0", 2,
            "--coordinator = 'h:65536': must be HOST:PORT or auto, the port 1 to 65535"),
        Bad("run c.toml --coordinator h:0 --process-count 2 --process-id 0", 2,
            "--coordinator = 'h:0': must be HOST:PORT or auto, the port 1 to 65535"),
        Bad("run c.toml --coordinator h:1 --process-count 2 --process-id -1", 2,
            "--process-id = -1: must be 0 to 1"),
        Bad("run c.toml --process-count 2", 2,
            "--process-count = 2: means nothing without --coordinator"),
        Bad("sweep c.toml --processes 2", 2, "No such option: --processes"),
    ],
    "empty data": [
        Bad(f"{MINE}=npz --set data.path=mine.npz", 3, "mine.npz: x has shape (0, 2): it is empty",
            arrays(x=X[:0], y=Y[:0])),
        Bad(f"{MINE}=csv --set data.path=mine.csv", 3, "mine.csv: the file is empty",
            text("mine.csv", "")),
        Bad(f"{MINE}=csv --set data.path=mine.csv", 3, "mine.csv: a header but no rows",
            text("mine.csv", "a,b\n")),
        Bad(f"{MINE}=mnist", 3, "data/mnist/train-images-idx3-ubyte.gz: the header says 0 × 28",
            mnist(gzip.compress(idx(0, 28, 28)))),
    ],
    "damaged data files": [
        Bad(f"{MINE}=mnist", 3, "data/mnist/train-images-idx3-ubyte.gz: the gzip stream is trunca",
            mnist(gzip.compress(idx(1, 2, 2) + b"abcd")[:-9])),
        Bad(f"{MINE}=mnist", 3, "data/mnist/train-images-idx3-ubyte.gz: magic 0x00000801, expect",
            mnist(gzip.compress(idx(4) + b"abcd"))),
        Bad(f"{MINE}=mnist", 3, "data/mnist/train-images-idx3-ubyte.gz: md5 of the uncompressed ",
            mnist(gzip.compress(idx(1, 2, 2) + b"abcd"))),
        Bad(f"{MINE}=npz --set data.path=mine.npz", 3, "mine.npz: not an .npz file",
            text("mine.npz", b"PK\3\4 and so on")),
        Bad(f"{MINE}=csv --set data.path=mine.csv", 3, "mine.csv: line 3 has 1 cells, the header 2",
            text("mine.csv", "a,b\n1,0\n2")),
        Bad(f"{MINE}=csv --set data.path=mine.csv", 3, "mine.csv: not UTF-8 text",
            text("mine.csv", b"a,b\n\xff,0\n")),
        Bad(f"{MINE}=npz --set data.path=/dev/zero", 3,
            "/dev/zero: is a pipe or a device, not a file"),
        Bad(f"{MINE}=csv --set data.path=pipe", 3, "pipe: is a pipe or a device, not a file",
            lambda: os.mkfifo("pipe")),
    ],
    "labels and NaN": [
        Bad(f"{MINE}=npz --set data.path=mine.npz", 3, "mine.npz: y[0] is -1, negative: labels",
            arrays(x=X, y=Y - 1)),
        Bad(f"{MINE}=npz --set data.path=mine.npz --set data.classes=2", 3,
            "mine.npz: y[1] is 5, not below 2, the number of classes", arrays(x=X, y=Y * 5)),
        Bad(f"{MINE}=npz --set data.path=mine.npz", 3, "mine.npz: x[3, 1] is nan, not a finite",
            arrays(x=NAN, y=Y)),
        Bad(f"{MINE}=csv --set data.path=mine.csv", 3, "mine.csv: line 2, column 'a' is nan, not a",
            text("mine.csv", "a,b\nnan,0\n1,1\n")),
    ],
    "names and paths": [
        Bad("run ...toml", 2, "...toml: its name must be more than dots: it names the run's folder",
            text("...toml", CONFIG)),
        Bad("sweep ..toml --grid seed=1,2", 2, "..toml: its name must be more than dots",
            text("..toml", CONFIG)),
        Bad("run c.toml --set name=../x", 2, "--set name = '../x': unknown key; allowed: "),
        Bad("sweep c.toml --grid name=../x,../y", 2, "--grid name = '../x': unknown key; allowed"),
        Bad("compare c.toml --rules ../x", 2, "--rules = '../x': allowed: "),
        Bad("compare c.toml --rules ../a:b", 2, "--rules = '../a:b': '../a:b' is no dotted path"),
        Bad("run c.toml --out ..", 2, "the folder .. is not empty; name a new one"),
        Bad("run c.toml --out ''", 2, "the folder . is not empty; name a new one"),
        Bad(f"{MINE}=npz --set data.path=../../no.npz", 3, "../../no.npz: no such file"),
        Bad(f"{MINE}=npz --set data.path=", 3, "'': is no file's name"),
        Bad(f"{MINE}=npz --set 'data.path=\"a\\u0000b\"'", 3, "'a\\x00b': is no file's name"),
        Bad(f"{MINE}=npz --set data.path=~nobody_of_that_name/x", 3,
            "~nobody_of_that_name/x: no such file"),
        Bad("run c.toml --set experiment=../../no.py", 2,
            "--set experiment = '../../no.py': no such study file beside the config or here"),
    ],
    "folders that cannot be written": [
        Bad("run c.toml --out c.toml", 2, "c.toml is a file, not a folder"),
        Bad("run c.toml --out c.toml/x", 3, "c.toml/x: cannot write there: Not a directory"),
        Bad("run c.toml --out /proc/x", 3, "/proc/x: No such file or directory"),
        Bad("run c.toml --out /dev/full", 2, "/dev/full is a file, not a folder"),
        Bad(f"run c.toml --out {'n' * 300}", 3, "nnn"),
        Bad("run c.toml", 3, "runs/c: cannot write there: Not a directory", text("runs", "")),
        Bad("run c.toml --out done", 2, "the folder done already holds a run; name a new one"),
        Bad(f"sweep c.toml {GRID} --out c.toml", 2, "c.toml is a file, not a folder"),
        Bad(f"sweep c.toml {GRID} --out done", 2, "the folder done already holds a run"),
        Bad("compare c.toml --rules eqprop --out done", 2, "the folder done already holds a run"),
        Bad("fidelity c.toml --out done", 2, "the folder done already holds a run"),
        Bad("report done", 3, "done/report.html: cannot write: Is a directory",
            folder_for("done/report.html")),
    ],
    "run --resume": [
        Bad("run nowhere --resume", 2, "nowhere: cannot read the config: No such file or dir"),
        Bad("run . --resume", 2, ".: holds no run"),
        Bad("run c.toml --out . --resume", 2, "the folder . is not empty; name a new one"),
        Bad("run half --resume", 2, "half/config.toml: malformed TOML: Invalid value (at line 1",
            text("half/config.toml", "a = = 1")),
        Bad("run c.toml --out half --resume", 3, "half/config.toml: cannot read: ",
            text("half/config.toml", f"a = {DEEP}")),
        Bad("run half --resume --set rule.beta=0.5", 2,
            "--set rule.beta = 0.5: the run in half has 0.2; go on with its own config"),
        Bad("run half --resume --seeds 2", 2, "--set seeds = 2: the run in half has 1; go on with"),
        Bad("run half --resume", 3, "half/environment.json: is damaged: it is no JSON object",
            text("half/environment.json", "[]")),
        Bad("run half --resume", 3, "half/environment.json: cannot read: maximum recursion depth",
            text("half/environment.json", DEEP)),
        Bad("run half --resume", 3, "half: the data are not those that its run began with",
            edit("half/environment.json", data_checksum="0")),
        Bad("run half --resume", 3, "half/checkpoints: must be a folder; its run cannot go on",
            file_for("half/checkpoints")),
        Bad("run half --resume", 3, "half/metrics.jsonl: was changed: its rows are not those",
            text("half/metrics.jsonl", "{}\n")),
        Bad("run half --resume", 3, "half/metrics.jsonl: was changed: its rows are not those",
            folder_for("half/metrics.jsonl")),
        Bad("run half --resume", 3, "half/.lock: cannot lock: Is a directory",
            folder_for("half/.lock")),
        Bad("run done --resume", 3, "done/summary.json: is damaged: it has no metrics",
            both(text("done/summary.json", "{}"), lambda: Path("done/report.html").unlink())),
    ],
    "a checkpoint of another network": [
        Bad("run half --resume", 3, f"{HALF}: is of another run: its config is not",
            only_checkpoint(config="0")),
        Bad("run half --resume", 3, f"{HALF}: is of another run: its seed is not this",
            only_checkpoint(seed=7)),
        Bad("run half --resume", 3, f"{HALF}: holds another network: carry.",
            only_checkpoint()),
        Bad("fidelity c.toml --run half", 3, "half/summary.json: cannot read: No such file"),
        Bad("fidelity c.toml --run nowhere", 2, "--run = nowhere: must be the folder of a"),
        Bad("""fidelity c.toml --run done --set 'network.layers=["dense(4)","tanh","dense(1)"]'""",
            2, "--run = done: its parameters do not fit "),
        Bad("fidelity c.toml --run done", 3, "done/params.safetensors: cannot read: ",
            text("done/params.safetensors", "not tensors")),
    ],
    "verify": [
        Bad("verify nowhere", 2, "nowhere: holds no run"),
        Bad("verify c.toml", 2, "c.toml: holds no run"),
        Bad("verify half", 2, "half: its run is not finished: bpeq run half --resume"),
        Bad("verify done", 3, "done/manifest.json: cannot read: maximum recursion depth",
            text("done/manifest.json", DEEP)),
        Bad("verify done", 3, "done: is not as its run left it: config.toml is not in manifest.jso",
            text("done/manifest.json", '{"sha256": {}}')),
        Bad("verify done", 3, "done/manifest.json: is damaged: '../c.toml' is no file of its fold",
            text("done/manifest.json", '{"sha256": {"../c.toml": "0"}}')),
        Bad("verify done", 3, "done/manifest.json: is damaged: '/dev/zero' is no file of its fold",
            text("done/manifest.json", '{"sha256": {"/dev/zero": "0"}}')),
        Bad("verify done --files", 3, "done: is not as its run left it: summary.json is no file",
            lambda: (Path("done/summary.json").unlink(), os.mkfifo("done/summary.json"))),
        Bad("verify done", 3, "done/summary.json: is damaged: it has no metrics",
            sealed("done/summary.json", "{}")),
        Bad("verify done", 3, "done/environment.json: is damaged: it is no JSON object",
            sealed("done/environment.json", "[]")),
        Bad("verify done", 3, "done/metrics.jsonl: cannot read: ",
            sealed("done/metrics.jsonl", DEEP)),
        Bad("verify done", 3, "done/params.safetensors: cannot read: ",
            sealed("done/params.safetensors", "")),
        Bad("verify done", 2, "done/config.toml: malformed TOML: ",
            sealed("done/config.toml", "a = = 1")),
    ],
    "sweep": [
        Bad("sweep c.toml", 2, "--grid: is missing; allowed: key=value,value such as"),
        Bad("sweep c.toml --grid =1,2", 2, "--grid =1,2: must be key=value,value such as"),
        Bad("sweep c.toml --grid rule.beta=[1,2", 2, "--grid rule.beta = '[1,2': must be a num"),
        Bad(f"sweep c.toml {GRID} --set seeds=0", 2, "--set seeds = 0: must be a whole number >="),
        Bad(f"sweep c.toml {GRID} --out sweep", 3, "sweep/", cell("/summary.json", "{}")),
        Bad(f"sweep c.toml {GRID} --out sweep", 3, "sweep/", cell(".failed.json", "[]")),
        Bad(f"sweep c.toml {GRID} --out sweep", 3, "sweep/", cell(".failed.json", '{"code": "2"}')),
        Bad(f"sweep c.toml {GRID} --out sweep", 2, "the folder sweep is not empty; name a new one",
            file_for("sweep/.claims")),
    ],
    "report": [
        Bad("report", 2, "Missing argument 'DIR...'"),
        Bad("report nowhere", 2, "nowhere: no such folder"),
        Bad("report .", 2, ".: no run and no comparison: holds none of comparison.json, "),
        Bad("report done", 3, "done/summary.json: no valid JSON", text("done/summary.json", "{")),
        Bad("report done", 3, "done/metrics.jsonl:1: must be a JSON object, not 3",
            text("done/metrics.jsonl", "3\n")),
        Bad("report done", 3, "done/summary.json: seconds.train: must be a number, not 'long'",
            edit("done/summary.json", seconds__train="long")),
        Bad("report sweep", 3, "sweep/sweep.json: runs: must be a list",
            text("sweep/sweep.json", '{"runs": 3}')),
    ],
    "show and audit": [
        Bad("show", 2, "Missing argument 'what'."),
        Bad("show everything", 2, "show everything: allowed: "),
        Bad("show rule os:system", 2, "show rule os:system: 'os' is Python's own module, which"),
        Bad("show config c.toml --set rule.beta=-1", 2, "--set rule.beta = -1: must be a number"),
        Bad("audit c.toml --rules ''", 2, "--rules = '': must be different rules, such as"),
        Bad("audit c.toml --set data.name=xr", 2, "--set data.name = 'xr': allowed: "),
    ],
}  # fmt: skip
ROWS = [(kind, row) for kind, rows in TABLE.items() for row in rows]


@pytest.fixture(scope="module")
def workshop(call, tmp_path_factory) -> Path:
    """A config, a run that is done, one that was stopped halfway, and a sweep."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "c.toml").write_text(CONFIG)
    asked = iter([None, 15])
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert call("run", "c.toml", "--out", "done").code == 0
        assert call(*shlex.split(f"sweep c.toml {GRID} --out sweep")).code == 0
        patch.setattr(signals, "asked_to_stop", lambda: next(asked))
        assert call("run", "c.toml", "--out", "half").code == 143
    return folder


@pytest.fixture
def desk(workshop, tmp_path, monkeypatch) -> Path:
    """A folder with the same config, where nothing is trained or downloaded."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BPEQ_DATA", "data")
    monkeypatch.setattr(jax.stages.Lowered, "compile", None)
    shutil.copy(workshop / "c.toml", tmp_path)
    return tmp_path


def contents(folder: Path) -> dict[str, bytes | None]:
    paths = (path for path in folder.rglob("*") if not path.is_fifo())
    return {str(path): path.read_bytes() if path.is_file() else None for path in paths}


@pytest.mark.parametrize(
    ("kind", "row"), ROWS, ids=[f"{kind}: {row.argv} {row.line}"[:150] for kind, row in ROWS]
)
def test_it_is_one_line_with_its_exit_code_and_nothing_is_written(
    call, workshop, desk, kind: str, row: Bad
) -> None:
    for name in ("done", "half", "sweep"):
        if name in row.argv:
            shutil.copytree(workshop / name, desk / name)
    row.make()
    before, began = contents(desk), time.process_time()
    said = call(*shlex.split(row.argv))
    assert time.process_time() - began < 5
    assert (said.code, len(said.err), said.out, said.bar) == (row.code, 1, "", False), said
    assert said.err[0].replace(f"{desk}/", "").startswith(f"bpeq: {row.line}")
    assert contents(desk) == before


def test_there_are_enough_that_differ() -> None:
    assert len({(row.argv, row.line) for _, row in ROWS}) >= 120


ENVIRONMENTS = {
    "JAX_PLATFORMS": (
        "banana",
        "JAX_PLATFORMS = 'banana': Unable to initialize backend 'banana': ",
    ),
    "JAX_ENABLE_X64": ("maybe", "JAX_ENABLE_X64 = maybe: invalid truth value 'maybe'"),
    "JAX_NUM_CPU_DEVICES": ("many", "JAX_NUM_CPU_DEVICES = many: Invalid value"),
}


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_an_unknown_device_or_a_wrong_word_to_jax_is_one_line(desk, name: str) -> None:
    value, line = ENVIRONMENTS[name]
    program = [sys.executable, "-c", "from bpeq.cli import script; script()"]
    source = str(Path(distributed.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source, name: value}
    done = subprocess.run(
        [*program, "run", "c.toml"], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(f"bpeq: {line}")
    assert done.stderr.count("\n") == 1
    assert not (desk / "runs").exists()


def test_float64_is_had_whatever_jaxs_default_and_refused_where_no_device_has_it(
    call, desk, monkeypatch
) -> None:
    """JAX_ENABLE_X64=0 forbids nothing: it is JAX's default; a config's precision is its own."""
    asked = loading.load_config("c.toml", ["precision=float64"])
    with jax.enable_x64(False):
        checks.check_devices(asked)

    def without(*args: Any, **more: Any) -> Any:
        raise jax.errors.JaxRuntimeError("UNIMPLEMENTED: float64")

    monkeypatch.setattr(checks.jnp, "ones", without)
    said = call("run", "c.toml", "--set", "precision=float64")
    line = "bpeq: --set precision = 'float64': its cpu devices have none; allowed: 'float32'"
    assert (said.code, said.err) == (2, [line])
    assert not (desk / "runs").exists()


def test_code_in_a_layers_text_or_a_value_is_never_run(call, desk) -> None:
    """Only a dotted path and a study file that a config names are code."""
    evil = "__import__('os').system('touch hacked')"
    for pair in (
        f'network.layers=["{evil}"]',
        f'network.layers=["dense({evil})"]',
        f'network.layers=["dense(3, init={evil})"]',
        f"network.layers.0={evil}",
        f"rule.name={evil}",
        f"rule.beta={evil}",
        f"data.name={evil}",
        f"optimizer.learning_rate={evil}",
        f"experiment={evil}",
        "rule.name=os:system",
        "rule.name=os:system('touch hacked')",
        "network.layers.0=subprocess:run('touch hacked')",
        "data.name=builtins:eval",
    ):
        said = call("run", "c.toml", "--set", pair)
        assert (said.code, len(said.err)) == (2, 1), pair
        assert {path.name for path in desk.iterdir()} == {"c.toml"}, pair
