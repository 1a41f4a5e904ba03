"""The parts that a config names, built and wired, with all checked that can be before compiling."""

from __future__ import annotations

from collections.abc import Callable
from inspect import signature
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpeq._schema import wires
from bpeq.config import Config, ConfigError
from bpeq.data import Dataset
from bpeq.optimizers import with_rates
from bpeq.registry import resolve
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
    def relaxes(self) -> bool:
        """Whether the rule settles a system, which makes its output another function."""
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
    with jax.enable_x64(config.tree["precision"] == "float64"):
        data = config.build("data") if data is None else data
        network, cost = config.build_network(), config.build("cost")
        rule_factory = resolve("rules", config.tree["rule"]["name"], config.path.parent)
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
                optional = signature(rule_factory).parameters[name].default is None
                wired[name] = network if optional else _need_network(config, network)
            else:
                wired[name] = cost
        rule = config.build("rule", wired)
        if not any(isinstance(part, System) for part in wired.values()):
            rule = _device(config, rule)
        _check_optimizer(config, rule)
        start = _need_network(config, network).init if init is None else init
        _check_fit(config, data, network, start)
        rows = _for_seeds(data.train, config.tree["seeds"])
        optimizer = _optimizer(config, network, rows.shape[1])
        looked_at = config.tree.get("fidelity", {}).get("examples", 1)
        if looked_at > rows.shape[1]:
            remedy = f"must be 1 to {rows.shape[1]}, the training set"
            raise config.fault("fidelity.examples", looked_at, remedy)
        return Problem(
            network,
            cost,
            rule,
            next((part for part in wired.values() if isinstance(part, System)), None),
            {k: part for k, part in wired.items() if k in config.tree["solvers"]},
            data,
            optimizer,
            lambda key: init(key, data.x.shape[1:])[0],
            rows,
            _for_seeds(data.validation, config.tree["seeds"]),
            _for_seeds(data.test, config.tree["seeds"]),
        )


def _check_optimizer(config: Config, rule: LearningRule) -> None:
    name = config.tree["optimizer"]["name"]
    if rule.optimizers and name not in rule.optimizers:
        remedy = (
            f"means nothing under the rule {rule.name!r}; allowed: {', '.join(rule.optimizers)}"
        )
        raise config.fault("optimizer.name", name, remedy)


def _system(config: Config, network: Layer | None) -> System:
    factory = resolve("systems", config.tree["system"]["name"], config.path.parent)
    wired = {
        name: _need_network(config, network) for name, w in wires(factory).items() if w is Layer
    }
    return config.build("system", wired)


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


def _check_fit(config: Config, data: Dataset, network: Layer | None, init: Any) -> None:
    """The network takes the data's examples and gives as many outputs as the data have."""
    shapes: list[Any] = []

    def note(key: Key) -> Params:
        params, shape = init(key, data.x.shape[1:])
        shapes.append(shape)
        if network is not None:  # traced only: what it refuses to compute on, such as embedding
            own, _ = network.init(key, data.x.shape[1:])
            network.forward(own, jnp.zeros((1, *data.x.shape[1:])))
        return params

    try:
        jax.eval_shape(note, jax.random.key(0))
    except ValueError as error:
        raise config.fault("network.layers", None, f"do not fit {data.name}: {error}") from error
    if shapes[0] != (data.outputs,):
        last = len(config.tree.get("network", {}).get("layers", [])) - 1
        remedy = (
            f"one example of {data.name} ({'×'.join(map(str, data.x.shape[1:]))}) gives outputs of "
            f"shape {tuple(shapes[0])}; it must be ({data.outputs},)"
        )
        if len(shapes[0]) > 1:
            remedy += '; is a "flatten" missing?'
        raise config.fault(f"network.layers.{last}" if last >= 0 else "system.name", None, remedy)
    if config.tree["cost"]["name"] == "softmax_cross_entropy" and data.task != "classification":
        kind = "a regression" if data.task == "regression" else "a task of binary outputs"
        remedy = f"{data.name} is {kind}; use squared_error"
        raise config.fault("cost.name", "softmax_cross_entropy", remedy)


def _for_seeds(splits: np.ndarray, seeds: int) -> np.ndarray:
    return splits[np.arange(seeds) % len(splits)]
