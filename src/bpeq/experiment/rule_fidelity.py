"""A rule of a config under the microscope: one row of what its estimate is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bpeq.analysis.equilibrium import nudge_amplitude
from bpeq.analysis.gradient_fidelity import Fidelity, judged
from bpeq.config.loading import Config
from bpeq.config.problem import Problem, seed_keys
from bpeq.core import trees
from bpeq.layers import cut
from bpeq.solvers import fixed_point
from bpeq.types import Batch, Key, Params, State


def probe(problem: Problem, params: Params, state: State, batch: Batch, key: Key) -> dict[str, Any]:
    """The rule's estimate, as configured, against the exact gradient of its own function.

    A row of fidelity.json, and the `fidelity` of a run's summary.json: the measures of `Closeness`,
    in total and by layer, how the solves ended, and for a rule with a β how far it moves each
    state. For a rule that follows another objective than ∇C the same measures stand against the
    gradient of that under `own_objective`, with its name. A rule without a reference gives a row
    with a note only.

    Args:
      params, state: as the rule's `init` gives them, or as training left them.
    """
    rule = problem.rule
    if rule.info.reference is None:
        return {"note": f"{rule.name} has no exact reference to compare with"}
    row = estimated(problem, params, state, batch, key)
    if problem.system is not None and "beta" in row:
        free, nudged = (problem.solvers.get(k, fixed_point()) for k in ("free", "nudged"))
        args = (problem.system, problem.cost, params, batch, row["beta"], free, nudged)
        moved = nudge_amplitude(*args, rule.info.nudged_system)
        names = state_names(problem, moved.amplitude)
        row["nudge"] = {
            "amplitude": dict(zip(names, moved.amplitude, strict=True)),
            "residual": moved.residual,
        }
    return row


def estimated(
    problem: Problem, params: Params, state: State, batch: Batch, key: Key
) -> dict[str, Any]:
    """What a row says of the estimate itself, in the dtype of params."""
    rule = problem.rule
    assert rule.info.reference is not None
    estimate = jax.jit(rule.estimate)(params, batch, state, key)[0]
    found = judged(rule, estimate, params, batch, key=key, network=problem.network)
    row = {**entry(found), "reference": rule.info.reference.name}
    if rule.info.note:
        row["note"] = rule.info.note
    if rule.info.objective is not None:
        row["own_objective"]["objective"] = rule.info.objective.name
    row |= {k: float(estimate.info[k]) for k in ("beta", "error_bar") if k in estimate.info}
    if isinstance(state, dict) and "beta" in state:
        row.setdefault("beta", float(state["beta"]))
    return row


def before_and_after(config: Config, problem: Problem, trained: Params) -> dict[str, Any]:
    """The first seed's rows at the initial and at the trained weights, for a run's record.

    Args:
      trained: every seed's weights, seeds on axis 0.
    """
    weights_key, rule_key, _ = seed_keys(config.tree["seed"], 1)[0]
    params, state = problem.rule.init(rule_key, problem.init(weights_key))
    last = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), trained)
    batch = first_examples(config, problem)
    return {
        "rule": config.tree["rule"]["name"],
        "examples": len(batch.x),
        "initial": probe(problem, params, state, batch, rule_key),
        "trained": probe(problem, last, state, batch, rule_key),
    }


def entry(found: Fidelity) -> dict[str, Any]:
    """A Fidelity as fidelity.json has it."""
    own = found.own_objective
    return {
        **found.total._asdict(),
        "converged": found.settled,
        "sweeps": found.sweeps,
        "reference_settled": found.reference_settled,
        "reference_residual": found.reference_residual,
        "layers": {name: part._asdict() for name, part in found.layers.items()},
        **({} if own is None else {"own_objective": entry(own)}),
    }


def first_examples(config: Config, problem: Problem, count: int | None = None) -> Batch:
    """The first training examples of the first seed; without a count as [fidelity] asks for."""
    rows, data = problem.rows[0], problem.data
    if count is None:
        count = config.tree.get("fidelity", {}).get("examples", min(32, len(rows)))
    dtype = jnp.result_type(float)
    y = jnp.asarray(data.y[rows[:count]], jnp.int32 if data.task == "classification" else dtype)
    return Batch(jnp.asarray(data.x[rows[:count]], dtype), y)


def state_names(problem: Problem, states: Sequence[Any]) -> list[str]:
    """The blocks' names for a layered system's states, else the states' own or their numbers."""
    blocks = [block.name for block in cut(problem.network)] if problem.network is not None else []
    if len(blocks) >= len(states):
        return blocks[: len(states)]
    system = problem.system
    assert system is not None

    def start(key: Key) -> State:
        params, x = problem.init(key), jnp.zeros((1, *problem.data.x.shape[1:]))
        return system.init_state(params, system.clamp(params, x))

    names = trees.names(jax.eval_shape(start, jax.random.key(0)))
    return names if len(names) > 1 else ["state"]
