"""The several networks of a study's config, [networks.NAME], built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config
from bpeq.layers import chain
from bpeq.rules import backprop
from bpeq.training.loops import Carry, start, supervised
from bpeq.training.optimizers import with_rates
from bpeq.types import Cost, Key, Layer, Params, Step

Sizes = tuple[int | None, ...] | None
"""A shape of one example as a study wants it; None stands for any."""


class Network(NamedTuple):
    """One of several networks. shape: of one example; tokens: below this are its whole numbers."""

    layer: Layer
    shape: tuple[int, ...]
    tokens: int | None

    def init(self, key: Key) -> Params:
        return self.layer.init(key, self.shape)[0]

    @property
    def output(self) -> tuple[int, ...]:
        """The shape of one output."""

        def one(key: Key) -> Array:
            return self.layer.forward(self.init(key), self.examples(key, 1))[0]

        return jax.eval_shape(one, jax.random.key(0)).shape[1:]

    def examples(self, key: Key, count: int) -> Array:
        """Random inputs: standard normal, or tokens."""
        shape = (count, *self.shape)
        if self.tokens is not None:
            return jax.random.randint(key, shape, 0, self.tokens, jnp.int32)
        return jax.random.normal(key, shape)


def build_networks(
    config: Config, wanted: Mapping[str, tuple[Sizes, Sizes]] | None = None
) -> dict[str, Network]:
    """Every [networks.NAME] of a config.

    Args:
      wanted: what a study cannot do without, name -> shapes of one input and one output.

    Raises:
      ConfigError: layers that do not fit each other or the input; a network that is wanted and not
        there, or there with another input or output.
    """
    built = {}
    for name, spec in config.networks.items():
        network = Network(chain(*map(config.build, spec.layers)), spec.input, spec.tokens)
        try:
            _ = network.output
        except ConfigError:
            raise
        except (ValueError, TypeError) as error:
            layers = spec.as_dict()["layers"]
            raise config.error(f"networks.{name}.layers", layers, str(error)) from error
        built[name] = network
    for name, sizes in (wanted or {}).items():
        if name not in built:
            raise config.error(f"networks.{name}", None, "is missing; the study needs it")
        found = built[name].shape, built[name].output
        for key, shape, size in zip(("input", "layers"), found, sizes, strict=True):
            if not _fits(shape, size):
                verb = "take" if key == "input" else "give"
                remedy = f"the study's {name} must {verb} {_shown(size)}, not {_shown(shape)}"
                value = config.networks[name].as_dict()[key]
                raise config.error(f"networks.{name}.{key}", value, remedy)
    return built


def _fits(shape: tuple[int, ...], wanted: Sizes) -> bool:
    if wanted is None:
        return True
    return len(shape) == len(wanted) and all(
        size in (None, n) for n, size in zip(shape, wanted, strict=True)
    )


def _shown(shape: Sizes) -> str:
    return " × ".join("any" if n is None else str(n) for n in shape or ()) or "a number"


def build_optimizer(config: Config, updates: int) -> optax.GradientTransformation:
    """[optimizer] with [schedule] over so many updates, for a study's own steps.

    Raises:
      ConfigError: rates per layer, which need to know the one network that is trained.
    """
    chosen = config.optimizer.settings
    if "layer_rates" in chosen:
        remedy = "a study's networks have one rate for all layers"
        raise config.error("optimizer.layer_rates", chosen["layer_rates"], remedy)
    return with_rates(
        config.build(config.optimizer),
        learning_rate=chosen["learning_rate"],
        total_steps=updates,
        schedule=config.build(config.schedule),
        clip_norm=chosen.get("clip_norm"),
    )


def learner(
    config: Config, network: Network, cost: Cost, keys: Key, updates: int
) -> tuple[Carry, Step]:
    """The first carry, seeds on axis 0, and the step of backprop under `build_optimizer`.

    Args:
      keys: `[seeds, 3]` of `problem.seed_keys`: initial weights are drawn from the first ones.
    """
    rule, optimizer = backprop(network.layer, cost), build_optimizer(config, updates)

    def first(init_key: Key, key: Key) -> Carry:
        return start(rule, optimizer, network.init(init_key), key)

    return jax.vmap(first)(keys[:, 0], keys[:, 1]), supervised(rule, optimizer)
