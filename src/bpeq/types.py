"""The words of bpeq: every part of the library is one of these tuples of pure functions or arrays.

Read this page first. Layers, costs, systems, solvers and rules are *values*: build them once, close
over them, jit once. None of them is ever a jit argument; what travels through jit is arrays.

Shapes: `batch` is always the first axis. `PyTree` is any nest of tuples and dicts of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

Key = jax.Array
"""A typed random key, as `jax.random.key(seed)` makes it."""
Shape = tuple[int, ...]
"""The shape of one example: the batch axis is left out."""
Params = Any
State = Any


class Caution(UserWarning):
    """The run continues, but this setting is probably a mistake."""


class DataError(ValueError):
    """Data or files are at fault: absent, truncated, corrupt, out of range. Exit code 3."""


class Activation(NamedTuple):
    """An elementwise nonlinearity σ and what energies need to know of it.

    value:      σ(z), any shape.
    slope:      σ′(z), written out; at a corner the value stated in the factory's docstring.
    potential:  A(s) with A′ = σ⁻¹, elementwise, so that σ = (∇A)⁻¹; None where σ is not monotone.
    holomorphic: whether σ is complex-differentiable near the real axis and works on complex z.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    potential: Callable[[Array], Array] | None
    holomorphic: bool


class Layer(NamedTuple):
    """Three pure functions, and what others may ask about them.

    init(key, shape) -> (params, shape): `shape` is one example's, without the batch axis.
    forward(params, x, key=None) -> (y, residuals): a key means training, None evaluation.
    backward(params, feedback, residuals, dy) -> (dparams, dx): dy pulled back, written by hand.
        `feedback` has the shape of `params` and is read wherever an error passes backward through a
        weight, and nowhere else. Backprop is `feedback = params`. dx is None for integer inputs.
    parts:      the layers a combinator is made of.
    activation: set on the elementwise layers where `layers.cut` may cut.
    absorb(params, residuals) -> params: writes running statistics in training, where there are any;
        from an evaluation pass's residuals that pass's own statistics (`layers.calibrate`). It
        writes only leaves that `trained` declares as not trained.
    trained(params) -> the tree of params with True or False for each leaf: whether an optimizer may
        change it. It reads the structure of `params` alone. False is for what `absorb` writes, and
        for weights that stay as they are. None: all leaves are trained. `layers.trained_leaves`
        gives the tree in both cases, and combinators carry it.
    no_energy:  why the layer cannot stand in a per-example energy; empty where it can.
    not_holomorphic: why `forward` is no complex-differentiable function; empty where it is. What an
        activation is, `activation.holomorphic` says.
    """

    name: str
    init: Callable[[Key, Shape], tuple[Params, Shape]]
    forward: Callable[..., tuple[Any, Any]]
    backward: Callable[[Params, Params, Any, Any], tuple[Params, Any]]
    parts: tuple[Layer, ...] = ()
    activation: Activation | None = None
    absorb: Callable[[Params, Any], Params] | None = None
    no_energy: str = ""
    not_holomorphic: str = ""
    trained: Callable[[Params], Any] | None = None


class Cost(NamedTuple):
    """What an output should be.

    value(output, y) -> [batch]: the cost of each example.
    error(output, y): ∂value/∂output, the shape of `output`, written by hand.
    y is either a target of the output's shape or, for `[batch, classes]` outputs, integer labels.
    """

    name: str
    value: Callable[[Array, Array], Float[Array, " batch"]]
    error: Callable[[Array, Array], Array]


class Device(NamedTuple):
    """What a system that stands for an imperfect device knows of its imperfections.

    A noisy device carries its random key and the number of the sweep in what is clamped, so that a
    sweep stays a pure function. `clamp` gives the device's own key, and sweep 0.

    ideal:   the system without them. Exact references and curvatures are those of the ideal system.
    seeded(clamped, key) -> clamped: with noise from another key; None for a device without noise.
    numbered(clamped, n) -> clamped: for the n-th sweep of a phase; None for a device without noise.
    nudged(clamped, n) -> clamped: for the n-th nudged or clamped phase, n a traced index; None if
        all phases run on one device, without noise.
    """

    ideal: System
    seeded: Callable[[Any, Key], Any] | None = None
    numbered: Callable[[Any, Array | int], Any] | None = None
    nudged: Callable[[Any, Array], Any] | None = None


def rows_first(clamped: Any, rows: Int[Array, " rows"]) -> Any:
    """The rows of every leaf, for a tree whose leaves have the batch on axis 0."""
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), clamped)


