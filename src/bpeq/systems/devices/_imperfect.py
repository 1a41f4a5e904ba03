"""Imperfect devices: noise, mismatch, few levels and narrow limits, around any system or rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal, NamedTuple

import jax
from annotated_types import Interval
from jaxtyping import Array

from bpeq.core import trees
from bpeq.settings import NonNegative, SettingError, Whole, checked
from bpeq.systems.devices._errors import Levels, device, example_keys, folded, normal_like, within
from bpeq.types import Device, Key, Layer, LearningRule, Params, State, System, rows_first

Bits = Annotated[int, Interval(ge=1, le=16)]


class Clamped(NamedTuple):
    """What the input of a batch fixes on a device, and what its noise depends on.

    seen:   the real weights of the device.
    own:    what the system itself clamps, at these weights.
    stored: the weights that the device should have; None if all phases run on one device.
    x:      the input; None if all phases run on one device.
    key:    key of the noise, for a device inside this one too.
    keys:   one key for each example, `[batch]`.
    sweep:  the index of the sweep.
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

        weights  θ′ = Q_w(θ) ⊙ max(0, 1 + mismatch · n),      n ~ N(0, 1), one draw per device
        states   s ← Q_s( sweep(θ′, s) + noise · ξ ),         ξ ~ N(0, 1), new for every sweep
        levels   Q(a) = min + Δ round((clip(a) − min) / Δ),   Δ = (max − min) / (2^bits − 1)

    A rule on a wrapped system does everything on the device: settle, read out, measure ∂E/∂θ′. The
    update goes to the stored θ, since a device does not know its own errors. The limits of the
    weights also hold for the stored weights, after every update. A lower limit of 0 makes them
    non-negative. Only ideal weights and states have an exact reference: `fidelity` measures the
    error that the imperfections cause.

    A sweep stays a pure function: the key of ξ and the index of the sweep are in the clamped part.
    Every estimate has its own key. The numbers of an example depend on its place in the batch, the
    phase and the index of the sweep. So two examples with the same input draw independent numbers,
    and a batch that several devices share draws the numbers of one device. The solver gives the
    index of the sweep. A solver of your own does this by `bpeq.solvers.run_sweep`. Noise has no
    fixed
    point: a solver with a tolerance below the noise runs all its sweeps and reports that it has not
    settled.

    A rule on a network (backprop) has no states to settle, so only its weights can be wrapped. They
    are the weights that a device would hold: for `kolen_pollack` W and B, not the stored B − W. An
    imperfect part may be wrapped again; it then has both sets of imperfections.

    Args:
      part: a system, for any rule on it; or a rule.
      noise: standard deviation of the noise on every unit after every sweep, >= 0, in units of the
        state. 0: no noise.
      mismatch: relative standard deviation of the weights, >= 0. It does not change the sign of a
        weight. On one device EP's gradient keeps its quality: it is the gradient at θ′.
      mismatch_per: "device": all phases run on one device. "phase": each nudged or clamped phase
        runs on its own device, with another draw; EP's error then grows as mismatch / β.
      state_bits: 2^bits levels from state_min to state_max, 1 to 16 bits; None: no levels.
      state_min: lower limit of the state, in its units; None: no limit.
      state_max: upper limit of the state; None: no limit.
      weight_bits: 2^bits levels from weight_min to weight_max, 1 to 16 bits; None: no levels. The
        stored weights stay continuous.
      weight_min: lower limit of the weights, in their units; None: no limit.
      weight_max: upper limit of the weights; None: no limit.
      seed: seed of the mismatch, which is the same for all seeds of a run; also of the noise if no
        estimate gives a key. >= 0.

    Returns:
      The System or LearningRule on the device. The part itself if it has no imperfection.

    Raises:
      ValueError: a setting is out of range; bits without both limits; limits in the wrong order;
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
                remedy = f"the rule {part.name!r} settles no states; allowed on a system, "
                remedy += "for any rule"
                raise SettingError("imperfect", name, value, remedy)
        return _rule(part, see, weights) if changed else part
    if not (changed or noise or states.change):
        return part
    several = mismatch_per == "phase" and mismatch > 0
    return _system(part, see, weights, states, noise, several, jax.random.key(seed))


def _rule(rule: LearningRule, see: Callable[..., Params], weights: Levels) -> LearningRule:
    """The rule on the device's weights; its `absorb` keeps the stored ones within limits."""
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
    """The system on a device, with its imperfections in `traits.device`."""
    # The part may be an imperfect device already; its own key, sweep and phase are passed on.
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

    # A nudged phase on another device clamps again: its weights differ.
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
        # Noise first, then levels and limits: the device stores what it can hold.
        swept = system.sweep(clamped.seen, clamped.own, state, push, hold)
        if noise > 0:
            xi = normal_like(folded(clamped.keys, clamped.sweep), swept)
            swept = trees.add(swept, trees.scale(noise, xi))
        if states.change is not None:
            swept = jax.tree.map(states.change, swept)
        if hold and system.write is not None:  # the held output gets no noise and no levels
            swept = system.write(swept, system.readout.forward(clamped.seen, state)[0])
        return swept

    # All of the system's functions read the device's weights, not those that they are given.
    def ondevice(function: Any) -> Any:
        """A function of the system, called with the device's weights and its own clamped part."""
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
    """The clamped part with a key of the noise and one key for each example."""
    return clamped._replace(key=key, keys=example_keys(key, examples))


def _read_by(readout: Layer, see: Callable[..., Params]) -> Layer:
    """The readout, with the weights that the device has."""

    def backward(params: Params, feedback: Params, residuals: Any, dy: Any) -> tuple[Params, Any]:
        return readout.backward(see(params), see(feedback), residuals, dy)

    return readout._replace(
        forward=lambda params, state, key=None: readout.forward(see(params), state, key),
        backward=backward,
    )
