"""Kolen–Pollack: feedback weights get the forward weights' updates, and so align with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from bpeq.core import trees
from bpeq.rules._autodiff import autodiff
from bpeq.rules._backprop import passed_back
from bpeq.rules._common import statistics_of
from bpeq.rules._feedback_alignment import second_draw
from bpeq.settings import Degrees, checked
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, RuleInfo, State


@checked
def kolen_pollack(network: Layer, cost: Cost, *, angle: Degrees = 90.0) -> LearningRule:
    """Kolen–Pollack: feedback alignment whose B gets W's own updates; weight decay aligns B with W.

        δ_l = (B_{l+1}ᵀ δ_{l+1}) ⊙ σ′(z_l)      g_l = a_{l−1} δ_l
        W ← W − η (u(g) + λ W)                  B ← B − η (u(g) + λ B)

    u(g) is the optimizer's update for the gradient g; it is the same for both. A weight and its
    feedback weight see the same two activities, so no weight is transported. Hence
    D = B − W ← (1 − ηλ) D for any gradients. After n steps D is (1 − ηλ)^n of its start, B points
    along W, and the estimate tends to backprop's. The factor depends on Σ ηλ over the run: at 5, D
    is down to 1/150.

    Params keep D as an entry {"feedback": D} after the network's own, a tree like them. Its
    gradient is zero, so only the optimizer's decoupled decay moves it. `apply` does not read it.
    With `layer_rates` each part of D has the rate of its block, as the updates above need it.
    Limits, levels and mismatch of an imperfect device act on W and B.

    The rule needs a decay that does not depend on the gradient's scale: `adamw`, with a
    weight_decay λ far above its usual 1e-4. With another optimizer, or with λ = 0, D never changes.
    The rule is then feedback alignment with a B that moves along with W. A config that asks for
    this is refused.

    Args:
      network: a chain.
      cost: compares the network's output with y.
      angle: between B and W at the start, in degrees, 0 to 180; 90 is unrelated. The rule's `init`
        draws B as `feedback_alignment` does. It keeps params that have the entry already.

    Returns:
      A LearningRule without a state; its `init` appends the entry to params.

    Raises:
      ValueError: a setting is out of range, or the network is no chain.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.costs import squared_error
      >>> from bpeq.layers import chain, dense
      >>> from bpeq.types import Batch
      >>> network = chain(dense(3), dense(1))
      >>> rule = kolen_pollack(network, squared_error(), angle=180.0)
      >>> params, _ = rule.init(jax.random.key(1), network.init(jax.random.key(0), (2,))[0])
      >>> w, d = params[1]["w"], params[2]["feedback"][1]["w"]
      >>> (d / w).round(6).ravel().tolist()  # B = W + D = −W
      [-2.0, -2.0, -2.0]
      >>> batch = Batch(jnp.ones((1, 2)), jnp.ones((1, 1)))
      >>> grads = rule.estimate(params, batch, (), jax.random.key(2))[0].grads
      >>> grads[2]["feedback"][1]["w"].ravel().tolist()
      [0.0, 0.0, 0.0]

    Source: Kolen & Pollack 1994, Backpropagation without weight transport; for deep networks Akrout
    et al. 2019, Deep learning without weight transport.
    """
    if network.name != "chain":
        raise ValueError(f"kolen_pollack: needs a chain, got the layer {network.name!r}")
    statistics, exact = statistics_of(network), autodiff(network, cost)

    def init(key: Key, params: Params) -> tuple[Params, State]:
        if len(params) > len(network.parts):
            return params, ()
        return (*params, {"feedback": trees.sub(second_draw(key, params, angle), params)}), ()

    def apply(params: Params, x: Any, key: Key | None = None) -> Array:
        return network.forward(params[:-1], x, key)[0]

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        own, feedback = params[:-1], trees.add(params[:-1], params[-1]["feedback"])
        return beside(passed_back(network, cost, own, feedback, batch, key), params), state

    def exactly(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        """The reference's estimate: autodiff for W, zero for D."""
        return beside(exact.estimate(params[:-1], batch, state, key)[0], params), state

    def beside(found: Estimate, params: Params) -> Estimate:
        """The estimate with a zero gradient for D."""
        return found._replace(grads=(*found.grads, trees.zeros(params[-1])))

    def absorb(params: Params, info: dict[str, Any]) -> Params:
        assert statistics is not None
        return (*statistics(params[:-1], info), params[-1])

    kept = None if statistics is None else absorb
    trained = network.trained
    reference = LearningRule("autodiff", init, apply, exactly, kept, trained=trained)
    return LearningRule(
        "kolen_pollack",
        init,
        apply,
        estimate,
        kept,
        info=RuleInfo(
            reference._replace(info=RuleInfo(reference)),
            optimizers=("adamw",),
            needs_decay=True,
            device_weights=(_both(trees.add), _both(trees.sub)),
        ),
        trained=trained,
    )


def _both(combine: Callable[[Any, Any], Any]) -> Callable[[Params], Params]:
    """The map (W, D) -> (W, D + W), or its inverse (W, B) -> (W, B − W)."""
    return lambda params: (
        *params[:-1], {"feedback": combine(params[-1]["feedback"], params[:-1])}
    )  # fmt: skip
