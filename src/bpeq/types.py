"""The words of bpeq: every part of the library is one of these tuples of pure functions or arrays.

Read this page first. Layers, costs, systems, solvers and rules are *values*. Build them once, close
over them and jit once. Never pass them as jit arguments. Only arrays pass through jit.
Shapes: `batch` is always the first axis. `PyTree` is any nest of tuples and dicts of arrays.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PyTree

from bpeq.settings import Caution as Caution
from bpeq.settings import DataError as DataError

Key = jax.Array
"""A typed random key, as `jax.random.key(seed)` makes it."""
Shape = tuple[int, ...]
"""The shape of one example: the batch axis is left out."""
Params = Any
State = Any


class Activation(NamedTuple):
    """An elementwise nonlinearity σ and its properties that an energy needs.

    value:      σ(z), for z of any shape.
    slope:      σ′(z), written by hand. The factory's docstring states the value at a corner.
    potential:  A(s) with A′ = σ⁻¹, elementwise, so that σ = (∇A)⁻¹; None if σ is not monotone.
    holomorphic: whether σ is complex-differentiable near the real axis and accepts complex z.
    """

    value: Callable[[Array], Array]
    slope: Callable[[Array], Array]
    potential: Callable[[Array], Array] | None
    holomorphic: bool


class Layer(NamedTuple):
    """Three pure functions of a layer, and its properties.

    init(key, shape) -> (params, shape): both shapes are one example's, without the batch axis.
    forward(params, x, key=None) -> (y, residuals): a key means training, None means evaluation.
    backward(params, feedback, residuals, dy) -> (dparams, dx): the pull-back of dy, written by
        hand. `feedback` has the shape of `params`. The layer reads it wherever an error passes
        backward through a weight, and nowhere else. Backprop is `feedback = params`. dx is None for
        integer inputs.
    parts:      the layers of which a combinator is made.
    activation: set on the elementwise layers at which `layers.cut` may cut.
    absorb(params, residuals) -> params: writes the running statistics in training; None if there
        are none. With the residuals of an evaluation pass it writes the statistics of that pass
        (`layers.calibrate`). It writes only leaves that `trained` declares as not trained.
    trained(params) -> a tree like `params` with a bool for each leaf: whether an optimizer may
        change the leaf. It reads only the structure of `params`. False is for leaves that `absorb`
        writes and for fixed weights. None: all leaves are trained. `layers.trained_leaves` gives
        the tree in both cases. Combinators pass it on.
    no_energy:  why the layer cannot be part of a per-example energy; empty if it can.
    not_holomorphic: why `forward` is not complex-differentiable; empty if it is. For an activation
        `activation.holomorphic` says so.
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
    """The cost C that compares an output with its target y.

    value(output, y) -> [batch]: the cost of each example.
    error(output, y): ∂value/∂output, in the shape of `output`, written by hand.
    y is a target of the output's shape or, for `[batch, classes]` outputs, integer labels.
    """

    name: str
    value: Callable[[Array, Array], Float[Array, " batch"]]
    error: Callable[[Array, Array], Array]


class Device(NamedTuple):
    """The imperfections of a system that models a device.

    A noisy device keeps its random key and the index of the sweep in its clamped part, so that a
    sweep stays a pure function. `clamp` sets the device's own key and sweep 0.

    ideal:   the system without imperfections. Exact references and curvatures use this system.
    seeded(clamped, key) -> clamped: with noise from another key; None for a device without noise.
    numbered(clamped, n) -> clamped: for the n-th sweep of a phase; None for a device without noise.
    nudged(clamped, n) -> clamped: for the n-th nudged or clamped phase, n a traced index; None if
        all phases run on one device without noise.
    """

    ideal: System
    seeded: Callable[[Any, Key], Any] | None = None
    numbered: Callable[[Any, Array | int], Any] | None = None
    nudged: Callable[[Any, Array], Any] | None = None


def rows_first(clamped: Any, rows: Int[Array, " rows"]) -> Any:
    """Take rows of every leaf.

    Args:
      clamped: a tree whose leaves have the batch on axis 0.
      rows: indices of examples.

    Returns:
      The same tree, with these rows.
    """
    return jax.tree.map(lambda leaf: jnp.take(leaf, rows, axis=0, mode="clip"), clamped)


