"""The parts that a config names, built and wired, with all checked that can be before compiling."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpeq.config import dry_run
from bpeq.config.device_checks import check_memory, ready
from bpeq.config.dry_run import initial
from bpeq.config.loading import Config, ConfigError
from bpeq.config.registry import resolve
from bpeq.config.schema import wires
from bpeq.core import trees
from bpeq.core.compat import enable_x64
from bpeq.data import Dataset
from bpeq.layers import init_shapes
from bpeq.training.optimizers import with_rates
from bpeq.types import Cost, Key, Layer, LearningRule, Params, Solver, System


class Problem(NamedTuple):
    """Everything a config names, built: what a user's own loop would start from."""

    network: Layer | None
    cost: Cost
    rule: LearningRule
    system: System | None
    solvers: dict[str, Solver]
    data: Dataset
    optimizer: optax.GradientTransformation
    init: Callable[[Key], Params]
    rows: np.ndarray  # [seeds, m] the training rows of each seed
    validation: np.ndarray
    test: np.ndarray

    @property
    def relaxes(self) -> bool:  # a rule that settles a system has another function
        return self.system is not None


def seed_keys(seed: int, seeds: int) -> Key:
    """`[seeds, 3]` keys: for the initial weights, for the rule's own init, for the data order.

    None depends on the rule, so that compared rules start and shuffle alike.
    """
    base = jax.random.key(seed)
    return jax.vmap(lambda i: jax.random.split(jax.random.fold_in(base, i), 3))(jnp.arange(seeds))


def build(config: Config, data: Dataset | None = None) -> Problem:
    """The parts of a config, with everything checked that can be before compiling.

    Raises:
      ConfigError: parts that do not fit each other or the data. DataError: the data are at fault.
    """
    ready(config)
    with enable_x64(config.tree["precision"] == "float64"):
        data = build_data(config) if data is None else data
        network, cost = config.build_network(), config.build("cost")
        rule_factory = resolve("rules", config.tree["rule"]["name"], config.folder)
        wired: dict[str, Any] = {}
        init: Any = network.init if network is not None else None
        for name, word in wires(rule_factory).items():
            if word is Solver:
                if name in config.tree["solvers"]:
                    wired[name] = config.build(f"solvers.{name}")
            elif word is System:
                wired[name] = _device(config, _system(config, network))
                init = wired[name].init
            elif word is Layer:
                wired[name] = _network_for(rule_factory, name, config, network)
            elif word is Cost:
                wired[name] = cost
        rule = config.build("rule", wired)
        if not any(isinstance(part, System) for part in wired.values()):
            rule = _device(config, rule)
        _check_optimizer(config, rule)
        start = _need_network(config, network).init if init is None else init
        network = _check_fit(config, data, network, start)
        if network is not None and rule.trained is None:  # a user's own rule may leave it out
            rule = rule._replace(trained=network.trained)
        _check_begins(config, rule, lambda key: start(key, data.x.shape[1:])[0])
        rows = _for_seeds(data.train, config.tree["seeds"])
        optimizer = _optimizer(config, network, rows.shape[1])
        looked_at = config.tree.get("fidelity", {}).get("examples", 1)
        if looked_at > rows.shape[1]:
            remedy = f"must be 1 to {rows.shape[1]}, the training set"
            raise config.fault("fidelity.examples", looked_at, remedy)
        system = next((part for part in wired.values() if isinstance(part, System)), None)
        dry_run.rehearse(config, data, start, system, cost, rule, optimizer)
        return Problem(
            network,
            cost,
            rule,
            system,
            {k: part for k, part in wired.items() if k in config.tree["solvers"]},
            data,
            optimizer,
            lambda key: start(key, data.x.shape[1:])[0],
            rows,
            _for_seeds(data.validation, config.tree["seeds"]),
            _for_seeds(data.test, config.tree["seeds"]),
        )


def build_data(config: Config) -> Dataset:
    """The config's data set.

    Raises:
      ConfigError: it has none, as where a study makes its own. DataError: the data are at fault.
    """
    if "data" not in config.tree:
        raise config.fault("data.name", None, "is missing; only `bpeq run` and `check` need none")
    with enable_x64(config.tree["precision"] == "float64"):
        return config.build("data")


def _check_optimizer(config: Config, rule: LearningRule) -> None:
    name = config.tree["optimizer"]["name"]
    known = rule.info.optimizers
    if known and name not in known:
        remedy = f"means nothing under the rule {rule.name!r}; allowed: {', '.join(known)}"
        raise config.fault("optimizer.name", name, remedy)
    decay = config.tree["optimizer"].get("weight_decay")
    if rule.info.needs_decay and not decay and ":" not in name:
        key, value = ("name", name) if decay is None else ("weight_decay", decay)
        remedy = (
            f"means nothing under the rule {rule.name!r}, whose feedback comes to the weights by "
            "decay alone; allowed: adamw with weight_decay > 0"
        )
        raise config.fault(f"optimizer.{key}", value, remedy)


