"""Builds the networks of a study's config, [networks.NAME]."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

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
"""The shape of one example that a study needs. An entry None is any size; None is any shape."""


class Network(NamedTuple):
    """One of the networks of a study.

    Args:
      layer: the network as one layer.
      shape: the shape of one input example.
      tokens: the inputs are whole numbers below this; None: the inputs are real numbers.
    """

    layer: Layer
    shape: tuple[int, ...]
    tokens: int | None

    def init(self, key: Key) -> Params:
        """Draws initial parameters.

        Args:
          key: a random key.

        Returns:
          The parameters.
        """
        return self.layer.init(key, self.shape)[0]

    @property
    def output(self) -> tuple[int, ...]:
        """The shape of one output."""

        def one(key: Key) -> Array:
            return self.layer.forward(self.init(key), self.examples(key, 1))[0]

        return jax.eval_shape(one, jax.random.key(0)).shape[1:]

    def examples(self, key: Key, count: int) -> Array:
        """Draws random inputs: standard normal numbers, or tokens.

        Args:
          key: a random key.
          count: the number of examples.

        Returns:
          Inputs `[count, *shape]`.
        """
        shape = (count, *self.shape)
        if self.tokens is not None:
            return jax.random.randint(key, shape, 0, self.tokens, jnp.int32)
        return jax.random.normal(key, shape)


def build_networks(
    config: Config, wanted: Mapping[str, tuple[Sizes, Sizes]] | None = None
) -> dict[str, Network]:
    """Builds every [networks.NAME] of a config.

    Args:
      config: the config of a study.
      wanted: the networks that the study needs: name -> shapes of one input and one output; None:
        no network is needed.

    Returns:
      The networks by name.

    Raises:
      ConfigError: layers do not fit each other or the input; or a needed network is missing, or has
        another input or output.
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
        shapes = built[name].shape, built[name].output
        for key, shape, size in zip(("input", "layers"), shapes, sizes, strict=True):
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


def build_optimizer(
    config: Config, updates: int, by_layer: Mapping[str, Any] | None = None
) -> optax.GradientTransformation:
    """Builds [optimizer] with [schedule], such as for a study's own steps.

    Args:
      config: the config.
      updates: the number of updates of the whole run, for the schedule.
      by_layer: `network` and `layer_rates` of `with_rates`; None: one rate for all layers.

    Returns:
      The optimizer.

    Raises:
      ConfigError: [optimizer] has rates per layer. They need one network, and a study may have
        several.
    """
    chosen = config.optimizer.settings
    if by_layer is None and "layer_rates" in chosen:
        remedy = "a study's networks have one rate for all layers"
        raise config.error("optimizer.layer_rates", chosen["layer_rates"], remedy)
    return with_rates(
        config.build(config.optimizer),
        learning_rate=chosen["learning_rate"],
        total_steps=updates,
        schedule=config.build(config.schedule),
        clip_norm=chosen.get("clip_norm"),
        **(by_layer or {}),
    )


def learner(
    config: Config, network: Network, cost: Cost, keys: Key, updates: int
) -> tuple[Carry, Step]:
    """Makes the first carry and the step of backprop with the optimizer of `build_optimizer`.

    Args:
      config: the config of a study.
      network: the network to train.
      cost: the cost.
      keys: `[seeds, 3]` keys from `problem.seed_keys`. The first of each seed draws the weights.
      updates: the number of updates of the whole run, for the schedule.

    Returns:
      The carry, seeds on axis 0, and the step.

    Raises:
      ConfigError: [optimizer] has rates per layer.
    """
    rule, optimizer = backprop(network.layer, cost), build_optimizer(config, updates)

    def first(init_key: Key, key: Key) -> Carry:
        return start(rule, optimizer, network.init(init_key), key)

    return jax.vmap(first)(keys[:, 0], keys[:, 1]), supervised(rule, optimizer)