class SystemTraits(NamedTuple):
    """Properties of a system that only some rules need. Every field has a default.

    not_holomorphic: which part is not complex-differentiable, and why; empty if all parts are.
    project(params) -> params: the nearest parameters that the system can have, such as conductances
        that are not negative; None if all are allowed. A rule calls it in its `absorb`.
    forward(params, clamped) -> state: the feed-forward pass, in which each unit gets input from
        below alone; None if the units have no such order.
    reverse: the sweep with its parts in the opposite order; None if a sweep updates all states at
        once. An error passes back through the sweep in this order.
    nudge_outside: the name of the output state's σ, if the sweep adds the push to the new state
        outside of σ. Empty if the push enters the force; a settled state then has force + push = 0.
    linear_output: whether the output is a state without a σ, along which E has curvature 1. A
        squared error with weight −β, as in a negative nudge, is then bounded for β < 1 only.
    device: the imperfections of a device; None for a perfect system.
    trained: as in `Layer`. A rule on the system passes it on. None: all leaves are trained.
    take_rows(clamped, rows) -> clamped: the part that sweeps of those examples need. The default
        is right if every clamped leaf has the batch on axis 0. None: a sweep needs the whole batch.
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

    init(key, shape) -> (params, shape): as in `Layer`.
    clamp(params, x) -> clamped: all that depends on x but not on the state, once per batch.
    init_state(params, clamped) -> state: the start of a free phase.
    sweep(params, clamped, state, push=None, hold=False) -> state: one undamped relaxation step.
        `push(state)` gives an additive input for each state (None for a state without one). Each
        half of an alternating sweep evaluates it at the current state. `hold` keeps the output
        fixed, in each half too; writing it back after the sweep would be too late. An example's new
        state depends only on its own old state, so a solver may sweep a part of the examples.
    energy(params, clamped, state) -> [batch], or None for dynamics without an energy.
    denergy(params, clamped, states, weights) -> (dparams, dx): Σ_n w_n ∂E/∂(θ, x)(state_n). Every
        leaf of `states` has the phases on axis 0. dparams is a sum over the batch, zero for readout
        weights. dx has the shape of x, one derivative per example; None for integer inputs.
    force(params, clamped, state) -> state: −∂E/∂s, or the field itself if there is no energy.
    dforce(params, clamped, state, v) -> (dparams, dx): vᵀ ∂force/∂(θ, x), as `denergy` gives them.
    readout: a Layer from state to output. Its pull-back of β ∂C/∂y is the nudge on the states and
        the gradient of the readout's own weights.
    write(state, output) -> state: sets the output in the state; `hold` then keeps it. None if the
        output is not a state, so that no rule can clamp it.
    traits: properties that only some rules need.
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
        """The system without its imperfections; the system itself if it has none."""
        return self if self.traits.device is None else self.traits.device.ideal


class SolveInfo(NamedTuple):
    """How a solve ended, for each example. A failure is data: the caller decides what follows.

    The batch is the last axis of steps, residual and converged. If there are several phases, every
    field has them on an axis 0 before the others.

    steps:     `[batch]`, the number of sweeps of the example.
    residual:  `[batch]`, max |sweep(s) − s| over the example's units, of the undamped sweep.
    converged: `[batch]`, residual ≤ tolerance; NaN counts as not converged.
    trajectory: `[steps, batch, ...]`, the state after each step; None unless the solver records it.
    end:       `[batch, ...]`, the final state; None unless the caller needs it.
    """

    steps: Int[Array, " batch"]
    residual: Float[Array, " batch"]
    converged: Bool[Array, " batch"]
    trajectory: PyTree | None = None
    end: PyTree | None = None


@runtime_checkable
class Solver(Protocol):
    """(step, state) -> (state, SolveInfo), with step: state -> state an undamped sweep."""

    def __call__(self, step: Callable[[State], State], state: State) -> tuple[State, SolveInfo]: ...


@runtime_checkable
class Schedule(Protocol):
    """progress -> factor on the learning rate; progress runs from 0 at the first step to 1."""

    def __call__(self, progress: Array, /) -> Array: ...


class Memory(NamedTuple):
    """The final states of earlier free phases, for each row of a batch or each example of a set.

    states: the system's states, `[places, ...]`.
    known: whether the place holds a state, which is finite.
    """

    states: State
    known: Bool[Array, " places"]


class Batch(NamedTuple):
    """Inputs and targets of one batch.

    x: `[batch, ...]`, inputs. y: `[batch]` integer labels, or `[batch, ...]` targets.
    rows: `[batch]`, row indices of these examples in the whole set; None if the caller did not pass
        row indices.
    start: the starts of free phases, where they are known; None: the system's own start.
    """

    x: Array
    y: Array
    rows: Int[Array, " batch"] | None = None
    start: Memory | None = None


class PerExample(NamedTuple):
    """A record of each example, for an estimate's `info`: a tree with `[batch, ...]` leaves."""

    value: PyTree


