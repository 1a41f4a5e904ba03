"""Builds and connects the parts of a config, and checks what can be checked before compilation."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpeq.config.building import EXPECTED, part_error
from bpeq.config.checks import Parts, check_devices, check_memory, dry_run, initial
from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config
from bpeq.config.networks import build_optimizer
from bpeq.config.parts import Part
from bpeq.config.schema import wires
from bpeq.core import trees
from bpeq.data import Dataset
from bpeq.layers import init_shapes
from bpeq.settings import SettingError
from bpeq.types import Cost, Key, Layer, LearningRule, Params, Solver, System


class Problem(NamedTuple):
    """All built parts of a config. A user's own training loop can start from them.

    Args:
      network: the network; None without one, or if the trained parameters are not the network's.
      cost: the cost.
      rule: the learning rule.
      system: the system that the rule relaxes; None without one.
      solvers: the solvers of [solvers] that the rule uses, by phase.
      data: the data set.
      optimizer: the optimizer with its schedule.
      init: key -> initial parameters.
      rows: `[seeds, m]`, the training rows of each seed.
      validation: `[seeds, m]`, the validation rows of each seed.
      test: `[seeds, m]`, the test rows of each seed.
    """

    network: Layer | None
    cost: Cost
    rule: LearningRule
    system: System | None
    solvers: dict[str, Solver]
    data: Dataset
    optimizer: optax.GradientTransformation
    init: Callable[[Key], Params]
    rows: np.ndarray
    validation: np.ndarray
    test: np.ndarray

    @property
    def relaxes(self) -> bool:
        """Whether the rule settles a system. Its function is then not the feed-forward map."""
        return self.system is not None


def seed_keys(seed: int, seeds: int) -> Key:
    """Derives the random keys of each seed: for initial weights, the rule's init, the data order.

    The keys do not depend on the rule. So compared rules have the same initial weights and data
    order.

    Args:
      seed: the config's seed.
      seeds: the number of seeds.

    Returns:
      `[seeds, 3]` keys.
    """
    base = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(base, i), 3))(jnp.arange(seeds))


def build(config: Config, data: Dataset | None = None) -> Problem:
    """Builds the parts of a config, and checks what can be checked before compilation.

    Args:
      config: the config.
      data: the config's data set, if it is already loaded; None: it is loaded.

    Returns:
      The parts.

    Raises:
      ConfigError: parts do not fit each other or the data.
      DataError: the data are at fault.
    """
    check_devices(config)
    with jax.enable_x64(config.double):
        # Build the data, the network and the cost.
        data = build_data(config) if data is None else data
        network, cost = config.build_network(), config.build(config.cost)
        solvers: dict[str, Solver] = {}
        # Build the rule, and the system that it relaxes.
        wired: dict[str, Any] = {}
        system: System | None = None
        for name, word in wires(config.rule.factory).items():
            if word is System:
                layers = _wire_network(config, config.system, network)
                system = wired[name] = _on_device(config, config.build(config.system, **layers))
            elif word is Solver and name in config.solvers:
                solvers[name] = wired[name] = config.build(config.solvers[name])
            elif word is Cost:
                wired[name] = cost
        wired |= _wire_network(config, config.rule, network)
        rule = config.build(config.rule, **wired)
        if system is None:
            rule = _on_device(config, rule)
        # Check that the trained parameters fit the data.
        _check_optimizer(config, rule)
        _check_bounded(config, rule, system)
        start = system.init if system is not None else _need_network(config, network).init
        network = _check_fit(config, data, network, start)
        if network is not None and rule.trained is None:  # a user's own rule may lack it
            rule = rule._replace(trained=network.trained)

        def init(key: Key) -> Params:
            return start(key, data.x.shape[1:])[0]

        # Choose the rows of each seed, build the optimizer, and trace one update.
        rows, validation, test = (  # with more seeds than splits, the splits repeat
            splits[np.arange(config.seeds) % len(splits)]
            for splits in (data.train, data.validation, data.test)
        )
        optimizer = _build_optimizer(config, network, rows.shape[1])
        examples = config.fidelity.examples
        if examples is not None and examples > rows.shape[1]:
            remedy = f"must be 1 to {rows.shape[1]}, the training set"
            raise config.error("fidelity.examples", examples, remedy)
        dry_run(config, Parts(data, start, system, cost, rule, optimizer))
        parts = (network, cost, rule, system, solvers, data, optimizer, init)
        return Problem(*parts, rows, validation, test)


def build_data(config: Config) -> Dataset:
    """Builds the config's data set.

    Args:
      config: the config.

    Returns:
      The data set.

    Raises:
      ConfigError: the config has no [data], because its study makes its own.
      DataError: the data are at fault.
    """
    with jax.enable_x64(config.double):
        return config.build(config.data)


def _check_optimizer(config: Config, rule: LearningRule) -> None:
    """Checks that the rule allows the optimizer."""
    name, decay = config.optimizer.name, config.optimizer.settings.get("weight_decay")
    known = rule.info.optimizers
    if known and name not in known:
        remedy = f"means nothing under the rule {rule.name!r}; allowed: {', '.join(known)}"
        raise config.error("optimizer.name", name, remedy)
    if rule.info.needs_decay and not decay and not config.optimizer.is_users_own:
        key, value = ("name", name) if decay is None else ("weight_decay", decay)
        remedy = (
            f"means nothing under the rule {rule.name!r}, whose feedback comes to the weights by "
            "decay alone; allowed: adamw with weight_decay > 0"
        )
        raise config.error(f"optimizer.{key}", value, remedy)


def _check_bounded(config: Config, rule: LearningRule, system: System | None) -> None:
    """Checks β < 1 for a negative nudge on linear outputs.

    In a linear output E has curvature 1, and βC has curvature β. So E − βC has no minimum from β =
    1 on. Hidden units can lower this bound. How far is known only after they have settled.
    """
    beta = config.rule.settings.get("beta")
    linear = system is not None and system.traits.linear_output
    squared = config.cost.name == "squared_error"
    if rule.info.pushes_away and linear and squared and isinstance(beta, float) and beta >= 1:
        nudging = config.rule.settings.get("nudging")
        remedy = "a linear output, pushed away from its target, is not bounded from 1 on"
        raise config.error("rule.beta", beta, f"must be < 1 with nudging = {nudging!r}: {remedy}")


def _wire_network(config: Config, part: Part, network: Layer | None) -> dict[str, Layer | None]:
    """The network for each argument of a factory that takes one.

    Raises:
      ConfigError: the factory needs a network and the config has none.
    """
    parameters = inspect.signature(part.factory).parameters
    names = [name for name, word in wires(part.factory).items() if word is Layer]
    optional = all(parameters[name].default is None for name in names)
    return dict.fromkeys(names, network if optional else _need_network(config, network))


def _on_device(config: Config, item: Any) -> Any:
    """Puts a system, or a rule without a system, on the device of [imperfections]."""
    part = config.imperfections
    return item if part is None else config.build(part, **dict.fromkeys(wires(part.factory), item))


def _need_network(config: Config, network: Layer | None) -> Layer:
    """The network. Raises ConfigError without one."""
    if network is None:
        remedy = f"is missing; the rule {config.rule.name!r} needs a network"
        raise config.error("network.layers", None, remedy)
    return network


def _build_optimizer(config: Config, network: Layer | None, examples: int) -> Any:
    """Builds the optimizer, and checks its rates and the batch size."""
    chosen, size = config.optimizer.settings, config.training.batch_size
    rates = chosen.get("layer_rates")
    if "learning_rate" not in chosen:
        raise config.error("optimizer.name", config.optimizer.name, "has no setting learning_rate")
    if size > examples:
        remedy = f"must be 1 to {examples}, the training set"
        raise config.error("training.batch_size", size, remedy)
    try:
        updates = config.training.epochs * (examples // size)
        return build_optimizer(config, updates, {"network": network, "layer_rates": rates})
    except ConfigError:
        raise
    except ValueError as error:
        remedy = error.remedy if isinstance(error, SettingError) else str(error)
        raise config.error("optimizer.layer_rates", rates, remedy) from error


def _check_fit(config: Config, data: Dataset, network: Layer | None, init: Any) -> Layer | None:
    """Checks that the trained parameters accept the data's examples and give the right outputs.

    Returns:
      The network if the trained parameters begin with its parameters, else None. A user's own
      system may have other parameters. The network then serves only other rules and the null
      controls.
    """
    key, shape = jax.random.key(0), data.x.shape[1:]
    users_own = config.system.is_users_own and (
        network is None or inspect.unwrap(init) is not inspect.unwrap(network.init)
    )

    def feed_forward() -> Params:  # traced to see if a layer, such as embedding, refuses
        assert network is not None
        params, _ = network.init(key, shape)
        network.forward(params, jnp.zeros((1, *shape)))
        return params

    try:
        inner = () if network is None else jax.eval_shape(feed_forward)
        params, out = init_shapes(partial(initial, init), shape)
    except EXPECTED:
        raise
    except ValueError as error:
        part = config.system
        if users_own:
            raise config.error(part.key, part.name, str(error)) from error
        located = part_error(config.error, part, error)
        if located.setting != part.key:
            raise located from error
        raise config.error("network.layers", None, f"do not fit {data.name}: {error}") from error
    if out != (data.outputs,):
        last = len(config.network.layers) - 1 if config.network is not None else 0
        remedy = (
            f"one example of {data.name} ({'×'.join(map(str, shape))}) gives outputs of "
            f"shape {out}; it must be ({data.outputs},)"
        )
        if len(out) > 1:
            remedy += '; is a "flatten" missing?'
        raise config.error("system.name" if users_own else f"network.layers.{last}", None, remedy)
    _check_task(config, data)
    check_memory(config, params, data.train.shape[1])
    first = params[: len(inner)] if isinstance(params, tuple) else None
    return None if trees.difference(first, inner) else network


def _check_task(config: Config, data: Dataset) -> None:
    """Checks that softmax cross-entropy has a classification task."""
    if config.cost.name == "softmax_cross_entropy" and data.task != "classification":
        kind = "a regression" if data.task == "regression" else "a task of binary outputs"
        remedy = f"{data.name} is {kind}; use squared_error"
        raise config.error("cost.name", config.cost.name, remedy)
