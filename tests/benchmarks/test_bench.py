"""The benchmark's file: every ratio is a key of it, measured or with a reason. Never a time."""

import json

import jax
import pytest
from benchmarks.goals import GOALS
from benchmarks.record import write_results

from benchmarks import bench, memory, timing

NAMES = [
    *("eqprop_fixed_b128", "eqprop_certified_b128", "eqprop_fixed_b20", "eqprop_fixed_b1024"),
    *("centered_over_one_sided", "sweeps_saved_mlp1", "sweeps_saved_mlp3", "sweeps_saved_cnn"),
    *("roofline_b1024", "compile_seconds", "numpy_over_xor_50", "memory_1000_over_10"),
    *("cnn_sweep_over_floor", "cnn_fixed", "cnn_certified", "backprop_over_autodiff"),
]


@pytest.fixture(scope="module")
def result(tmp_path_factory):
    """Of one group, in this process, on the built-in digits."""
    out = tmp_path_factory.mktemp("bench")
    cached = jax.config.jax_enable_compilation_cache
    with pytest.MonkeyPatch.context() as patch, jax.enable_x64(False):
        patch.delenv("BPEQ_DATA", raising=False)
        patch.setattr(memory, "SWEEPS", (10, 40))
        with jax.numpy_dtype_promotion("standard"):
            assert bench.main(["--only", "memory", "--quick", "--out", str(out)]) == 0
    jax.config.update("jax_enable_compilation_cache", cached)
    return json.loads((out / "bench.json").read_text()), (out / "bench.html").read_text().replace(
        "<wbr>", ""
    )


def test_every_ratio_is_a_key_measured_or_with_a_reason(result):
    found, page = result
    assert sorted(found["ratios"]) == sorted(NAMES) == sorted(GOALS)
    absent = {name for name, value in found["ratios"].items() if value is None}
    assert absent == set(found["skipped"]) == set(NAMES) - {"memory_1000_over_10"}
    assert all(name in page for name in NAMES)


def test_a_record_has_a_line_for_every_ratio(result, tmp_path):
    found, _ = result
    text = write_results(found, tmp_path / "RESULTS.md").read_text()
    assert [name for name in NAMES if f"| `{name}` |" in text] == NAMES
    assert "`--only memory`" in text


def test_eps_memory_does_not_grow_and_bptts_does(result):
    found, _ = result
    growth = next(row for row in found["rows"] if "bptt" in row)
    assert growth["eqprop"] == found["ratios"]["memory_1000_over_10"] < 1.01
    assert growth["bptt"] > 3


def test_the_machine_is_described(result):
    found, _ = result
    assert {"processor", "cpu_count", "versions", "load_before", "load_after"} <= set(
        found["machine"]
    )


def test_a_group_that_fails_leaves_the_others_figures(monkeypatch):
    def fails(effort):
        raise RuntimeError("on purpose")

    def skips(effort):
        raise timing.Skipped("no such thing here")

    groups = {name: __import__(f"benchmarks.{name}", fromlist=["run"]) for name in bench.GROUPS}
    monkeypatch.setattr(groups["xor"], "run", fails)
    monkeypatch.setattr(groups["settling"], "run", skips)
    monkeypatch.setattr(
        groups["memory"], "run", lambda effort: timing.Found([], {"memory_1000_over_10": 1.0})
    )
    found = bench.measure(["xor", "settling", "memory"], timing.QUICK)
    assert found["failed"] == ["xor: RuntimeError: on purpose"]
    assert found["skipped"]["numpy_over_xor_50"] == "RuntimeError: on purpose"
    assert found["skipped"]["sweeps_saved_cnn"] == "no such thing here"
    assert found["ratios"]["memory_1000_over_10"] == 1.0


def test_a_ratio_is_the_median_within_rounds():
    seconds = {"a": [2.0, 30.0, 2.0], "b": [1.0, 10.0, 4.0]}
    assert timing.ratio(seconds, "a", "b") == timing.Ratio(2.0, 2.0)
