"""Two networks against each other: one makes examples, the other tells them from real ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float

from bpeq.experiment import Network
from bpeq.training.loops import Metrics
from bpeq.training.optimizers import apply_updates
from bpeq.types import Key, Layer, Params, Step


class Carry(NamedTuple):
    """Weights and optimizer states of both, and updates so far."""

    generator: Params
    critic: Params
    states: tuple[Any, Any]
    done: Array


def cross_entropy(
    logits: Float[Array, "batch 1"], real: Float[Array, "batch 1"]
) -> tuple[Float[Array, " batch"], Float[Array, "batch 1"]]:
    """−log of the probability that the critic gives the truth, and its error at the logits.

        C = log(1 + e^o) − y o = log(1 + e^((1 − 2y) o))        ∂C/∂o = σ(o) − y

    The second form is right at any size of o.

    y is 1 for a real example and 0 for a made one. The generator's own cost is the critic's with
    y = 1 on what it made: −log σ(o), which has a slope where the critic is sure.

    Source: Goodfellow et al. 2014, Generative adversarial nets, eq. 1 and the remark below it.
    """
    cost = jnp.logaddexp((1.0 - 2.0 * real) * logits, 0.0)
    return cost[:, 0], jax.nn.sigmoid(logits) - real


def start(
    generator: Network, critic: Network, optimizer: optax.GradientTransformation
) -> Callable[[Key], Carry]:
    def first(key: Key) -> Carry:
        keys = jax.random.split(key)
        made, judge = generator.init(keys[0]), critic.init(keys[1])
        states = optimizer.init(made), optimizer.init(judge)
        return Carry(made, judge, states, jnp.zeros((), jnp.int32))

    return first


def adversarial(
    generator: Network,
    critic: Network,
    optimizer: optax.GradientTransformation,
    *,
    updates: int,
    noise: float,
) -> Step:
    """One update of the critic on real and made examples, then one of the generator through it.

    The error of what the generator made is the critic's pull-back ∂C/∂x of its own output error:
    `backward` of one network seeds that of the other.

    Args:
      updates: in the whole run. noise: standard deviation of what is added to all that the critic
        sees, at the first update; it falls linearly to 0 at half the run.

    Metrics: `loss`, the critic's; `generator_loss`; ln 2 = 0.693 for a critic that cannot tell.

    Source: Goodfellow et al. 2014; the noise is from Sønderby et al. 2017, Amortised MAP inference
    for image super-resolution.
    """

    def step(carry: Carry, real: Array, key: Key) -> tuple[Carry, Metrics]:
        size, keys = len(real), jax.random.split(key, 5)
        spread = noise * jnp.maximum(1 - 2 * carry.done / updates, 0)
        blur = spread * jax.random.normal(keys[0], (2, *real.shape))
        made, kept = generator.layer.forward(
            carry.generator, generator.examples(keys[1], size), keys[2]
        )
        both = jnp.concatenate([real + blur[0], made + blur[1]])
        truth = jnp.concatenate([jnp.ones((size, 1)), jnp.zeros((size, 1))])
        logits, seen = critic.layer.forward(carry.critic, both, keys[3])
        loss, error = cross_entropy(logits, truth)
        grads, _ = critic.layer.backward(carry.critic, carry.critic, seen, error / size)
        judge, judge_state = _updated(critic.layer, optimizer, carry.critic, grads, carry.states[1])

        logits, seen = critic.layer.forward(judge, made + blur[1], keys[4])
        fooled, error = cross_entropy(logits, jnp.ones((size, 1)))
        _, dmade = critic.layer.backward(judge, judge, seen, error / size)
        own = carry.generator
        grads, _ = generator.layer.backward(own, own, kept, dmade)
        own, own_state = _updated(generator.layer, optimizer, own, grads, carry.states[0])
        carry = Carry(own, judge, (own_state, judge_state), carry.done + 1)
        return carry, {"loss": loss.mean(), "generator_loss": fooled.mean()}

    return step


def _updated(
    network: Layer,
    optimizer: optax.GradientTransformation,
    params: Params,
    grads: Params,
    state: Any,
) -> tuple[Params, Any]:
    updates, state = optimizer.update(grads, state, params)
    return apply_updates(params, updates, network.trained), state
