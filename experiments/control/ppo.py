"""Proximal policy optimisation on CartPole: play and learning in one step, errors by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from bpeq.core.numerics import log_softmax
from bpeq.experiment import Network
from bpeq.layers import trained_leaves
from bpeq.training.loops import Metrics
from bpeq.training.optimizers import apply_updates
from bpeq.types import Key, Params, Step

from . import cartpole


class Carry(NamedTuple):
    """Weights of both networks, the optimizer's state, and the carts as they stand.

    states `[carts, 4]`; ages `[carts]`, steps into the episode; lasts `[carts]`, the return of the
    episode that ended last.
    """

    params: dict[str, Params]
    optimizer: Any
    states: Array
    ages: Array
    lasts: Array


class Played(NamedTuple):
    """What came about, `[steps, carts, ...]`."""

    states: Array
    actions: Array
    log_p: Array
    after: Array  # the state that the action led to, before any new start
    fell: Array
    ended: Array  # fell, or stopped after 500 steps


def policy_error(
    logits: Float[Array, "batch 2"],
    actions: Int[Array, " batch"],
    before: Float[Array, " batch"],
    advantage: Float[Array, " batch"],
    clip: float,
    entropy: float,
) -> tuple[Float[Array, " batch"], Float[Array, "batch 2"]]:
    """The cost of each example, and its derivative by the logits, written by hand.

    With p = softmax(z), r = p_a / p_a⁰ and the entropy H = −Σ p log p

        C = −min(r A, clip(r, 1 − ε, 1 + ε) A) − c H
        ∂C/∂z_k = −[not clipped] r A (1[k = a] − p_k) + c p_k (log p_k + H)

    where "clipped" is r > 1 + ε for A > 0 and r < 1 − ε for A < 0.

    Args:
      before: log p_a⁰ when the action was taken. clip: ε. entropy: c.

    Source: Schulman et al. 2017, Proximal policy optimization algorithms, eq. 7; Williams 1992 for
    the derivative of log p_a.
    """
    # A probability of 0 has the log −∞; the least number keeps p log p at 0.
    log_p = jnp.maximum(log_softmax(logits), jnp.finfo(logits.dtype).min)
    p, chosen = jnp.exp(log_p), jax.nn.one_hot(actions, logits.shape[-1], dtype=logits.dtype)
    ratio = jnp.exp(jnp.sum(log_p * chosen, axis=-1) - before)
    spread = -jnp.sum(p * log_p, axis=-1)
    bounded = jnp.clip(ratio, 1 - clip, 1 + clip)
    cost = -jnp.minimum(ratio * advantage, bounded * advantage) - entropy * spread
    active = jnp.where(advantage > 0, ratio <= 1 + clip, ratio >= 1 - clip)
    pull = jnp.where(active, ratio * advantage, 0.0)[:, None]
    return cost, -pull * (chosen - p) + entropy * p * (log_p + spread[:, None])


def advantages(
    values: Float[Array, "steps carts"],
    after: Float[Array, "steps carts"],
    played: Played,
    discount: float,
    trace: float,
) -> Float[Array, "steps carts"]:
    """A_t = δ_t + γ λ A_{t+1}, δ_t = (1 − γ) + γ v(s′_t) − v(s_t), over each episode by itself.

    Every step earns 1 − γ, so that values are shares of the most there is to get. A fallen cart has
    v(s′) = 0; one that is merely stopped keeps its value.

    Source: Schulman et al. 2016, High-dimensional continuous control using generalized advantage
    estimation, eq. 16.
    """
    deltas = (1 - discount) + discount * jnp.where(played.fell, 0.0, after) - values
    kept = discount * trace * (1 - played.ended.astype(values.dtype))

    def back(later: Array, now: tuple[Array, Array]) -> tuple[Array, Array]:
        return (found := now[0] + now[1] * later), found

    return jax.lax.scan(back, jnp.zeros_like(deltas[0]), (deltas, kept), reverse=True)[1]


def start(
    actor: Network, critic: Network, optimizer: optax.GradientTransformation, carts: int
) -> Callable[[Key], Carry]:
    def first(key: Key) -> Carry:
        keys = jax.random.split(key, 3)
        params = {"actor": actor.init(keys[0]), "critic": critic.init(keys[1])}
        states = cartpole.start(keys[2], (carts,))
        return Carry(
            params, optimizer.init(params), states, jnp.zeros(carts, jnp.int32), jnp.zeros(carts)
        )

    return first


def ppo(
    actor: Network,
    critic: Network,
    optimizer: optax.GradientTransformation,
    *,
    steps: int,
    passes: int,
    parts: int,
    discount: float = 0.99,
    trace: float = 0.95,
    clip: float = 0.2,
    entropy: float = 0.01,
) -> Step:
    """`steps` moves of every cart, then `passes` over what came about, in `parts` updates each.

    Metrics: `return`, the mean over carts of the last finished episode's; `loss`, the policy's.
    """

    def learn(carry: Any, batch: tuple[Array, ...]) -> tuple[Any, Array]:
        params, state = carry
        states, actions, before, advantage, wanted = batch
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
        logits, kept = actor.layer.forward(params["actor"], states)
        cost, error = policy_error(logits, actions, before, advantage, clip, entropy)
        grads = {"actor": _back(actor, params["actor"], kept, error)}
        value, kept = critic.layer.forward(params["critic"], states)
        error = value - wanted[:, None]  # of ½ (v − v*)²
        grads["critic"] = _back(critic, params["critic"], kept, error)
        updates, state = optimizer.update(grads, state, params)
        return (apply_updates(params, updates, trained), state), cost.mean()

    def trained(params: Params) -> Params:
        return {
            "actor": trained_leaves(actor.layer, params["actor"]),
            "critic": trained_leaves(critic.layer, params["critic"]),
        }

    def step(carry: Carry, batch: Any, key: Key) -> tuple[Carry, Metrics]:
        play_key, learn_key = jax.random.split(key)
        carry, played = _play(actor, carry, play_key, steps)
        value = lambda s: critic.layer.forward(carry.params["critic"], s)[0][..., 0]  # noqa: E731
        values = value(played.states)
        found = advantages(values, value(played.after), played, discount, trace)
        table = (played.states, played.actions, played.log_p, found, found + values)
        flat = jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:]), table)

        def once(now: Any, key: Key) -> tuple[Any, Array]:
            order = jax.random.permutation(key, flat[1].size).reshape(parts, -1)
            return jax.lax.scan(lambda c, rows: learn(c, [a[rows] for a in flat]), now, order)

        (params, state), loss = jax.lax.scan(
            once, (carry.params, carry.optimizer), jax.random.split(learn_key, passes)
        )
        carry = carry._replace(params=params, optimizer=state)
        return carry, {"loss": loss.mean(), "return": carry.lasts.mean()}

    return step


def _back(network: Network, params: Params, kept: Any, error: Array) -> Params:
    """The mean over the batch of ∂C/∂θ."""
    return network.layer.backward(params, params, kept, error / len(error))[0]


def _play(actor: Network, carry: Carry, key: Key, steps: int) -> tuple[Carry, Played]:
    """All random numbers are drawn beforehand: a scan's body is to have few operations."""
    noise_key, start_key = jax.random.split(key)
    noise = jax.random.gumbel(noise_key, (steps, len(carry.ages), 2))
    starts = cartpole.start(start_key, (steps, len(carry.ages)))

    def move(now: Any, given: tuple[Array, Array]) -> tuple[Any, Played]:
        (states, ages, lasts), (noise, fresh) = now, given
        log_p = log_softmax(actor.layer.forward(carry.params["actor"], states)[0])
        actions = jnp.argmax(log_p + noise, axis=-1)  # a draw from p (Gumbel 1954)
        taken = jnp.take_along_axis(log_p, actions[:, None], axis=-1)[:, 0]
        after, ages = cartpole.step(states, actions), ages + 1
        fell = cartpole.fallen(after)
        ended = fell | (ages >= cartpole.STEPS)
        lasts = jnp.where(ended, ages.astype(lasts.dtype), lasts)
        now = jnp.where(ended[:, None], fresh, after), jnp.where(ended, 0, ages), lasts
        return now, Played(states, actions, taken, after, fell, ended)

    now, played = jax.lax.scan(move, (carry.states, carry.ages, carry.lasts), (noise, starts))
    return carry._replace(states=now[0], ages=now[1], lasts=now[2]), played


def episodes(
    choose: Callable[[Array], Array], key: Key, count: int
) -> tuple[Float[Array, " count"], Float[Array, "steps count 4"]]:
    """Returns of `count` episodes under actions `choose(states)`, and the states of every step.

    A cart that has fallen stays as it fell.
    """

    def move(now: tuple[Array, Array], _: None) -> tuple[Any, Array]:
        states, total = now
        up = ~cartpole.fallen(states)
        after = jnp.where(up[:, None], cartpole.step(states, choose(states)), states)
        return (after, total + up.astype(total.dtype)), after

    first = cartpole.start(key, (count,)), jnp.zeros(count)
    (_, total), path = jax.lax.scan(move, first, None, length=cartpole.STEPS)
    return total, path
