"""Compares one rule with the exact gradient of its function: one row of fidelity.json."""

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
from bpeq.layers import cut
from bpeq.solvers import fixed_point
from bpeq.types import Batch, Key, Params, State


class OperatingPoint(NamedTuple):
    """The point where a rule is measured.

    Args:
      params: the first seed's weights.
      state: the rule's state.
      batch: examples from the first seed's training set.
      key: the random key of every estimate.
    """

    params: Params
    state: State
    batch: Batch
    key: Key

    @contextmanager
    def cast(self, precision: str) -> Iterator[OperatingPoint]:
        """Gives the same point in another precision. JAX uses this precision until the block ends.

        Args:
          precision: "float32" or "float64".
        """
        with jax.enable_x64(precision == "float64"):
            yield trees.cast(self, jnp.result_type(float))


def fidelity_row(problem: Problem, point: OperatingPoint) -> dict[str, Any]:
    """Compares a rule's estimate, as configured, with the exact gradient of its function.

    The row is part of fidelity.json and of a run's summary.json. For a rule with a β on a system,
    the row also says how far the nudge moves each state.

    Args:
      problem: the built parts of the config.
      point: weights, rule state, examples and key.

    Returns:
      The row of `estimate_row` and `nudge`. A rule without an exact reference has only a `note`.
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
    """Compares a rule's estimate with its reference, in the dtype of the point's params.

    Args:
      problem: the built parts of the config. The rule must have an exact reference.
      point: weights, rule state, examples and key.

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
    """Measures the first seed's fidelity at the initial and at the trained weights.

    Args:
      config: the config of the run.
      problem: its built parts.
      trained: the weights of every seed, seeds on axis 0.

    Returns:
      The `fidelity` of summary.json: `rule`, `examples`, and the rows `initial` and `trained`.
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
    """The first seed's initial weights and first training examples.

    Args:
      config: the config. Its [fidelity] section sets the number of examples.
      problem: its built parts.

    Returns:
      The point where the rule is measured.
    """
    weights_key, rule_key, _ = seed_keys(config.seed, 1)[0]
    params, state = problem.rule.init(rule_key, problem.init(weights_key))
    return OperatingPoint(params, state, first_examples(config, problem), rule_key)


def fidelity_entry(fidelity: Fidelity) -> dict[str, Any]:
    """Converts a Fidelity to the form of fidelity.json.

    Args:
      fidelity: the fidelity. Its `own_objective` becomes a nested entry.

    Returns:
      The entry, with numbers and dicts only.
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
      config: the config. Its [fidelity] section sets the number of examples.
      problem: its built parts.
      count: the number of examples; None: `fidelity.examples`, or 32 if that is absent.

    Returns:
      The batch, in the default floating-point type in force.
    """
    rows, data = problem.rows[0], problem.data
    if count is None:
        count = config.fidelity.examples or min(32, len(rows))
    dtype = jnp.result_type(float)
    y = jnp.asarray(data.y[rows[:count]], jnp.int32 if data.task == "classification" else dtype)
    return Batch(jnp.asarray(data.x[rows[:count]], dtype), y)


def state_names(problem: Problem, states: Sequence[Any]) -> list[str]:
    """Names the states of a system: by its blocks if it is layered, else by their paths.

    Args:
      problem: the built parts of the config.
      states: one entry for each state.

    Returns:
      One name for each state.
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
