"""Kolen–Pollack: feedback weights get the forward weights' updates, and so align with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.rules._backprop import network_rule, passed_back
from bpeq.rules._feedback_alignment import second_draw
from bpeq.settings import Degrees, SettingError, checked
from bpeq.types import Batch, Cost, Estimate, Key, Layer, LearningRule, Params, State


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

    def init(key: Key, params: Params) -> tuple[Params, State]:
        if len(params) > len(network.parts):
            return params, ()
        return (*params, {"feedback": trees.sub(second_draw(key, params, angle), params)}), ()

    def forward(params: Params, x: Any, key: Key | None = None) -> tuple[Array, Any]:
        return network.forward(params[:-1], x, key)

    def absorb(params: Params, residuals: Any) -> Params:
        assert network.absorb is not None
        return (*network.absorb(params[:-1], residuals), params[-1])

    def estimate(params: Params, batch: Batch, state: State, key: Key) -> tuple[Estimate, State]:
        own, feedback = params[:-1], trees.add(params[:-1], params[-1]["feedback"])
        passed = passed_back(network, cost, own, feedback, batch, key)
        return passed._replace(grads=(*passed.grads, trees.zeros(params[-1]))), state

    # The network does not read D, so its exact gradient for D is zero.
    both = network._replace(forward=forward, absorb=network.absorb and absorb)
    about: dict[str, Any] = {"optimizers": ("adamw",), "needs_decay": True}
    about["device_weights"] = (_both(trees.add), _both(trees.sub))
    return network_rule("kolen_pollack", both, cost, estimate, init, **about)


def _both(combine: Callable[[Any, Any], Any]) -> Callable[[Params], Params]:
    """The map (W, D) -> (W, D + W), or its inverse (W, B) -> (W, B − W)."""
    return lambda params: (
        *params[:-1], {"feedback": combine(params[-1]["feedback"], params[:-1])}
    )  # fmt: skip


def symmetrise_feedback_gradients(grads: Params, network: Layer | None) -> Params:
    """Give both weights of a connection the sum of their two gradients.

        g_W, g_B  →  g_W + g_B,  g_W + g_B

    Args:
      grads: gradients in the shape of params. The last entry is {"feedback": tree}: a dict by the
        names of the connections, or a tuple that mirrors the entries before it.
      network: the network whose blocks have those names; None is allowed for a tuple only.

    Returns:
      A tree like grads.

    Raises:
      ValueError: there is no feedback entry, a named entry comes without a network, or an entry
        does not fit its forward weights.
    """
    forward, feedback = _split(grads)
    if isinstance(feedback, tuple):  # mirrors the forward entries; an empty part has no feedback
        if len(feedback) != len(forward):
            said = f"the feedback tuple has {len(feedback)} entries; must be {len(forward)}"
            raise _wrong(f"{said}, as many as params have before it")
        for i, part in enumerate(feedback):
            if trees.size(part):
                forward[i] = _sum(str(i), forward[i], part)
        given = [a if trees.size(b) else b for a, b in zip(forward, feedback, strict=True)]
        return (*forward, {"feedback": tuple(given)})
    if not isinstance(feedback, dict):
        said = (
            f"feedback is {trees.describe_tree(feedback)}; must be a dict by connection, or a tuple"
        )
        raise _wrong(f"{said}")
    if network is None:
        raise _wrong(
            f"network = None: must be the network whose "
            f"blocks name the feedback weights {', '.join(feedback)}"
        )
    # A named entry belongs to a block of the network or to a skip.
    places, both = {block.name: block.slice for block in cut(network)}, {}
    skips = forward[-1].get("skips", {}) if forward and isinstance(forward[-1], dict) else {}
    for name, part in feedback.items():
        if name in places:
            both[name] = _sum(name, tuple(forward[places[name]]), part)
            forward[places[name]] = both[name]
        elif name in skips:
            both[name] = _sum(name, skips[name], part)
            forward[-1] = {"skips": {**forward[-1]["skips"], name: both[name]}}
        else:
            raise _wrong(
                f"feedback {name!r} names no connection; allowed: {', '.join([*places, *skips])}"
            )
    return (*forward, {"feedback": both})


def _sum(name: str, own: Params, back: Params) -> Params:
    """The sum of both gradients; an error if their shapes differ."""
    wrong = trees.difference(back, own)
    if wrong:
        raise _wrong(f"feedback {name!r} does not fit its forward weights: {wrong}")
    return trees.add(own, back)


def _split(params: Params) -> tuple[list[Params], Any]:
    """The entries before the last one, and the feedback tree that the last one holds."""
    last = params[-1] if isinstance(params, tuple) and params else None
    if not (isinstance(last, dict) and "feedback" in last):
        raise _wrong(
            "params have no {'feedback': ...} entry; "
            "allowed only for systems with feedback weights of their own, such as "
            "hopfield(..., feedback = 'untied')"
        )
    return list(params[:-1]), last["feedback"]


def _wrong(remedy: str) -> SettingError:
    """The error for params that `kolen_pollack` cannot use."""
    return SettingError("vector_field_eqprop", "kolen_pollack", True, remedy)