class SystemTraits(NamedTuple):
    """What only some rules ask of a system. Every field has a default.

    not_holomorphic: which part is not complex-differentiable, and why; empty if all parts are.
    project(params) -> params: the nearest params that the system can have, such as conductances
        that are not negative; None if all are allowed. A rule applies it in its `absorb`.
    forward(params, clamped) -> state: the feed-forward pass, in which every unit is driven from
        below alone; None if the units have no such order.
    reverse: the sweep with its parts in the opposite order, by which an error passes back through
        it; None if a sweep moves all states at once.
    nudge_outside: the name of the output state's σ, if the push is added to the new state outside
        of σ; empty if the push enters the force, so that a settled state has force + push = 0.
    linear_output: whether the output is a state without a σ, along which E curves by 1. A squared
        error that is weighed by −β, as in a negative nudge, is then bounded for β < 1 only.
    device: the imperfections of a device; None for a perfect system.
    trained: as a `Layer`'s. A rule on the system hands it on. None: all leaves are trained.
    take_rows(clamped, rows) -> clamped: what sweeps of those examples alone need. The default is
        right if every leaf of what is clamped has the batch on axis 0. None: the system can only
        be swept with its whole batch.
    """

    not_holomorphic: str = ""
    project: Callable[[Params], Params] | None = None
    forward: Callable[[Params, Any], State] | None = None
    reverse: Callable[..., State] | None = None
    nudge_outside: str = ""
    linear_output: bool = False
    device: Device | None = None
    trained: Callable[[Params], Any] | None = None
    take_rows: Callable[[Any, Array], Any] | None = rows_first


class System(NamedTuple):
    """A state that relaxes, and the energy or the force that it follows.

    init(key, shape) -> (params, shape): as a layer's.
    clamp(params, x) -> clamped: all that depends on x but not on the state, once per batch.
    init_state(params, clamped) -> state: where a free phase starts.
    sweep(params, clamped, state, push=None, hold=False) -> state: one undamped relaxation step.
        `push(state)` gives an additive input per state (None where there is none); it is evaluated
        inside each half of an alternating sweep, on the state as it then is. `hold` keeps the
        output as it is, in each half too: writing it back after a sweep would come too late.
        An example's new state depends on its own old one alone: solvers may sweep some without
        the others.
    energy(params, clamped, state) -> [batch], or None for dynamics without an energy.
    denergy(params, clamped, states, weights) -> (dparams, dx): Σ_n w_n ∂E/∂(θ, x)(state_n); phases
        on axis 0 of every leaf of `states`. dparams is summed over the batch, and zero for readout
        weights. dx has the shape of x, an example's derivative in its row; None for integer inputs.
    force(params, clamped, state) -> state: −∂E/∂s, or the field itself where there is no energy.
    dforce(params, clamped, state, v) -> (dparams, dx): vᵀ ∂force/∂(θ, x), as `denergy` gives them.
    readout: a Layer from state to output. Its pull-back of β ∂C/∂y is the nudge on the states and
        the readout weights' own gradient.
    write(state, output) -> state: the state with its output set, which `hold` then keeps; None
        where the output is no state, and cannot be clamped.
    traits: what only some rules ask.
    """

    name: str
    init: Callable[[Key, Shape], tuple[Params, Shape]]
    clamp: Callable[[Params, Any], Any]
    init_state: Callable[[Params, Any], State]
    sweep: Callable[..., State]
    energy: Callable[[Params, Any, State], Float[Array, " batch"]] | None
    denergy: Callable[[Params, Any, State, Array], tuple[Params, Any]] | None
    force: Callable[[Params, Any, State], State]
    dforce: Callable[[Params, Any, State, State], tuple[Params, Any]]
    readout: Layer
    write: Callable[[State, Array], State] | None
    traits: SystemTraits = SystemTraits()

    @property
    def ideal(self) -> System:
        """The system without its imperfections."""
        return self if self.traits.device is None else self.traits.device.ideal


class SolveInfo(NamedTuple):
    """How a solve ended, example by example. Failure is data; what to do about it is the caller's.

    All of it is per example. The batch is the last axis of steps, residual and converged; several
    phases stand on an axis 0 before it, in every field.

    steps:     `[batch]`, sweeps that the example took.
    residual:  `[batch]`, max |sweep(s) − s| over the example's units, of the undamped sweep.
    converged: `[batch]`, residual ≤ tolerance; NaN counts as not converged.
    trajectory: `[steps, batch, ...]`, every state along the way; None if it was not asked for.
    end:       `[batch, ...]`, the state that it ended in; None if it was not asked for.
    """

    steps: Int[Array, " batch"]
    residual: Float[Array, " batch"]
    converged: Bool[Array, " batch"]
    trajectory: PyTree | None = None
    end: PyTree | None = None


class Solver(Protocol):
    """(step, state) -> (state, SolveInfo), with step: state -> state an undamped sweep."""

    def __call__(self, step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]: ...


class Memory(NamedTuple):
    """Where earlier free phases ended: for each row of a batch, or for each example of a set.

    states: the system's, `[places, ...]`. known: whether something finite has been put there.
    """

    states: State
    known: Bool[Array, " places"]