class Estimate(NamedTuple):
    """The result of a rule on one batch.

    A field is a mean over the batch or per example. Devices that share a batch average the means
    and concatenate the per-example fields.

    grads:  the shape of params; the mean over the batch.
    loss:   scalar, the mean cost of the free (or forward) output.
    output: `[batch, ...]`, that output; per example.
    info:   named records of how the rule made the estimate; may be empty. A `SolveInfo` and a
        `PerExample`, also inside other trees, are per example. All other numbers are means over the
        batch, or the same for the whole batch.
    """

    grads: Params
    loss: Float[Array, ""]
    output: Array
    info: dict[str, Any]


class RuleInfo(NamedTuple):
    """What a report, a check or a config must know about a rule. No training loop reads it.

    reference:  a rule that gives the exact gradient of the same `apply`, up to a certified residual
        in float64. `gradient_fidelity` compares with it. None if the rule has no reference.
    objective:  set if the rule follows another objective than C: a rule that gives the exact
        gradient of that objective, certified like `reference`. It has the objective's name, and
        its loss is the objective's value.
    optimizers: the names of the only optimizers that work with the estimate; empty: any works.
    needs_decay: whether the rule works only with an optimizer whose weight decay is > 0.
    note:       what a reader of a comparison must know, such as that the rule is algebraically
        backprop in these settings; empty: nothing.
    device_weights: (params -> the weights that a device would hold, the inverse map), if `params`
        stores something else, such as a difference of weights; None if `params` are those weights.
    beta:       the key in the rule's state of the setting that a grid over β varies, "beta" or
        "eta"; empty if there is none.
    beta_max:   the largest value that this setting may take.
    order:      the theoretical order of the bias in this setting; 0 if there is none or it is
        unknown.
    nudgings:   the nudgings that a grid compares, such as "centered" or "holomorphic-4"; empty if
        the grid uses the nudging that the rule has.
    sweep_settings: n -> the settings, besides its solvers, with which the rule runs n sweeps; None
        if it has none.
    nudged_system(system, params, free) -> System: the system of the rule's nudged phases; None if
        they run on the rule's own system.
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
    order: int = 0
    nudgings: tuple[str, ...] = ()
    sweep_settings: Callable[[int], dict[str, int]] | None = None
    nudged_system: Callable[[System, Params, Any], System] | None = None
    pushes_away: bool = False


class LearningRule(NamedTuple):
    """A drop-in for `jax.value_and_grad` that may be local, biased or iterative.

    init(key, params) -> (params, state): weights that shape `apply`, or that the optimizer must
        train, join `params`. Weights that only carry errors, and traced settings such as β, live in
        `state`.
    apply(params, x, key=None) -> output: inference; a relaxing rule settles its system.
    estimate(params, batch, state, key) -> (Estimate, state): one key serves all phases.
    absorb(params, info) -> params: the training loop calls it after each update, with the
        estimate's info. It writes the running statistics of the estimate, if the network has any,
        and projects the weights onto those that the system can have. None: nothing to do.
    prepare(params, state, x, batch_size) -> state: makes room for a memory of each example of the
        whole set x, or of each row of a batch. The training loop calls it once, after `init`. None
        if the rule remembers nothing.
    info: what reports, checks and configs must know.
    trained: as in `Layer`, for the params that the rule's `init` gives: the leaves that training
        may change. A rule on a network passes on the network's. None: all leaves.
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
    """(carry, batch, key) -> (carry, metrics): one step of the training loop."""

    def __call__(self, carry: Any, batch: Batch, key: Key) -> tuple[Any, dict[str, Array]]: ...
