"""Population statistics measured afresh, for networks with batch normalisation."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from bpeq.types import Layer, Params


def calibrate(network: Layer, params: Params, x: Any) -> Params:
    """`params` with the population statistics that `x` has on its way through the network.

    Running averages trail behind the weights, and were taken with dropout on; these are those of
    the weights as they are, evaluated as they will be. Afterwards evaluation on x normalises as
    training on x as one batch would (without dropout).

    Each evaluation pass writes every normalisation's statistics of that pass, so that pass i
    settles the i-th one on the way from the input; the pass that changes nothing is the last. It
    costs one pass more than there are normalisations, whatever combinators they stand in. Can be
    jitted.

    Args:
      network: any layer; without statistics `params` come back as they are.
      params: its parameters; entries that a rule has appended to a chain's stay as they are.
      x: `[examples, ...]`, as many as fit in memory at once; a thousand are plenty.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.layers import batch_norm, chain
      >>> network = chain(batch_norm())
      >>> params, _ = network.init(jax.random.key(0), (1,))
      >>> calibrate(network, params, jnp.array([[1.0], [3.0]]))[0]["mean"].tolist()
      [2.0]
    """
    absorb = network.absorb
    if absorb is None:
        return params
    if network.name == "chain" and len(params) > len(network.parts):
        own = len(network.parts)
        return (*calibrate(network, params[:own], x), *params[own:])

    def go_on(carry: tuple[Params, Any]) -> Any:
        return carry[1]

    def measure(carry: tuple[Params, Any]) -> tuple[Params, Any]:
        old, _ = carry
        new = absorb(old, network.forward(old, x)[1])
        same = [
            jnp.array_equal(a, b, equal_nan=True)
            for a, b in zip(jax.tree.leaves(old), jax.tree.leaves(new), strict=True)
        ]
        return new, ~jnp.stack(same).all()

    return jax.lax.while_loop(go_on, measure, (params, jnp.array(True)))[0]
