"""Sign-symmetric feedback: the errors use the signs of the weights, but not their magnitudes."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.rules._backprop import network_rule, passed_back
from bpeq.rules._feedback_alignment import second_draw
from bpeq.settings import checked
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, State


@checked
def sign_symmetric(
    network: Layer, cost: Cost, *, magnitude: Literal["random", "uniform"] = "random"
) -> LearningRule:
    """Sign-symmetric feedback: the errors pass back through sign(W) ⊙ M, with fixed magnitudes M.

        B_l = sign(W_l) ⊙ M_l      δ_l = (B_{l+1}ᵀ δ_{l+1}) ⊙ σ′(z_l)      ∂C/∂W_l ≈ a_{l−1} δ_l

    Each estimate reads the signs of the current weights. So one bit per weight is still
    transported. With M = |W| it is backprop. The last layer's gradient is backprop's for any M.
    Feedback never points away from the weights: B·W = Σ M|W| >= 0. M is

        random    |Gaussian| entries, drawn once (the paper's "fixed random magnitude", frSF)
        uniform   one number per leaf (its "uniform", uSF)

    The norm of M is that of the weights in the rule's `init`. With the paper's magnitudes of one
    the errors would grow from layer to layer; the paper normalises batches and updates against it.
    If all weights of a leaf start at zero, they never pass an error back.

    Args:
      network: any layer.
      cost: compares the network's output with y.
      magnitude: "random" or "uniform", as above.

    Returns:
      A LearningRule with the state {"magnitudes": M}, a tree like params.

    Raises:
      ValueError: a setting is not one of its choices.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense
      >>> from bpeq.types import Batch
      >>> network = chain(dense(1, bias=False), dense(1, bias=False))
      >>> rule = sign_symmetric(network, squared_error(), magnitude="uniform")
      >>> params = ({"w": jnp.ones((1, 1))}, {"w": jnp.ones((1, 1))})
      >>> params, state = rule.init(jax.random.key(0), params)
      >>> grown = ({"w": jnp.ones((1, 1))}, {"w": jnp.full((1, 1), -5.0)})
      >>> batch = Batch(jnp.array([[1.0]]), jnp.array([[0.0]]))
      >>> estimate, _ = rule.estimate(grown, batch, state, jax.random.key(0))
      >>> [float(g["w"][0, 0]) for g in estimate.grads]  # backprop: 25 and −5
      [5.0, -5.0]

    Source: Liao, Leibo & Poggio 2016, How important is weight symmetry in backpropagation?
    """

    def init(key: Key, params: Params) -> tuple[Params, State]:
        if magnitude == "random":
            return params, {"magnitudes": jax.tree.map(jnp.abs, second_draw(key, params))}

        def one(w: Array) -> Array:
            return jnp.broadcast_to(jnp.sqrt(jnp.mean(w * w)), w.shape)

        return params, {"magnitudes": jax.tree.map(one, params)}

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        feedback = jax.tree.map(lambda w, m: jnp.sign(w) * m, params, state["magnitudes"])
        return passed_back(network, cost, params, feedback, batch, key), state

    return network_rule("sign_symmetric", network, cost, estimate, init)