class Batch(NamedTuple):
    """x: [batch, ...] inputs. y: [batch] integer labels, or [batch, ...] targets.

    rows: [batch], which rows of the whole set these are; None if the caller did not pass row
        indices.
    start: where free phases start, where it is known; None: at the system's own start.
    """

    x: Array
    y: Array
    rows: Int[Array, " batch"] | None = None
    start: Memory | None = None


class PerExample(NamedTuple):
    """A record of each example, for an estimate's `info`. value: a tree, leaves `[batch, ...]`."""

    value: PyTree


class Estimate(NamedTuple):
    """What a rule says about one batch.

    Each field says whether it is a mean over the batch or per example: devices that share a batch
    average the means, and put the examples one after the other.

    grads:  the shape of params; the mean over the batch.
    loss:   scalar, the mean cost of the free (or forward) output.
    output: `[batch, ...]`, that output; per example.
    info:   named records of how the estimate came about; may be empty. A `SolveInfo` and a
        `PerExample`, also inside of other trees, are per example; all other numbers are means over
        the batch, or the same for all of it.
    """

    grads: Params
    loss: Float[Array, ""]
    output: Array
    info: dict[str, Any]


class RuleInfo(NamedTuple):
    """What a report, a check or a config must know of a rule. No training loop reads it.

    reference:  the exact gradient of the same `apply`, to a certified residual in float64.
        `gradient_fidelity` compares with it. None if the rule does not know it.
    objective:  set if the rule follows another objective than ∇C: the exact gradient of that
        objective, certified like `reference`, named after it, with its value as loss.
    optimizers: the names of the only optimizers under which the estimate means something; empty:
        any.
    needs_decay: whether the rule works only with an optimizer whose weight decay is > 0.
    note:       what a reader of a comparison must know, such as that the rule is algebraically
        backprop in these settings; empty: nothing.
    device_weights: (params -> the weights that a device would hold, and the way back), if `params`
        stores something else, such as the difference of two; None if they are those weights.
    beta:       the key in the rule's state of the traced setting that a grid over β varies, "beta"
        or "eta"; empty if there is none.
    beta_max:   the largest value that this setting may take.
    nudgings:   the nudgings that a grid compares, such as "centered" or "holomorphic-4"; empty if
        the rule is measured with the nudging that it has.
    sweep_settings: n -> the rule's settings under which it runs n sweeps, beside its solvers'; None
        if it has none.
    nudged_system(system, params, free) -> System: the system on which the rule's nudged phases run;
        None if that is the rule's own system.
    pushes_away: whether some phase pushes the output away from its target. With a linear output and
        squared error F is then bounded for β < 1 only.
    """

    reference: LearningRule | None = None
    objective: LearningRule | None = None
    optimizers: tuple[str, ...] = ()
    needs_decay: bool = False
    note: str = ""
    device_weights: tuple[Callable[[Params], Params], Callable[[Params], Params]] | None = None
    beta: str = ""
    beta_max: float = math.inf
    nudgings: tuple[str, ...] = ()
    sweep_settings: Callable[[int], dict[str, int]] | None = None
    nudged_system: Callable[[System, Params, Any], System] | None = None
    pushes_away: bool = False


class LearningRule(NamedTuple):
    """A drop-in for `jax.value_and_grad` that may be local, biased or iterative.

    init(key, params) -> (params, state): weights that shape `apply`, or that the optimizer must
        train, join `params`; weights that only carry errors, and traced settings such as β, live in
        `state`.
    apply(params, x, key=None) -> output: inference; a relaxing rule settles.
    estimate(params, batch, state, key) -> (Estimate, state): one key for all phases.
    absorb(params, info) -> params: called after each update with the estimate's info. It writes the
        running statistics that the estimate saw, if the network keeps any, and puts weights back to
        those that a system can have.
    prepare(params, state, x, batch_size) -> state: makes room for what is remembered of each
        example of the whole set x, or of each row of a batch; called once before training, after
        `init`. None if nothing is remembered.
    info: what reports, checks and configs must know.
    trained: as a `Layer`'s, for the params that the rule's `init` gives: the leaves that training
        may change. A rule on a network hands on the network's. None: all of them.
    """

    name: str
    init: Callable[[Key, Params], tuple[Params, State]]
    apply: Callable[..., Array]
    estimate: Callable[[Params, Batch, State, Key], tuple[Estimate, State]]
    absorb: Callable[[Params, dict[str, Any]], Params] | None = None
    prepare: Callable[[Params, State, Array, int], State] | None = None
    info: RuleInfo = RuleInfo()
    trained: Callable[[Params], Any] | None = None


class Step(Protocol):
    """(carry, batch, key) -> (carry, metrics): what `training` scans over."""

    def __call__(self, carry: Any, batch: Batch, key: Key) -> tuple[Any, dict[str, Array]]: ...
