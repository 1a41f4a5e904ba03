"""Checks before training: the devices and the memory of this machine, and a trace of one update.

JAX traces the update with the shapes of the run and compiles nothing. If parts do not fit, the user
gets one line. Errors that shapes do not show, such as a NaN, appear in training.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bpeq.config.building import part_error, reworded, user_error
from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config
from bpeq.core import trees
from bpeq.data import Dataset
from bpeq.settings import SettingError
from bpeq.training.evaluation import evaluator
from bpeq.training.loops import start, supervised
from bpeq.types import Batch, Cost, Estimate, Key, LearningRule, Params, Shape, State, System

UNTRACEABLE = (ValueError, TypeError, NotImplementedError)
"""Errors of bpeq and of JAX for shapes, types and operations that do not fit. Others are bugs."""


def check_devices(config: Config) -> None:
    """Checks that JAX has a device that computes in the config's precision.

    Args:
      config: the config.

    Raises:
      ConfigError: JAX has no device, or its devices do not compute in float64.
    """
    try:
        kind = jax.devices()[0].platform
    except (RuntimeError, AssertionError) as error:  # AssertionError: none of its kind
        problem = str(error).partition("\n")[0] or "there is no such device"
        remedy = f"{problem}; allowed: what this machine has, such as cpu"
        platforms = os.environ.get("JAX_PLATFORMS", "")
        raise ConfigError("JAX_PLATFORMS", value=platforms, remedy=remedy) from None
    if not config.double:
        return
    try:
        with jax.enable_x64(True):
            name = jax.block_until_ready(jnp.ones(()) + 1).dtype.name
    except jax.errors.JaxRuntimeError:
        name = "nothing"
    if name != config.precision:
        remedy = f"its {kind} devices have none; allowed: 'float32'"
        raise config.error("precision", config.precision, remedy)


def check_memory(config: Config, params: Params, rows: int) -> None:
    """Checks that the weights, gradients and training rows of all seeds fit into memory.

    Without this check, a system that overcommits memory would kill the process without a message.

    Args:
      config: the config.
      params: the parameters of one seed, or their shapes.
      rows: the number of training examples of one seed.

    Raises:
      ConfigError: they do not fit.
    """
    leaves = jax.tree.leaves(params)
    per_seed = 2 * sum(leaf.size * getattr(leaf.dtype, "itemsize", 4) for leaf in leaves) + 8 * rows
    stats = jax.local_devices()[0].memory_stats() or {}
    memory = stats.get("bytes_limit")
    if memory is None and hasattr(os, "sysconf"):  # Windows has none, and refuses by itself
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    needed = config.seeds * per_seed
    if memory and needed > memory:
        key, value = ("network.layers", None) if per_seed > memory else ("seeds", config.seeds)
        sizes = f"weights and gradients take {needed / 1e9:.3g} GB of {memory / 1e9:.3g} GB"
        raise config.error(key, value, f"{sizes}; use a smaller network, or fewer seeds")


class Parts(NamedTuple):
    """The built parts of a config that one update needs.

    Args:
      data: the data set.
      init: (key, shape) -> (params, output shape); it makes the parameters to train.
      system: the system; None if the rule relaxes none.
      cost: the cost.
      rule: the rule.
      optimizer: the optimizer.
    """

    data: Dataset
    init: Any
    system: System | None
    cost: Cost
    rule: LearningRule
    optimizer: Any


def dry_run(config: Config, parts: Parts) -> None:
    """Traces one update and one evaluation with the shapes of the run.

    With a section [fidelity] it also traces the estimate and its references on the examples of that
    section.

    Args:
      config: the config.
      parts: its built parts.

    Raises:
      ConfigError: a part does not fit the others, or a number of examples is too small.
    """
    users_parts = [part for part in config.parts() if part.is_users_own]
    data, rule, system = parts.data, parts.rule, parts.system

    def blame(*sections: str) -> AbstractContextManager[None]:
        """Turns an error into that of the first own part in these sections, else of the first.

        Without own parts it is an error of the rule.
        """
        if not users_parts:
            return reworded(UNTRACEABLE, partial(part_error, config.error, config.rule))
        places = [part.place.partition(".")[0] for part in users_parts]
        named = [users_parts[places.index(section)] for section in sections if section in places]
        return reworded(BaseException, partial(user_error, config.error, (named or users_parts)[0]))

    @contextmanager
    def sized(key: str, examples: int) -> Iterator[None]:
        """Turns a refused number of examples into an error of the setting that chose it."""
        try:
            yield
        except SettingError as error:
            if isinstance(error, ConfigError) or error.setting != "batch_size":
                raise
            raise config.error(key, examples, f"{error.owner}: {error.remedy}") from error

    used = ["network"] if system is None else ["system", "network", "solvers"]
    size, rows = config.training.batch_size, data.train.shape[1]

    def trace_update(key: Key, x: Any, y: Any) -> None:
        params, shape = parts.init(key, x.shape[1:])
        if users_parts:  # bpeq's own parts pass these checks in every config
            with blame("system", "network"):
                if system is not None:
                    try_system(system, params, x[:size], shape)
            with blame("cost"):
                try_cost(parts.cost, data, y[:size])
        with blame("rule", *used, "optimizer", "schedule"), sized("training.batch_size", size):
            if not config.rule.is_users_own:  # the rule must accept the parameters
                with reworded(ValueError, partial(part_error, config.error, config.rule)):
                    rule.init(key, params)
            try_rule(parts, params, x, y, size)
        if config.fidelity_or_none is not None:
            count = config.fidelity.examples or min(32, rows)
            batch = Batch(x[:count], y[:count])
            with blame("rule", *used), sized("fidelity.examples", count):
                trained, state = rule.init(key, params)
                if count != size:
                    rule.estimate(trained, batch, state, key)
                for exact in filter(None, (rule.info.reference, rule.info.objective)):
                    weights, state = exact.init(key, trained)
                    exact.estimate(weights, batch, state, key)

    dtype = jnp.result_type(float)
    x = jax.ShapeDtypeStruct(data.x.shape, dtype)
    y = jax.ShapeDtypeStruct(data.y.shape, jnp.int32 if data.task == "classification" else dtype)
    with jax.numpy_dtype_promotion("standard"):  # optax needs this promotion
        jax.eval_shape(trace_update, jax.random.key(0), x, y)


def initial(init: Any, key: Key, shape: Shape) -> tuple[Params, Shape]:
    """Calls an `init` and checks the form of its result.

    Args:
      init: (key, shape) -> (params, output shape).
      key: the random key.
      shape: the shape of one input example.

    Returns:
      The parameters, and the shape of one output.

    Raises:
      ValueError: the result is not a pair of parameters and a shape.
    """
    pair = _pair("init", init(key, shape), "(params, shape of one output)")
    if not isinstance(pair[1], tuple):
        raise ValueError(f"init gives the shape {pair[1]!r}; it must be a tuple such as (10,)")
    return pair


def try_system(system: System, params: Params, x: Any, shape: Shape) -> None:
    """Runs one sweep of a system, inside a trace.

    Args:
      system: the system.
      params: its parameters.
      x: inputs `[batch, ...]`.
      shape: the shape of one output, as `system.init` returns it.

    Raises:
      ValueError: a function of the system returns a wrong shape or dtype.
    """
    clamped = system.clamp(params, x)
    state = system.init_state(params, clamped)
    if not all(jnp.issubdtype(s.dtype, jnp.floating) for s in jax.tree.leaves(state)):
        raise ValueError(
            f"init_state gives {trees.describe_tree(state)}: states must be floating-point"
        )
    output = system.readout.forward(params, state)[0]
    _expect(f"readout gives, of {len(x)} examples,", output, _like(len(x), *shape))
    _expect("a sweep makes", system.sweep(params, clamped, state), state)
    if system.energy is not None:
        energy = system.energy(params, clamped, state)
        _expect(f"energy gives, of {len(x)} examples,", energy, _like(len(x)))


def try_cost(cost: Cost, data: Dataset, y: Any) -> None:
    """Computes a cost's values and errors for one batch, inside a trace.

    Args:
      cost: the cost.
      data: the data set, for the number of outputs.
      y: targets `[batch, ...]`.

    Raises:
      ValueError: the value or the error has a wrong shape.
    """
    output = jnp.zeros((len(y), data.outputs))
    _expect(f"value gives, of {len(y)} examples,", cost.value(output, y), _like(len(y)))
    _expect("error gives", cost.error(output, y), output)


def try_rule(parts: Parts, params: Params, x: Any, y: Any, size: int) -> None:
    """Makes one update and evaluates once, inside a trace.

    Args:
      parts: the built parts of the config.
      params: the parameters to train.
      x: all inputs `[n, ...]`.
      y: all targets `[n, ...]`.
      size: the number of examples of the update.

    Raises:
      ValueError: a function of the rule returns a wrong type, shape or dtype.
    """
    data, _, _, cost, rule, optimizer = parts

    def init(key: Key, params: Params) -> tuple[Params, State]:
        return _pair("init", rule.init(key, params), "(params, state)")

    def apply(params: Params, x: Any, key: Key | None = None) -> Any:
        output = rule.apply(params, x)
        _expect(f"apply gives, of {len(x)} examples,", output, _like(len(x), data.outputs))
        return output

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        pair = rule.estimate(params, batch, state, key)
        result, after = _pair("estimate", pair, "(Estimate, state)")
        if not isinstance(result, Estimate):
            raise ValueError(f"estimate gives a {type(result).__name__}; it must give an Estimate")
        if not isinstance(result.info, dict):
            raise ValueError(f"info is a {type(result.info).__name__}; it must be a dict")
        _expect("grads are", result.grads, params)
        _expect("loss is", result.loss, _like())
        _expect("the rule's state becomes", after, state)
        return pair

    tried = rule._replace(init=init, apply=apply, estimate=estimate)
    key, rows = jax.random.key(0), jnp.arange(size)
    carry = start(tried, optimizer, params, key, x, size)
    after, _ = supervised(tried, optimizer)(carry, Batch(x[:size], y[:size], rows), key)
    _expect("an update makes of the params", after.params, carry.params)
    evaluator(tried, cost, data.task)(after.params, x, y, jnp.arange(data.train.shape[1]))


def _like(*shape: int) -> Any:
    return jax.ShapeDtypeStruct(shape, jnp.result_type(float))


def _expect(what: str, value: Any, like: Any) -> None:
    """Raises ValueError if a tree has other shapes or dtypes than `like`."""
    wrong = trees.difference(value, like)
    if wrong:
        raise ValueError(f"{what} {wrong}")


def _pair(what: str, value: Any, names: str) -> Any:
    """Raises ValueError if a value is not a pair."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise ValueError(f"{what} gives {trees.describe_tree(value)}; it must give {names}")
    return value