def _check_begins(config: Config, rule: LearningRule, init: Callable[[Key], Params]) -> None:
    """A rule of ours takes the parameters that it is to train; traced only."""
    if ":" in config.tree["rule"]["name"]:
        return
    try:
        jax.eval_shape(lambda key: rule.init(key, init(key)), jax.random.key(0))
    except Exception as error:
        if fault := config.named_fault("rule", error):
            raise fault from error
        config.blame(error, "system", "network")


def _system(config: Config, network: Layer | None) -> System:
    factory = resolve("systems", config.tree["system"]["name"], config.folder)
    wired = {}
    for name in (name for name, word in wires(factory).items() if word is Layer):
        wired[name] = _network_for(factory, name, config, network)
    return config.build("system", wired)


def _network_for(
    factory: Any, argument: str, config: Config, network: Layer | None
) -> Layer | None:
    optional = signature(factory).parameters[argument].default is None
    return network if optional else _need_network(config, network)


def _device(config: Config, part: Any) -> Any:
    """A system, or a rule that has none, on the device that [imperfections] describes."""
    if "imperfections" not in config.tree:
        return part
    factory = resolve("imperfections", config.tree["imperfections"]["name"], config.path.parent)
    return config.build("imperfections", dict.fromkeys(wires(factory), part))


def _need_network(config: Config, network: Layer | None) -> Layer:
    if network is None:
        rule = config.tree["rule"]["name"]
        raise config.fault("network.layers", None, f"is missing; the rule {rule!r} needs a network")
    return network


def _optimizer(config: Config, network: Layer | None, examples: int) -> Any:
    settings, chosen = config.tree["training"], config.tree["optimizer"]
    size = settings["batch_size"]
    if "learning_rate" not in chosen:
        raise config.fault("optimizer.name", chosen["name"], "has no setting learning_rate")
    if size > examples:
        raise config.fault(
            "training.batch_size", size, f"must be 1 to {examples}, the training set"
        )
    try:
        return with_rates(
            config.build("optimizer"),
            learning_rate=chosen["learning_rate"],
            total_steps=settings["epochs"] * (examples // size),
            schedule=config.build("schedule"),
            layer_rates=chosen.get("layer_rates"),
            network=network,
            clip_norm=chosen.get("clip_norm"),
        )
    except ConfigError:
        raise
    except ValueError as error:
        rates = chosen.get("layer_rates")
        raise config.fault("optimizer.layer_rates", rates, str(error)) from error


def _check_fit(config: Config, data: Dataset, network: Layer | None, init: Any) -> Layer | None:
    """What is trained takes the data's examples and gives as many outputs as the data have.

    Returns:
      The network, if its parameters are the first of those that are trained: a user's own system
      may have others, beside a network that serves other rules and the null controls.
    """
    key, shape = jax.random.key(0), data.x.shape[1:]
    own = ":" in config.tree["system"]["name"] and (network is None or init is not network.init)

    def feed_forward() -> Params:  # traced only: what it refuses to compute on, such as embedding
        assert network is not None
        params, _ = network.init(key, shape)
        network.forward(params, jnp.zeros((1, *shape)))
        return params

    try:
        inner = () if network is None else jax.eval_shape(feed_forward)
        params, out = init_shapes(partial(initial, init), shape)
    except Exception as error:
        if own or not isinstance(error, ValueError):
            config.blame(error, "system" if own else "network")
        other = config.fault("network.layers", None, f"do not fit {data.name}: {error}")
        raise config.named_fault("system", error) or other from error
    if out != (data.outputs,):
        last = len(config.tree.get("network", {}).get("layers", [])) - 1
        remedy = (
            f"one example of {data.name} ({'×'.join(map(str, shape))}) gives outputs of "
            f"shape {out}; it must be ({data.outputs},)"
        )
        if len(out) > 1:
            remedy += '; is a "flatten" missing?'
        raise config.fault("system.name" if own else f"network.layers.{last}", None, remedy)
    _check_task(config, data)
    check_memory(config, params, data.train.shape[1])
    first = params[: len(inner)] if isinstance(params, tuple) else None
    return None if trees.difference(first, inner) else network


def _check_task(config: Config, data: Dataset) -> None:
    if config.tree["cost"]["name"] == "softmax_cross_entropy" and data.task != "classification":
        kind = "a regression" if data.task == "regression" else "a task of binary outputs"
        remedy = f"{data.name} is {kind}; use squared_error"
        raise config.fault("cost.name", "softmax_cross_entropy", remedy)


def _for_seeds(splits: np.ndarray, seeds: int) -> np.ndarray:
    return splits[np.arange(seeds) % len(splits)]
