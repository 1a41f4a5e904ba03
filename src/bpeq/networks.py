"""The several networks of a study's config, [networks.NAME], built."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from bpeq.config import Config
from bpeq.layers import chain
from bpeq.optimizers import with_rates
from bpeq.types import Key, Layer, Params


class Network(NamedTuple):
    """One of several networks. shape: of one example; tokens: below this are its whole numbers."""

    layer: Layer
    shape: tuple[int, ...]
    tokens: int | None

    def init(self, key: Key) -> Params:
        return self.layer.init(key, self.shape)[0]

    def examples(self, key: Key, count: int) -> Array:
        """Random inputs: standard normal, or tokens."""
        shape = (count, *self.shape)
        if self.tokens is not None:
            return jax.random.randint(key, shape, 0, self.tokens, jnp.int32)
        return jax.random.normal(key, shape)


def build_networks(config: Config) -> dict[str, Network]:
    """Every [networks.NAME] of a config.

    Raises:
      ConfigError: layers that do not fit each other or the input.
    """
    built = {}
    for name, spec in config.tree.get("networks", {}).items():
        place = f"networks.{name}"
        layers = config.build_layers(f"{place}.layers", dict(enumerate(spec["layers"])))
        network = Network(chain(*layers.values()), tuple(spec["input"]), spec.get("tokens"))
        try:
            jax.eval_shape(network.init, jax.random.key(0))
        except (ValueError, TypeError) as error:
            raise config.fault(f"{place}.layers", spec["layers"], str(error)) from error
        built[name] = network
    return built


def build_optimizer(config: Config, updates: int) -> optax.GradientTransformation:
    """[optimizer] with [schedule] over so many updates, for a study's own steps.

    Raises:
      ConfigError: rates per layer, which need to know the one network that is trained.
    """
    chosen = config.tree["optimizer"]
    if "layer_rates" in chosen:
        remedy = "a study's networks have one rate for all layers"
        raise config.fault("optimizer.layer_rates", chosen["layer_rates"], remedy)
    return with_rates(
        config.build("optimizer"),
        learning_rate=chosen["learning_rate"],
        total_steps=updates,
        schedule=config.build("schedule"),
        clip_norm=chosen.get("clip_norm"),
    )
