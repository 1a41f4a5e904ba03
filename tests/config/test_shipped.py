"""Every shipped config, under every rule that it has settings for: it builds and descends."""

from __future__ import annotations

import tomllib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.config.loading import Config, load_config
from bpeq.config.problem import Problem, build, seed_keys
from bpeq.data import Dataset, finish, shuffled
from bpeq.experiment.compare import _controls
from bpeq.training.loops import start, supervised
from bpeq.types import Batch

CONFIGS = Path(__file__).parents[2] / "configs"
EVERY = sorted(CONFIGS.rglob("*.toml"))
SHIPPED = [path for path in EVERY if "networks" not in tomllib.loads(path.read_text())]
"""Those that built-in training can run: a study with networks of its own has its own test."""


def rules_of(path: Path) -> list[str]:
    named = tomllib.loads(path.read_text()).get("rules", {})
    return list(dict.fromkeys([load_config(path).as_dict()["rule"]["name"], *named]))


PAIRS = [(path, rule) for path in SHIPPED for rule in rules_of(path)]
IDS = [f"{path.relative_to(CONFIGS).with_suffix('')} {rule}" for path, rule in PAIRS]


@pytest.fixture(scope="module")
def mnist() -> Dataset:
    """Of MNIST's shapes and brightness: ten random images, a class each, shown over and over."""
    x = np.random.default_rng(0).random((10, 28, 28, 1), np.float32) ** 8
    y = np.arange(10, dtype=np.int32)
    splits = shuffled(200, 1, 0.1, 0.1)
    kind = {"task": "classification", "outputs": 10}
    return finish("mnist", np.tile(x, (20, 1, 1, 1)), np.tile(y, 20), splits, **kind)


def built(config: Config, mnist: Dataset) -> Problem:
    return build(config, mnist if config.as_dict()["data"]["name"] == "mnist" else None)


def losses(config: Config, problem: Problem, updates: int) -> list[float]:
    """The loss before each of a few updates on one and the same batch."""
    doubles = config.as_dict()["precision"] == "float64"
    with jax.enable_x64(doubles), jax.numpy_dtype_promotion("standard"):  # which optax needs
        keys, dtype = seed_keys(config.as_dict()["seed"], 1)[0], jnp.result_type(float)
        rows = problem.rows[0][: config.as_dict()["training"]["batch_size"]]
        y = problem.data.y[rows]
        y = jnp.asarray(y, jnp.int32 if problem.data.task == "classification" else dtype)
        batch = Batch(jnp.asarray(problem.data.x[rows], dtype), y)
        carry = start(problem.rule, problem.optimizer, problem.init(keys[0]), keys[1])
        step, found = jax.jit(supervised(problem.rule, problem.optimizer)), []
        for _ in range(updates):
            carry, metrics = step(carry, batch, keys[2])
            found.append(float(metrics["loss"]))
    return found


@pytest.mark.parametrize(("path", "rule"), PAIRS, ids=IDS)
def test_every_rule_of_every_shipped_config_lowers_the_loss_of_its_first_batch(path, rule, mnist):
    config = load_config(path).with_rule(rule)
    before, *_, after = losses(config, built(config, mnist), 4)
    assert after < before


def test_every_study_has_a_smoke_test_of_its_own():
    tests = Path(__file__).parents[1] / "studies"
    for path in EVERY:
        if "experiment" in tomllib.loads(path.read_text()):
            assert "study.smoke=true" in (tests / f"test_{path.stem}.py").read_text(), path


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_the_null_controls_of_every_shipped_config_lower_the_loss_of_their_first_batch(path, mnist):
    controls = _controls(load_config(path).for_controls())
    assert set(controls) == {"linear_readout", "frozen_hidden"}
    for config in controls.values():
        before, *_, after = losses(config, built(config, mnist), 6)
        assert after < before
