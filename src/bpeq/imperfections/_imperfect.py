"""Imperfect devices: noise, mismatch, few levels and narrow ranges around any system or rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from annotated_types import Interval
from jaxtyping import Array

from bpeq import trees
from bpeq.imperfections._levels import Levels
from bpeq.imperfections._noise import noise_of
from bpeq.settings import NonNegative, Whole, checked
from bpeq.types import Imperfect, Key, Layer, LearningRule, Params, State, System

Bits = Annotated[int, Interval(ge=1, le=16)]


class Clamped(NamedTuple):
    """What a batch's input fixes on a device: the weights that it really has, and its own part.

    stored, x: the weights that it should have, and the input, where phases run on several devices.
    """

    seen: Params
    own: Any
    stored: Params = None
    x: Any = None


@checked
def imperfect(
    part: System | LearningRule,
    *,
    noise: NonNegative = 0.0,
    mismatch: NonNegative = 0.0,
    mismatch_per: Literal["device", "phase"] = "device",
    state_bits: Bits | None = None,
    state_min: float | None = None,
    state_max: float | None = None,
    weight_bits: Bits | None = None,
    weight_min: float | None = None,
    weight_max: float | None = None,
    seed: Whole = 0,
) -> System | LearningRule:
    """The same system, or rule, on an imperfect device: noise, mismatch, few levels, limits.

        weights  θ′ = Q_w(θ) ⊙ max(0, 1 + mismatch · n),      n ~ N(0, 1), one draw a device
        states   s ← Q_s( sweep(θ′, s) + noise · ξ ),         ξ ~ N(0, 1), anew for every sweep
        levels   Q(a) = min + Δ round((clip(a) − min) / Δ),   Δ = (max − min) / (2^bits − 1)

    Everything that a rule does on a wrapped system it does on the device: settle, read out, measure
    ∂E/∂θ′. The update goes to the stored θ, since a device does not know its own errors. Limits of
    the weights hold for the stored ones too, after every update; 0 below means that they are
    non-negative. Only ideal weights and states have an exact reference: `fidelity` shows what the
    imperfections cost.

    A sweep stays a pure function. ξ comes from one key an estimate, into which the bits of the
    example's state before and after the sweep are folded: phases, sweeps and examples draw their
    own, whatever an example's batch mates are. Noise has no fixed point: a solver to a residual
    below it runs to its last sweep and says that it has not settled.

    A rule on a network (backprop) settles no states: of a rule only its weights can be wrapped.

    Args:
      part: a system, for any rule on it; or a rule.
      noise: standard deviation of what is added to every unit after every sweep, in units of the
        state, >= 0.
      mismatch: relative standard deviation of the weights, >= 0; a mismatch changes no weight's
        sign. On one device EP's gradient stays as good as it is: it is that of θ′.
      mismatch_per: "device": all phases run on one. "phase": every nudged or clamped phase runs on
        a device of its own, with another draw; EP's error then grows as mismatch / β.
      state_bits: 2^bits levels from state_min to state_max, 1 to 16 bits.
      state_min, state_max: limits of the state, in its units.
      weight_bits: 2^bits levels from weight_min to weight_max. The stored weights stay continuous.
      weight_min, weight_max: limits of the weights, in their units.
      seed: of the mismatch's draw, which is one for all seeds of a run, and of the noise where no
        estimate gives a key.

    Raises:
      ValueError: a setting out of range, bits without both limits, limits that are not in order, or
        imperfect states of a rule.

    Example:
      >>> import jax
      >>> from bpeq.layers import chain, dense, hard_sigmoid
      >>> from bpeq.systems import hopfield
      >>> system = imperfect(
      ...     hopfield(chain(dense(4), hard_sigmoid())), state_bits=2, state_min=0.0, state_max=1.0)
      >>> params, _ = system.init(jax.random.key(0), (3,))
      >>> clamped = system.clamp(params, jax.numpy.ones((1, 3)))
      >>> state = system.sweep(params, clamped, system.init_state(params, clamped))
      >>> bool((abs(3 * state[0] - (3 * state[0]).round()) < 1e-6).all())
      True

    Source: Yi, Kendall, Williams & Kumar 2023, Activity-difference training of deep neural networks
    using memristor crossbars; Laydevant, Ernoult, Querlioz & Grollier 2021, Training dynamical
    binary neural networks with equilibrium propagation.
    """
    weights = Levels("weight", weight_bits, weight_min, weight_max)
    states = Levels("state", state_bits, state_min, state_max)
    see = _device(weights, mismatch, seed)
    changed = weights.change is not None or mismatch > 0
    if isinstance(part, LearningRule):
        given: dict[str, Any] = {"noise": noise or None, **states.given}
        given["mismatch_per"] = "phase" if mismatch_per == "phase" else None
        for name, value in given.items():
            if value is not None:
                raise ValueError(
                    f"imperfect: {name} = {value!r}: the rule {part.name!r} itself settles no "
                    "states; allowed on a system, for any rule that settles it"
                )
        return _rule(part, see, weights) if changed else part
    if not (changed or noise or states.change):
        return part
    several = mismatch_per == "phase" and mismatch > 0
    return _system(part, see, weights, states, noise, several, jax.random.key(seed))


def _device(weights: Levels, mismatch: float, seed: int) -> Callable[..., Params]:
    """(stored weights, which device) -> the weights that it really has."""

    def see(params: Params, device: Any = 0) -> Params:
        key = jax.random.fold_in(jax.random.key(seed), device)

        def one(leaf: Array, i: int) -> Array:
            real = jnp.real(leaf)
            real = real if weights.change is None else weights.change(real)
            if mismatch > 0:  # drawn in float32: the same device in any precision
                n = jax.random.normal(jax.random.fold_in(key, i), leaf.shape, jnp.float32)
                real = real * jnp.maximum(1.0 + mismatch * n, 0.0).astype(real.dtype)
            return real.astype(leaf.dtype)

        return _each_weight(one, params)

    return see


def _within(weights: Levels, own: Callable[[Params], Params] | None) -> Any:
    """The stored weights' limits, on top of those that there were."""
    clip = weights.clip
    if clip is None:
        return own
    return lambda params: _each_weight(
        lambda leaf, i: clip(leaf), params if own is None else own(params)
    )


