"""What is not finite, or does not settle, and what a run then says and keeps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.experiment.runner import Diverged, Runner
from bpeq.runs import checkpoints

PHASES = """\
seeds = 2

[data]
name = "xor"

[network]
layers = ["dense(4)", "tanh", "dense(1)"]

[system]
name = "hopfield"
output = "state"

[solvers.free]
name = "fixed_point"
tolerance = 1e-4
max_steps = {steps}

[solvers.nudged]
name = "fixed_point"
tolerance = 1e-4
max_steps = {steps}

[rule]
name = "eqprop"

[optimizer]
name = "sgd"
learning_rate = 0.05

[training]
epochs = 4
batch_size = 4
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("bpeq.report.write_report", lambda folder: folder / "report.html")


def rows(folder: str) -> list[dict[str, Any]]:
    text = (
        Path(folder, "metrics.jsonl").read_text() if Path(folder, "metrics.jsonl").exists() else ""
    )
    return [json.loads(line) for line in text.splitlines()]


def run(call, steps: int, policy: str, *more: object) -> Any:
    Path("c.toml").write_text(PHASES.format(steps=steps))
    return call("run", "c.toml", "--out", policy, "--set", f"training.unsettled={policy}", *more)


def test_phases_that_do_not_settle_are_recorded_told_or_end_the_run(call):
    said = run(call, 1, "record")
    assert (said.code, said.err) == (0, [])
    shares = [row["unsettled"] for row in rows("record")]
    assert all(0 < share <= 1 for share in shares)
    told = f"{100 * shares[0]:.3g} % of its phases did not settle"
    said = run(call, 1, "warn")
    assert (said.code, said.err) == (0, [f"bpeq: c.toml: epoch 1 (step 1): {told}"])
    assert [row["values"] for row in rows("warn")] == [row["values"] for row in rows("record")]
    said = run(call, 1, "stop")
    kept = "the last good checkpoint is stop/checkpoints/1-000000000.safetensors, "
    kept += "the parameters of epoch 0 are in stop/params.safetensors"
    why = f"stopped in epoch 1 (step 1): {told} (training.unsettled = 'stop')"
    assert (said.code, said.err) == (4, [f"bpeq: c.toml: {why}; {kept}"])
    assert rows("stop") == []


def test_a_run_that_was_stopped_for_it_stops_again_until_it_may_go_on(call):
    first = run(call, 1, "stop")
    assert call("run", "stop", "--resume")[::2] == (
        4,
        [first.err[0].replace("c.toml", "stop/config.toml")],
    )
    said = call("run", "stop", "--resume", "--set", "training.unsettled=record")
    assert (said.code, said.err) == (0, [])
    assert len(rows("stop")) == 4
    assert 'unsettled = "record"' in Path("stop/config.toml").read_text()
    assert call("verify", "stop").code == 0  # whose repeat is not stopped either


@pytest.mark.parametrize("policy", ["warn", "stop"])
def test_where_all_phases_settle_no_policy_says_anything(call, policy):
    said = run(call, 500, policy)
    assert (said.code, said.err) == (0, [])
    assert [row["unsettled"] for row in rows(policy)] == [0.0] * 4


def loop(tmp_path: Path, spoil: Any, start: Any = 0.0, **more: Any) -> None:
    """A loop of six turns, two a row, whose carry is {params: {0: {w}}, kept}, in float64."""

    def run(carry: Any, first: Any, count: int) -> tuple[Any, Any]:
        turns = first + jnp.arange(count)
        carry, loss = spoil(carry, turns)
        return carry, {"loss": loss[None]}

    Runner(tmp_path, "loop").repeat(
        jax.jit(run, static_argnums=2),
        {"params": [{"w": jnp.zeros(2)}], "kept": jnp.asarray(start)},
        (),
        total=6,
        every=2,
        params=lambda carry: carry["params"],
        **more,
    )


def bad_weights(carry: Any, turns: Any) -> Any:
    lost = jnp.where(turns[-1] >= 3, jnp.nan, 1.0)
    return {**carry, "params": [{"w": carry["params"][0]["w"] * lost}]}, turns.astype(float) * lost


def bad_state(carry: Any, turns: Any) -> Any:
    return {**carry, "kept": jnp.where(turns[-1] >= 3, jnp.inf, carry["kept"])}, turns.astype(float)


def bad_loss(carry: Any, turns: Any) -> Any:
    return carry, jnp.where(turns == 2, jnp.inf, 1.0)


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (
            bad_weights,
            "step 3: the training loss of seed 0 is nan, the parameter 0.w is not finite",
        ),
        (bad_state, "steps 3 to 4: the state kept is not finite"),
        (bad_loss, "step 3: the training loss of seed 0 is inf"),
    ],
)
def test_the_step_the_leaf_and_the_last_good_checkpoint_are_named(tmp_path, spoil, what):
    with pytest.raises(Diverged) as caught:
        loop(tmp_path, spoil)
    saved = tmp_path / "checkpoints" / "1-000000002.safetensors"
    kept = f"the parameters of step 2 are in {tmp_path}/params.safetensors"
    said = f"loop: diverged in {what}; the last good checkpoint is {saved}, {kept}"
    assert str(caught.value) == said
    assert saved.exists()
    assert checkpoints.read(saved)[0]["done"] == 2


def test_a_state_that_starts_without_bound_is_no_divergence(tmp_path):
    loop(tmp_path, lambda carry, turns: (carry, turns.astype(float)), np.inf)
    loop_folder = tmp_path / "checkpoints"
    assert [path.name for path in loop_folder.iterdir()] == ["1-000000006.safetensors"]
