"""The several networks of a study's config, [networks.NAME], built."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.config import Config
from bpeq.layers import chain
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
