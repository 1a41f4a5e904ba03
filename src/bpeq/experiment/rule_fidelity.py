"""One rule of a config against the exact gradient of its own function: one row of fidelity.json."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpeq.analysis.equilibrium import nudge_amplitude
from bpeq.analysis.gradient_fidelity import Fidelity, judged
from bpeq.config.loading import Config
from bpeq.config.problem import Problem, seed_keys
from bpeq.core import trees
from bpeq.core.compat import enable_x64
from bpeq.layers import cut
from bpeq.solvers import fixed_point
from bpeq.types import Batch, Key, Params, State


class OperatingPoint(NamedTuple):
    """Where a rule is measured.

    params, state: the first seed's weights and the rule's state.
    batch: examples that the seed trains on.
    key:   the one key of every estimate.
    """

    params: Params
    state: State
    batch: Batch
    key: Key

    @contextmanager
    def cast(self, precision: str) -> Iterator[OperatingPoint]:
        """The same point in "float32" or "float64", which jax uses until the block ends."""
        with enable_x64(precision == "float64"):
            yield trees.cast(self, jnp.result_type(float))


def fidelity_row(problem: Problem, point: OperatingPoint) -> dict[str, Any]:
    """Compares a rule's estimate, as configured, with the exact gradient of its own function.

    A row of fidelity.json, and the `fidelity` of a run's summary.json. For a rule with a β on a
    system it also tells how far the nudge moves each state.

    Args:
      problem: the parts of the config.
      point: the weights, the examples and the key.

    Returns:
      The row of `estimate_row`, with `nudge`; only a `note` if the rule has no exact reference.
    """
    info, batch = problem.rule.info, point.batch
    if info.reference is None:
        return {"note": f"{problem.rule.name} has no exact reference to compare with"}
    row = estimate_row(problem, point)
    if problem.system is not None and "beta" in row:
        free, nudged = (problem.solvers.get(k, fixed_point()) for k in ("free", "nudged"))
        args = (problem.system, problem.cost, point.params, batch, row["beta"], free, nudged)
        amplitude, residual = nudge_amplitude(*args, info.nudged_system)
        names = state_names(problem, amplitude)
        amplitudes = dict(zip(names, amplitude, strict=True))
        row["nudge"] = {"amplitude": amplitudes, "residual": residual}
    return row


def estimate_row(problem: Problem, point: OperatingPoint) -> dict[str, Any]:
    """What a row says of the estimate itself, in the dtype of the point's params.

    Args:
      problem: the parts of the config. Its rule has an exact reference.
      point: the weights, the examples and the key.

    Returns:
      The entries of `fidelity_entry`, the names of the reference and of the rule's own objective,
      the rule's note, its β, and the error bar of an estimate that has one.
    """
    rule, (params, state, batch, key) = problem.rule, point
    assert rule.info.reference is not None
    estimate = jax.jit(rule.estimate)(params, batch, state, key)[0]
    fidelity = judged(rule, estimate, params, batch, key=key, network=problem.network)
    row = {**fidelity_entry(fidelity), "reference": rule.info.reference.name}
    if rule.info.note:
        row["note"] = rule.info.note
    if rule.info.objective is not None:
        row["own_objective"]["objective"] = rule.info.objective.name
    if rule.info.beta == "beta":
        row["beta"] = float(state["beta"])
    return row | {k: float(estimate.info[k]) for k in ("beta", "error_bar") if k in estimate.info}


def before_and_after(config: Config, problem: Problem, trained: Params) -> dict[str, Any]:
    """The first seed's rows at the initial and at the trained weights, for a run's record.

    Args:
      config: the config of the run.
      problem: its parts.
      trained: the weights of every seed, seeds on axis 0.
    """
    initial = initial_point(config, problem)
    weights = jax.tree.map(lambda leaf: jnp.asarray(leaf[0]), trained)
    return {
        "rule": config.rule.name,
        "examples": len(initial.batch.x),
        "initial": fidelity_row(problem, initial),
        "trained": fidelity_row(problem, initial._replace(params=weights)),
    }


def initial_point(config: Config, problem: Problem) -> OperatingPoint:
    """The first seed's initial weights, and the first examples that it trains on.

    Args:
      config: the config; [fidelity] says how many examples.
      problem: its parts.
    """
    weights_key, rule_key, _ = seed_keys(config.seed, 1)[0]
    params, state = problem.rule.init(rule_key, problem.init(weights_key))
    return OperatingPoint(params, state, first_examples(config, problem), rule_key)


def fidelity_entry(fidelity: Fidelity) -> dict[str, Any]:
    """A Fidelity in the form of fidelity.json.

    Args:
      fidelity: with its own objective, which becomes an entry of the entry.
    """
    own = fidelity.own_objective
    return {
        **fidelity.total._asdict(),
        "converged": fidelity.settled,
        "sweeps": fidelity.sweeps,
        "reference_settled": fidelity.reference_settled,
        "reference_residual": fidelity.reference_residual,
        "layers": {name: part._asdict() for name, part in fidelity.layers.items()},
        **({} if own is None else {"own_objective": fidelity_entry(own)}),
    }


def first_examples(config: Config, problem: Problem, count: int | None = None) -> Batch:
    """The first training examples of the first seed.

    Args:
      config: its [fidelity] says how many.
      problem: the parts of the config.
      count: how many, whatever [fidelity] says.
    """
    rows, data = problem.rows[0], problem.data
    if count is None:
        count = config.fidelity.examples or min(32, len(rows))
    dtype = jnp.result_type(float)
    y = jnp.asarray(data.y[rows[:count]], jnp.int32 if data.task == "classification" else dtype)
    return Batch(jnp.asarray(data.x[rows[:count]], dtype), y)


def state_names(problem: Problem, states: Sequence[Any]) -> list[str]:
    """Names for the states of a system: its blocks if it is layered, else the states' own names.

    Args:
      problem: the parts of the config.
      states: one entry for each state.
    """
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
