"""CartPole-v1 as pure functions: the equations, constants, starts and ends of Gymnasium's."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bpeq.types import Key

GRAVITY, FORCE, TAU = 9.8, 10.0, 0.02  # m/s², N, s
CART, POLE, HALF = 1.0, 0.1, 0.5  # kg, kg, m: half the pole's length
FARTHEST, STEEPEST = 2.4, 12 * math.pi / 180  # m, rad
STEPS = 500  # after which an episode is stopped
State = Float[Array, "... 4"]
"""x in m, its speed in m/s, the pole's angle from upright in rad, its speed in rad/s."""


def start(key: Key, shape: tuple[int, ...] = ()) -> State:
    """Every coordinate uniform in ±0.05."""
    return jax.random.uniform(key, (*shape, 4), minval=-0.05, maxval=0.05)


def step(state: State, action: Int[Array, " ..."]) -> State:
    """One Euler step of 0.02 s, under 10 N to the right (action 1) or to the left (0).

    With m the pole's mass, M that of both, ℓ its half-length and F the force:

        t  = (F + m ℓ θ̇² sin θ) / M
        θ̈ = (g sin θ − t cos θ) / (ℓ (4/3 − m cos²θ / M))        ẍ = t − m ℓ θ̈ cos θ / M

    Source: Barto, Sutton & Anderson 1983, Neuronlike adaptive elements that can solve difficult
    learning control problems; without friction, as in Gymnasium.
    """
    speed, angle, turning = (state[..., i] for i in (1, 2, 3))
    force = jnp.where(action == 1, FORCE, -FORCE).astype(state.dtype)
    sin, cos, both = jnp.sin(angle), jnp.cos(angle), CART + POLE
    t = (force + POLE * HALF * turning**2 * sin) / both
    turn = (GRAVITY * sin - cos * t) / (HALF * (4 / 3 - POLE * cos**2 / both))
    push = t - POLE * HALF * turn * cos / both
    rates = jnp.stack([speed, push, turning, turn], axis=-1)
    return state + TAU * rates


def fallen(state: State) -> Bool[Array, " ..."]:
    """The cart is off the track or the pole past 12 degrees."""
    return (jnp.abs(state[..., 0]) > FARTHEST) | (jnp.abs(state[..., 2]) > STEEPEST)
