"""`~` is the home folder wherever a path is read: by every command and every Python door."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args, get_type_hints

import jax
import numpy as np
import pytest

from bpeq import data, load_run
from bpeq.cli import check, train  # noqa: F401  their commands join the app
from bpeq.cli.options import app, expand_paths
from bpeq.config.loading import load_config
from bpeq.experiment import run, run_comparison
from bpeq.experiment.fidelity import measure_fidelity
from bpeq.experiment.verify import verify
from bpeq.report import write_report

CONFIG = """\
data.name = "xor"
network.layers = ["dense(2)", "tanh", "dense(1)"]
optimizer = {name = "adam", learning_rate = 0.01}
training = {epochs = 1, batch_size = 4}
"""
STUDY = "def run(config, runner):\n    return {'size': 1.0}\n"


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """The home folder, with a config; the working directory is another one and stays empty."""
    folder, here = tmp_path / "home", tmp_path / "here"
    folder.mkdir()
    here.mkdir()
    (folder / "c.toml").write_text(CONFIG)
    monkeypatch.setenv("HOME", str(folder))
    monkeypatch.setenv("USERPROFILE", str(folder))
    monkeypatch.chdir(here)
    with jax.numpy_dtype_promotion("standard"):  # optax needs this promotion
        yield folder
    assert list(here.iterdir()) == []


def test_every_path_of_every_command_expands_the_home_folder():
    paths = []
    for command in app.registered_commands:
        for name, hint in get_type_hints(command.callback, include_extras=True).items():
            parts = get_args(hint)
            if parts and Path in (parts[0], *get_args(parts[0])):
                paths.append((command.callback.__name__, name, parts[-1]))
    assert len(paths) >= 13
    for name, option, parameter in paths:
        assert parameter.callback is not None, (name, option)
    assert expand_paths([Path("~/x"), Path("y")]) == [Path.home() / "x", Path("y")]
    assert expand_paths(None) is None


def test_commands_read_and_write_below_the_home_folder(call, home):
    assert call("run", "~/c.toml", "--out=~/one").code == 0
    assert (home / "one" / "summary.json").exists()
    assert call("run", "~/one", "--resume").code == 0
    assert call("report", "~/one").code == 0
    assert call("verify", "~/one", "--files").code == 0
    assert call("show", "config", "~/c.toml").code == 0


def test_python_doors_read_and_write_below_the_home_folder(home):
    config = load_config("~/c.toml")
    run(config, Path("~/one"))
    assert load_run("~/one").summary["seeds"] == 1
    assert verify(Path("~/one"), files_only=True) == []
    assert write_report(Path("~/one")) == home / "one" / "report.html"
    measure_fidelity(config, ["backprop"], Path("~/measured"), Path("~/one"))
    assert (home / "measured" / "fidelity.json").exists()
    with pytest.raises(FileExistsError, match="already holds a run"):
        run_comparison(config, ["backprop"], Path("~/one"))


def test_paths_inside_a_config_may_begin_with_the_home_folder(home):
    np.savez(home / "mine.npz", x=np.ones((20, 2)), y=np.array([0, 1] * 10))
    (home / "mine.csv").write_text("a,b\n" + "1,0\n0,1\n" * 10)
    (home / "study.py").write_text(STUDY)
    assert data.npz("~/mine.npz").x.shape == (20, 2)
    assert data.csv("~/mine.csv").x.shape == (20, 1)
    pairs = ["data.name=npz", "data.path=~/mine.npz"]
    assert load_config("~/c.toml", pairs).data.settings["path"] == str(home / "mine.npz")
    (home / "s.toml").write_text('experiment = "~/study.py"\n')
    assert load_config("~/s.toml").experiment == str(home / "study.py")
    assert load_config("~/c.toml", ["folder=~/"]).folder == home


def test_a_sweep_and_a_comparison_stay_below_the_home_folder(call, home):
    argv = ["sweep", "~/c.toml", "--grid", "seed=0", "--out=~/sweep"]
    assert call(*argv).code == 0
    assert len(json.loads((home / "sweep" / "sweep.json").read_text())["runs"]) == 1
