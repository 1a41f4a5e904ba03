"""A batch that devices share: one device's estimates, and no collective where phases relax.

Everything is measured by one program with four forced host devices, `shared_batches.py`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq import costs, rules
from bpeq.config.registry import KINDS
from bpeq.core import sharding
from bpeq.layers import chain, dense
from bpeq.training.data_parallel import data_mesh, data_parallel
from bpeq.types import Batch

PROGRAM = Path(__file__).with_name("shared_batches.py")
QUICK = [
    *KINDS["rules"],
    *("eqprop carried", "eqprop kept", "eqprop noisy", "backprop normed", "own"),
]
SLOW = [
    *("eqprop auto", "eqprop random-sign", "eqprop holomorphic"),
    *("vector_field_eqprop homeostasis", "autodiff normed"),
]
COUPLED = {"continual_eqprop", "eqprop auto"}
"""What moves its weights, or chooses its β, while phases run: together, or not at all."""


def measure(folder: Path, names: list[str]) -> dict:
    cache = jax.config.jax_compilation_cache_dir
    environment = os.environ | {
        "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=4",
        "JAX_COMPILATION_CACHE_DIR": str(cache),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES": "0",
    }
    command = [sys.executable, str(PROGRAM), str(folder), *names]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("shared"), QUICK)


@pytest.fixture(scope="module")
def more(tmp_path_factory):
    return measure(tmp_path_factory.mktemp("shared"), SLOW)


def holds(name: str, found: dict) -> None:
    """One device's estimate, all that it records and leaves; no collective where phases relax."""
    # target_propagation draws in float32, whose last bit depends on how long the vectors are
    assert found["gap"] < (1e-7 if name == "target_propagation" else 1e-12)
    looping = [inside for _, inside in found["collectives"]]
    assert looping
    assert any(looping) == (name in COUPLED)


@pytest.mark.parametrize("name", QUICK)
def test_a_shared_batch_gives_one_devices_estimate(measured, name):
    holds(name, measured["cases"][name])


@pytest.mark.long
@pytest.mark.parametrize("name", SLOW)
def test_a_shared_batch_gives_one_devices_estimate_in_other_settings(more, name):
    holds(name, more["cases"][name])


def test_a_run_on_four_devices_has_the_metrics_of_one(measured):
    one, four = measured["runs"]
    for a, b in zip(one["rows"], four["rows"], strict=True):
        assert set(a) == set(b)
        for name in set(a) - {"seconds", "values"}:
            assert a[name] == pytest.approx(b[name], rel=1e-12, abs=1e-12), name
        for name, values in a["values"].items():
            np.testing.assert_allclose(values, b["values"][name], rtol=1e-12, atol=1e-12)
    assert one["metrics"].keys() == four["metrics"].keys()
    for name, statistic in one["metrics"].items():
        np.testing.assert_allclose(statistic["values"], four["metrics"][name]["values"], rtol=1e-12)
    assert one["rows"][-1]["sweeps_free"] > 1  # phases did relax


def test_a_config_is_refused_whose_batch_or_machine_is_too_small(measured):
    said = "must be 1 to 4, the cpu devices there are, or 'all'"
    assert measured["refused"] == [
        f"--set devices = 5: {said}",
        "--set training.batch_size = 2: must be a multiple of 4, the devices that share a batch",
    ]


def test_outside_a_mesh_a_part_is_the_batch():
    x = jnp.arange(6.0).reshape(3, 2)
    assert sharding.count() == 1
    assert sharding.mean(x) is x
    assert sharding.gathered(x) is x
    assert sharding.places(3).tolist() == [0, 1, 2]
    assert sharding.drawn(jnp.zeros, (3, 2)).shape == (3, 2)


def test_more_devices_than_there_are_is_refused():
    there = jax.device_count()
    with pytest.raises(ValueError, match=f"must be 1 to {there}, the cpu devices there are"):
        data_mesh(there + 1)


def test_a_batch_that_does_not_fall_into_equal_parts_is_refused():
    network = chain(dense(1))
    mesh = jax.sharding.AbstractMesh((3,), (sharding.AXIS,))
    shared = data_parallel(rules.backprop(network, costs.squared_error()), mesh)
    params, _ = network.init(jax.random.key(0), (2,))
    batch = Batch(jnp.ones((4, 2)), jnp.ones((4, 1)))
    with pytest.raises(ValueError, match="a batch of 4 examples: must be a multiple of 3, the dev"):
        shared.estimate(params, batch, (), jax.random.key(0))
