"""Imperfect devices: noise, mismatch, few levels and narrow ranges around any system or rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
from annotated_types import Interval
from jaxtyping import Array

from bpeq.core import trees
from bpeq.settings import NonNegative, SettingError, Whole, checked
from bpeq.systems.devices._levels import Levels
from bpeq.systems.devices._noise import example_keys, folded, normal_like
from bpeq.systems.devices._weights import device, within
from bpeq.types import Device, Key, Layer, LearningRule, Params, State, System, rows_first

Bits = Annotated[int, Interval(ge=1, le=16)]


class Clamped(NamedTuple):
    """What a batch's input fixes on a device, and what its noise is drawn by.

    seen:   the weights that it really has.
    own:    what the system itself clamps, at these weights.
    stored, x: the weights that it should have, and the input, if phases run on several devices.
    key:    of the noise, for what is inside this device too.
    keys:   one for each example, `[batch]`.
    sweep:  the number of the sweep.
    """

    seen: Params
    own: Any
    stored: Params = None
    x: Any = None
    key: Any = None
    keys: Any = None
    sweep: Array | int = 0


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

    A sweep stays a pure function: the key of ξ and the number of the sweep are part of what is
    clamped. Every estimate has its own key. Each example draws by its place in the batch, the phase
    and the number of the sweep. So examples of the same input draw independent numbers, and a batch
    that several devices share draws what one device would. A solver hands out the numbers; one of
    your own does so by `bpeq.solvers.run_sweep`. Noise has no fixed point: a solver to a residual
    below it runs to its last sweep and reports that it has not settled.

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
    trained = part.trained if isinstance(part, LearningRule) else part.traits.trained
    see = device(weights, mismatch, seed, trained)
    changed = weights.change is not None or mismatch > 0
    if isinstance(part, LearningRule):
        given: dict[str, Any] = {"noise": noise or None, **states.given}
        given["mismatch_per"] = "phase" if mismatch_per == "phase" else None
        for name, value in given.items():
            if value is not None:
                remedy = (
                    f"the rule {part.name!r} settles no states; allowed on a system, for any rule"
                )
                raise SettingError("imperfect", name, value, remedy)
        return _rule(part, see, weights) if changed else part
    if not (changed or noise or states.change):
        return part
    several = mismatch_per == "phase" and mismatch > 0
    return _system(part, see, weights, states, noise, several, jax.random.key(seed))


def _rule(rule: LearningRule, see: Callable[..., Params], weights: Levels) -> LearningRule:
    limit, own = within(weights, None, rule.trained), rule.absorb
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
    inner = traits.device or Device(system)

    def clamp(params: Params, x: Any) -> Clamped:
        seen = see(params)
        stored = (params, x) if several else (None, None)
        clamped = Clamped(seen, system.clamp(seen, x), *stored)
        return clamped if noise == 0 else _with_keys(clamped, key, len(jax.tree.leaves(x)[0]))

    def seeded(clamped: Clamped, key: Key) -> Clamped:
        if inner.seeded is not None:
            own = inner.seeded(clamped.own, jax.random.fold_in(key, 1))
            clamped = clamped._replace(own=own, key=key)
        return clamped if noise == 0 else _with_keys(clamped, key, len(clamped.keys))

    def numbered(clamped: Clamped, n: Array | int) -> Clamped:
        own = clamped.own if inner.numbered is None else inner.numbered(clamped.own, n)
        return clamped._replace(own=own, sweep=n)

    def nudged(clamped: Clamped, n: Array) -> Clamped:
        if several:
            seen = see(clamped.stored, n + 1)
            own = system.clamp(seen, clamped.x)
            if inner.seeded is not None and clamped.key is not None:
                own = inner.seeded(own, jax.random.fold_in(clamped.key, 1))
            if inner.numbered is not None:
                own = inner.numbered(own, clamped.sweep)
            clamped = clamped._replace(seen=seen, own=own)
        if inner.nudged is not None:
            clamped = clamped._replace(own=inner.nudged(clamped.own, n))
        return clamped if noise == 0 else clamped._replace(keys=folded(clamped.keys, n + 1))

    def take_rows(clamped: Clamped, rows: Array) -> Clamped:
        assert traits.take_rows is not None
        keys = None if clamped.keys is None else rows_first(clamped.keys, rows)
        return clamped._replace(own=traits.take_rows(clamped.own, rows), keys=keys)

    def sweep(
        params: Params, clamped: Clamped, state: State, push: Any = None, hold: bool = False
    ) -> State:
        swept = system.sweep(clamped.seen, clamped.own, state, push, hold)
        if noise > 0:
            xi = normal_like(folded(clamped.keys, clamped.sweep), swept)
            swept = trees.add(swept, trees.scale(noise, xi))
        if states.change is not None:
            swept = jax.tree.map(states.change, swept)
        if hold and system.write is not None:  # what is held has neither noise nor levels
            swept = system.write(swept, system.readout.forward(clamped.seen, state)[0])
        return swept

    def ondevice(function: Any) -> Any:
        if function is None:
            return None
        return lambda params, clamped, *args: function(clamped.seen, clamped.own, *args)

    inexact = states.change is not None and "quantised or limited states are not holomorphic"
    noisy = noise > 0 or inner.seeded is not None
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
            project=within(weights, traits.project, traits.trained),
            forward=ondevice(traits.forward),
            reverse=None,
            take_rows=traits.take_rows and take_rows,
            device=Device(
                ideal=system.ideal,
                seeded=seeded if noisy else None,
                numbered=numbered if noisy else None,
                nudged=nudged if several or noise > 0 or inner.nudged is not None else None,
            ),
        ),
    )


def _with_keys(clamped: Clamped, key: Key, examples: int) -> Clamped:
    return clamped._replace(key=key, keys=example_keys(key, examples))


def _read_by(readout: Layer, see: Callable[..., Params]) -> Layer:
    def backward(params: Params, feedback: Params, residuals: Any, dy: Any) -> tuple[Params, Any]:
        return readout.backward(see(params), see(feedback), residuals, dy)

    return readout._replace(
        forward=lambda params, state, key=None: readout.forward(see(params), state, key),
        backward=backward,
    )