def _each_weight(change: Callable[[Array, int], Array], params: Params) -> Params:
    """`change(leaf, number)` of every leaf that is a weight; statistics stay as they are."""
    paths, structure = jax.tree_util.tree_flatten_with_path(params)
    names = [jax.tree_util.keystr(path[-1:], simple=True) for path, _ in paths]
    leaves = [
        leaf if name in ("mean", "variance") else change(leaf, i)
        for i, (name, (_, leaf)) in enumerate(zip(names, paths, strict=True))
    ]
    return jax.tree.unflatten(structure, leaves)


def _rule(rule: LearningRule, see: Callable[..., Params], weights: Levels) -> LearningRule:
    limit, own = _within(weights, None), rule.absorb

    def absorb(params: Params, info: dict[str, Any]) -> Params:
        return limit(params if own is None else own(params, info))

    return rule._replace(
        apply=lambda params, x, key=None: rule.apply(see(params), x, key),
        estimate=lambda params, *args: rule.estimate(see(params), *args),
        absorb=own if limit is None else absorb,
    )


def _system(
    system: System,
    see: Callable[..., Params],
    weights: Levels,
    states: Levels,
    noise: float,
    several: bool,
    key: Key,
) -> System:
    def clamp(params: Params, x: Any) -> Clamped:
        seen = see(params)
        own = system.clamp(seen, x)
        return Clamped(seen, own, params, x) if several else Clamped(seen, own)

    def nudged(clamped: Clamped, n: Array) -> Clamped:
        seen = see(clamped.stored, n + 1)
        return clamped._replace(seen=seen, own=system.clamp(seen, clamped.x))

    def sweep(
        params: Params, clamped: Clamped, state: State, push: Any = None, hold: bool = False
    ) -> State:
        swept = system.sweep(clamped.seen, clamped.own, state, push, hold)
        if noise > 0:
            swept = trees.add(swept, trees.scale(noise, noise_of(key, state, swept)))
        if states.change is not None:
            swept = jax.tree.map(states.change, swept)
        if hold and system.write is not None:  # what is held has neither noise nor levels
            swept = system.write(swept, system.readout.forward(clamped.seen, state)[0])
        return swept

    def rekeyed(other: Key) -> System:
        return _system(system, see, weights, states, noise, several, other)

    def on_device(function: Any) -> Any:
        if function is None:
            return None
        return lambda params, clamped, *args: function(clamped.seen, clamped.own, *args)

    inexact = states.change is not None and "quantised or limited states are not holomorphic"
    return system._replace(
        clamp=clamp,
        init_state=on_device(system.init_state),
        sweep=sweep,
        energy=on_device(system.energy),
        denergy=on_device(system.denergy),
        force=on_device(system.force),
        dforce=on_device(system.dforce),
        readout=_read_by(system.readout, see),
        not_holomorphic=system.not_holomorphic or inexact or "",
        project=_within(weights, system.project),
        forward=on_device(system.forward),
        reverse=None,
        imperfect=Imperfect(
            ideal=system.ideal,
            keyed=rekeyed if noise > 0 else None,
            nudged=nudged if several else None,
        ),
    )


def _read_by(readout: Layer, see: Callable[..., Params]) -> Layer:
    def backward(params: Params, feedback: Params, residuals: Any, dy: Any) -> tuple[Params, Any]:
        return readout.backward(see(params), see(feedback), residuals, dy)

    return readout._replace(
        forward=lambda params, state, key=None: readout.forward(see(params), state, key),
        backward=backward,
    )
