"""Imperfect devices: noise, mismatch, few levels and narrow ranges around any system or rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
from annotated_types import Interval
from jaxtyping import Array

from bpeq.core import trees
from bpeq.settings import NonNegative, Whole, checked
from bpeq.systems.devices._levels import Levels
from bpeq.systems.devices._noise import noise_of
from bpeq.systems.devices._weights import device, within
from bpeq.types import Device, Key, Layer, LearningRule, Params, State, System

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
    example's state before and after the sweep are folded: phases, sweeps and examples that differ
    draw their own. Since few levels would bring back the very same state, and with it the same ξ,
    a noisy state keeps a trace of ξ below its levels and at its limits, inward, of some 256 units
    of round-off (3e-5 in float32, 6e-14 in float64, for limits of 1): it does what a counter would.
    Examples of the same input and start draw the same ξ, copies of one batch too: no result depends
    on an example's batch mates or its place among them; but a batch cut otherwise, as several
    devices cut it, has other last bits, and so another draw. Noise has no fixed point: a solver to
    a residual below it runs to its last sweep and says that it has not settled.

    A rule on a network (backprop) settles no states: of a rule only its weights can be wrapped, as
    a device would hold them: of `kolen_pollack` W and B, not the B − W that it stores. What is
    imperfect already may be wrapped once more; then both have their imperfections.

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
    see = device(weights, mismatch, seed)
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


def _rule(rule: LearningRule, see: Callable[..., Params], weights: Levels) -> LearningRule:
    limit, own = within(weights, None), rule.absorb
    hold, store = rule.info.device_weights or (lambda params: params, lambda params: params)

    def absorb(params: Params, info: dict[str, Any]) -> Params:
        return store(limit(hold(params if own is None else own(params, info))))

    def seen(params: Params) -> Params:
        return store(see(hold(params)))

    return rule._replace(
        apply=lambda params, x, key=None: rule.apply(seen(params), x, key),
        estimate=lambda params, *args: rule.estimate(seen(params), *args),
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
    traits = system.traits
    inner = traits.device or Device(system, None, None)

    def clamp(params: Params, x: Any) -> Clamped:
        seen = see(params)
        own = system.clamp(seen, x)
        return Clamped(seen, own, params, x) if several else Clamped(seen, own)

    def nudged(clamped: Clamped, n: Array) -> Clamped:
        if several:
            seen = see(clamped.stored, n + 1)
            clamped = clamped._replace(seen=seen, own=system.clamp(seen, clamped.x))
        if inner.nudged is not None:
            clamped = clamped._replace(own=inner.nudged(clamped.own, n))
        return clamped

    def sweep(
        params: Params, clamped: Clamped, state: State, push: Any = None, hold: bool = False
    ) -> State:
        swept = system.sweep(clamped.seen, clamped.own, state, push, hold)
        if noise > 0:
            xi = noise_of(key, state, swept)
            swept = trees.add(swept, trees.scale(noise, xi))
            if states.change is not None:
                swept = jax.tree.map(lambda s, drawn: states.keeping(s, noise, drawn), swept, xi)
        elif states.change is not None:
            swept = jax.tree.map(states.change, swept)
        if hold and system.write is not None:  # what is held has neither noise nor levels
            swept = system.write(swept, system.readout.forward(clamped.seen, state)[0])
        return swept

    def rekeyed(other: Key) -> System:
        below = inner.keyed(jax.random.fold_in(other, 1)) if inner.keyed is not None else system
        return _system(below, see, weights, states, noise, several, other)

    def ondevice(function: Any) -> Any:
        if function is None:
            return None
        return lambda params, clamped, *args: function(clamped.seen, clamped.own, *args)

    inexact = states.change is not None and "quantised or limited states are not holomorphic"
    return system._replace(
        clamp=clamp,
        init_state=ondevice(system.init_state),
        sweep=sweep,
        energy=ondevice(system.energy),
        denergy=ondevice(system.denergy),
        force=ondevice(system.force),
        dforce=ondevice(system.dforce),
        readout=_read_by(system.readout, see),
        traits=traits._replace(
            not_holomorphic=traits.not_holomorphic or inexact or "",
            project=within(weights, traits.project),
            forward=ondevice(traits.forward),
            reverse=None,
            device=Device(
                ideal=system.ideal,
                keyed=rekeyed if noise > 0 or inner.keyed is not None else None,
                nudged=nudged if several or inner.nudged is not None else None,
            ),
        ),
    )


def _read_by(readout: Layer, see: Callable[..., Params]) -> Layer:
    def backward(params: Params, feedback: Params, residuals: Any, dy: Any) -> tuple[Params, Any]:
        return readout.backward(see(params), see(feedback), residuals, dy)

    return readout._replace(
        forward=lambda params, state, key=None: readout.forward(see(params), state, key),
        backward=backward,
    )
