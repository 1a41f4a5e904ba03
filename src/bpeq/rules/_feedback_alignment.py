"""Feedback alignment: backpropagation with fixed random weights in place of the transposes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.core import trees
from bpeq.rules._backprop import network_rule, passed_back
from bpeq.settings import Degrees, checked
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, State


@checked
def feedback_alignment(network: Layer, cost: Cost, *, angle: Degrees = 90.0) -> LearningRule:
    """Feedback alignment: the errors pass back through fixed random weights B, not through Wᵀ.

        δ_L = ∂C/∂z_L      δ_l = (B_{l+1}ᵀ δ_{l+1}) ⊙ σ′(z_l)      ∂C/∂W_l ≈ a_{l−1} δ_l

    It is backprop's pass with `feedback` = B. A layer reads B wherever an error passes backward
    through one of its weights, and W everywhere else. With B = W it is backprop. The last layer's
    gradient is backprop's for any B. No weight is transported. W aligns with B in training, because
    the layers below learn to make B's errors useful. The estimate is biased, and a part of the bias
    stays. As a rule the bias is larger for layers further from the output.

    The rule's `init` draws B once, leaf by leaf. A leaf of B is Gaussian, has the norm of its W and
    stands at `angle` from it. If all entries of a leaf are the same, B takes over this leaf. So
    gains of ones feed back as ones. Weights that all start at zero never pass an error.

    Args:
      network: any layer.
      cost: compares the network's output with y.
      angle: between B and the initial W, in degrees, 0 to 180. 90 is unrelated feedback; 0 is the
        initial weights themselves, kept.

    Returns:
      A LearningRule with the state {"feedback": B}, a tree like params. Put any other tree in its
      place to use other feedback weights.

    Raises:
      ValueError: a setting is out of range.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense
      >>> from bpeq.types import Batch
      >>> rule = feedback_alignment(chain(dense(1, bias=False), dense(1)), squared_error())
      >>> params = ({"w": jnp.ones((1, 1))}, {"w": jnp.ones((1, 1)), "b": jnp.zeros(1)})
      >>> state = {"feedback": jax.tree.map(lambda w: -2.0 * w, params)}
      >>> batch = Batch(jnp.array([[3.0]]), jnp.array([[2.0]]))
      >>> estimate, _ = rule.estimate(params, batch, state, jax.random.key(0))
      >>> [float(g["w"][0, 0]) for g in estimate.grads]  # backprop: 3 and 3
      [-6.0, 3.0]

    Source: Lillicrap, Cownden, Tweed & Akerman 2016, Random synaptic feedback weights support error
    backpropagation for deep learning.
    """

    def init(key: Key, params: Params) -> tuple[Params, State]:
        return params, {"feedback": second_draw(key, params, angle)}

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        return passed_back(network, cost, params, state["feedback"], batch, key), state

    return network_rule("feedback_alignment", network, cost, estimate, init)


def second_draw(key: Key, params: Params, angle: float = 90.0) -> Params:
    """Draw weights of the shapes and norms of `params`, at an angle from them, leaf by leaf.

    A rule does not know the shape of an example, so it cannot call the network's own init. It sees
    only the weights of the first init. A leaf with a single value, such as a gain of ones, is not
    random: the result has the same leaf.

    Args:
      key: key of the draw.
      params: the first weights.
      angle: in degrees, 0 to 180; 90 is unrelated.

    Returns:
      A tree like params.
    """
    leaves, structure = jax.tree.flatten(params)

    def one(i: int, leaf: Array) -> Array:
        drawn = jax.random.normal(jax.random.fold_in(key, i), leaf.shape, leaf.dtype)
        return jnp.where(jnp.all(leaf == leaf.reshape(-1)[0]), leaf, drawn)

    other = jax.tree.unflatten(structure, [one(i, leaf) for i, leaf in enumerate(leaves)])
    return trees.at_angle(params, other, angle)
