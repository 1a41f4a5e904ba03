"""A checkpoint: what it gives back, that no changed bit passes, and which ones are kept."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.runs import checkpoints, host_arrays
from bpeq.runs.checkpoints import Checkpoint, Checkpoints, DamagedCheckpoint
from bpeq.runs.metrics_log import MetricsLog
from bpeq.types import Caution, DataError

CARRY = {
    "w": jnp.arange(3.0),
    "z": jnp.asarray([1 + 2j], jnp.complex64),
    "half": jnp.ones(2, jnp.bfloat16),
    "flag": jnp.asarray(True),
    "count": jnp.int32(7),
    "key": jax.random.key(5),
}


def all_of(folder: Path, part: str = "1", seed: int = 1, **identity: Any) -> Checkpoints:
    return Checkpoints(folder / "checkpoints", part, identity, [jax.random.key(seed)])


def save(folder: Path, *turns: int, carry: Any = CARRY) -> Checkpoints:
    """Checkpoints after these turns, with a row of the metrics log for each."""
    saved, log = all_of(folder), MetricsLog(folder / "metrics.jsonl")
    for done in turns:
        log.append({"step": done, "values": {"loss": [np.nan]}})
        values = {"loss": np.ones(1, np.float32)}
        host = host_arrays.to_host(carry)
        saved.save(Checkpoint(done, host, values, {"step": done}, log.position(), 0), {"total": 2})
    return saved


def newest(folder: Path, carry: Any = CARRY, **more: Any) -> Any:
    return all_of(folder, **more).newest(carry, MetricsLog(folder / "metrics.jsonl"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def same(one: Any, other: Any) -> None:
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())


def test_a_carry_of_any_dtype_comes_back_to_the_bit(tmp_path):
    save(tmp_path, 3)
    checkpoint, seconds, rows = newest(tmp_path)
    host = host_arrays.to_host(CARRY)
    same(checkpoint.carry, host)
    again = host_arrays.to_device(checkpoint.carry, CARRY)
    assert jax.tree.map(lambda leaf: leaf.dtype, again) == jax.tree.map(lambda c: c.dtype, CARRY)
    assert (checkpoint.done, checkpoint.row, seconds) == (3, {"step": 3}, {"total": 2})
    assert rows[0]["values"]["loss"].dtype == np.float32
    assert np.isnan(rows[0]["values"]["loss"])


def test_any_flipped_bit_of_header_metadata_or_data_is_found(tmp_path):
    path = save(tmp_path, 1).path(1)
    content = bytearray(path.read_bytes())
    header = 8 + int.from_bytes(content[:8], "little")
    assert 200 < header < len(content)
    everywhere = np.random.default_rng(0).permutation(len(content))[:300]
    for at in {*range(16), *range(header - 8, header + 8), *map(int, everywhere)}:
        for bit in range(8):
            content[at] ^= 1 << bit
            path.write_bytes(content)
            with pytest.raises(DamagedCheckpoint):
                checkpoints.read(path)
            content[at] ^= 1 << bit
    path.write_bytes(content)
    checkpoints.read(path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:-9],
        lambda content: content + b"\0",
        lambda content: content[:40] + content[48:],
    ],
)
def test_a_file_cut_or_stretched_is_found(tmp_path, damage):
    path = save(tmp_path, 1).path(1)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DamagedCheckpoint):
        checkpoints.read(path)


def test_a_checkpoint_under_another_name_is_found(tmp_path):
    saved = save(tmp_path, 1)
    saved.path(1).rename(saved.path(2))
    with pytest.raises(DamagedCheckpoint):
        checkpoints.read(saved.path(2))


def test_the_two_newest_are_kept_and_one_at_the_end_each_one_file(tmp_path):
    saved = save(tmp_path, 1, 2, 11)
    other = all_of(tmp_path, "1-x")
    other.save(Checkpoint(5, {}, {}, {}, MetricsLog(tmp_path / "none").position(), 0), {})
    assert names(tmp_path) == [
        *("1-000000002.safetensors", "1-000000011.safetensors", "1-x-000000005.safetensors"),
    ]
    saved.finish()
    assert names(tmp_path) == ["1-000000011.safetensors", "1-x-000000005.safetensors"]


def test_a_damaged_one_is_named_and_removed_and_the_one_before_taken(tmp_path):
    path = save(tmp_path, 1, 2).path(2)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.warns(Caution, match=f"{path}: is damaged: .*: the run goes on from 1-000000001"):
        checkpoint, _, rows = newest(tmp_path)
    assert (checkpoint.done, len(rows)) == (1, 1)
    assert names(tmp_path) == ["1-000000001.safetensors"]


def test_without_a_good_one_there_is_none(tmp_path):
    path = save(tmp_path, 1).path(1)
    path.write_bytes(b"{}")
    with pytest.warns(Caution, match="the run starts anew"):
        assert newest(tmp_path) is None
    assert newest(tmp_path / "nowhere") is None


def test_changed_rows_are_refused_unless_a_checkpoint_stood_before_them(tmp_path):
    save(tmp_path, 1, 2)
    log = tmp_path / "metrics.jsonl"
    lines = log.read_text().splitlines(keepends=True)
    log.write_text(lines[0] + lines[1].replace("2", "3"))
    with pytest.warns(Caution, match="was changed: the run goes on"):
        assert newest(tmp_path)[0].done == 1
    log.write_text(lines[0].replace("1", "0"))
    with pytest.raises(DataError, match="was changed: its rows"):
        newest(tmp_path)


def test_another_run_network_or_version_is_refused(tmp_path):
    path = save(tmp_path, 1).path(1)
    before = path.read_bytes()
    for carry, more, problem in (
        (CARRY, {"seed": 2}, "other random keys"),
        (CARRY, {"config": "other"}, "its config is not this one's"),
        (CARRY | {"w": jnp.zeros(4)}, {}, r"carry.w is float64\[3\], .* float64\[4\]"),
        (CARRY | {"w": jnp.zeros(3, "float32")}, {}, r"carry.w is float64\[3\], .* float32\[3\]"),
        ({**CARRY, "v": jnp.zeros(3)}, {}, "another network: carry.v "),
    ):
        with pytest.raises(DataError, match=problem):
            newest(tmp_path, carry, **more)
    manifest, arrays = checkpoints.read(path)
    checkpoints.write(path, arrays, {**manifest, "format": 3})
    with pytest.raises(DataError, match="another version"):
        newest(tmp_path)
    path.write_bytes(before)
    path.with_suffix(".json").write_text(json.dumps({"format": 1}))
    with pytest.raises(DataError, match="earlier version"):
        newest(tmp_path)


def test_another_machine_is_named(tmp_path, monkeypatch):
    save(tmp_path, 1)
    now = checkpoints.run_folder.environment()
    monkeypatch.setattr(checkpoints.run_folder, "environment", lambda: {**now, "cpu_count": 99})
    with pytest.warns(Caution, match=f"cpu_count {now['cpu_count']} then, 99 now"):
        newest(tmp_path)
    with warnings.catch_warnings(action="error"):
        monkeypatch.undo()
        newest(tmp_path)
