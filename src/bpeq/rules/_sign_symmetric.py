"""Sign-symmetric feedback: the errors know the signs of the weights, but not their magnitudes."""

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

    The signs are those of the current weights, read anew in every estimate: one bit a weight is
    still transported. With M = |W| it is backprop, and the last layer's gradient is backprop's
    whatever M is. Feedback never points away from the weights: B·W = Σ M|W| >= 0. M is

        random    |Gaussian| entries, drawn once (the paper's "fixed random magnitude", frSF)
        uniform   one number a leaf (its "uniform", uSF)

    of the norm of the weights that the rule's `init` is given: with the paper's magnitudes of one
    the errors would grow from layer to layer, for which it normalises batches and updates. Weights
    that start at zero, all of a leaf, pass no error back, ever.

    Args:
      network: any layer. cost: compares its output with y.
      magnitude: see above.

    The rule's state is {"magnitudes": M}, a tree like params.

    Raises:
      ValueError: a setting is none of its choices.

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
