"""The locality audit: what each weight's update needs, found in the traced program of the rule."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bpeq.analysis.locality._arrays import ADDED, BATCH, LATE, NO_LABELS, Owners, Value, axes_of
from bpeq.analysis.locality._contents import FAR, Atom, Content, Kind
from bpeq.analysis.locality._places import numbered
from bpeq.analysis.locality._walk import Walk, constant, held
from bpeq.analysis.locality.rows import Locality, RowWriter
from bpeq.core import trees
from bpeq.core.jaxprs import without_dead_code
from bpeq.core.tracing import carries_all
from bpeq.layers import cut
from bpeq.types import Batch, Key, Layer, LearningRule, Params, State

UNSUMMED = "a product with a part of a weight"
_NOUNS = {
    Kind.TARGET: "targets",
    Kind.ACTIVITY: "activity",
    Kind.ERROR: "errors",
    Kind.NUDGED: "activity with errors in it",
}


def audit_locality(
    rule: LearningRule,
    params: Params,
    batch: Batch,
    *,
    key: Key,
    state: State = None,
    network: Layer | None = None,
) -> Locality:
    """Audits what the update of each weight needs, from the program of the rule's estimate.

    The estimate is traced, not run. The audit follows the sources of each array from x and y to the
    gradients, through products, loops and branches. It uses no names of rules. There is a row for
    every leaf of params:

    reads         what the last products and sums of the gradient use, back to the last weight
    before
                  them: `input`; `target`; `noise`, a random number; and states, each with the block
                  that drives it and its phase:
                    forward       computed from x in one pass
                    drive         the same, and a constant of a relaxation: with x clamped it is
                                  there in every phase
                    free          settled without y
                    nudged        settled with y, by a nudge or clamped to it
                    target        computed from y and activity without settling
                    output error  an output minus its target, at the output
                    error         that error after it has passed through a weight
    transposed    whether the weight is also used in the direction opposite to that of activity (for
                  a convolution: its kernel with input and output channels exchanged), and what
                  passes through it: `coupling`, activity that comes down in every relaxation in
                  which the weight sends activity up; `activity (phases)`, in these phases only;
                  `error`; `target`; `probe`, a random vector. `(its sign)` means that only the sign
                  is used, `(entry by entry)` that a gain multiplies activity and error alike.
    stored        the phases that must be remembered, because one product uses them together with a
                  later phase: in backprop activations meet an error. A contrast between phases is a
                  sum. Each of its products uses one phase, so it stores none of them.
    error_pass    `yes`: the gradient uses an error that has passed through weights, apart from all
                  activity. `inside the sweeps`: an error passes through a weight and is then added
                  to activity, such as a nudge through a readout. `no`: an output's own error needs
                  no pass.
    global_signal what the gradient uses from beyond the two ends of its weight: `a number` pooled
                  from units of other layers, or one unit of them that many units read, by whatever
                  sums, slices or loops; a `batch statistic`, pooled over examples and used by
                  each, such as a β chosen from all gradients; an `error` that skips layers;
                  `unknown`, what a primitive gives that the audit does not know.

    The audit does not see:

    * values. A zero counts as its sources.
    * when and how a loop stops, and what its solver's tolerance reads.
    * sums inside a layer, such as a softmax or a cumulative sum over it.
    * that two different weights are equal.
    * which of two phases is which, if a rule puts them on another axis than the first. Both then
      count as read together.
    * the difference between units that are added, or that are multiplied entry by entry: a residual
      stream is one state.
    * what a nonlinearity does to a row of a weight that was added to activity, and how a weight is
      used behind a random matrix.

    The audit follows a fixed or random matrix of the rule, but gives it no row. A matrix of one
    column, or of equal columns, is a sum. If the axes of a
    weight are lost on the way to a gradient, the weight is `unknown` under transposed. `unseen`
    names the primitive with its line, and so all other primitives that the audit does not know.
    A rule reads what it writes into its own state one step later: a weight in this state counts as
    used where it is used, with the mark `(a step late)`.

    Args:
      rule: any rule whose estimate can be traced.
      params: the parameters from the rule's `init`, or from `network.init` if `state` is None.
      batch: at least two examples, x `[batch, ...]` and y.
      key: the random key of the estimate. The result does not depend on it.
      state: the rule's state; None: `rule.init(key, params)` makes parameters and state.
      network: names weights and states by its blocks; None: they are named by their place in
        params.

    Returns:
      A row for each weight, and what the audit could not follow.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq import costs, layers, rules
      >>> network = layers.chain(layers.dense(4), layers.tanh(), layers.dense(1))
      >>> params, _ = network.init(jax.random.key(0), (3,))
      >>> audit = audit_locality(rules.backprop(network, costs.squared_error()), params,
      ...     Batch(jnp.ones((2, 3)), jnp.ones((2, 1))), key=jax.random.key(1), network=network)
      >>> audit.rows[3].weight, audit.rows[3].transposed
      ('dense_2.w', ('error',))
      >>> audit.rows[1].reads, audit.rows[1].stored, audit.rows[1].error_pass
      (('input', 'dense_1 forward', 'dense_1 error'), ('forward',), 'yes')

    Source: the demands are those of Crick 1989, The recent excitement about neural networks, and
    Bengio et al. 2015, Towards biologically plausible deep learning.
    """
    if state is None:
        params, state = rule.init(key, params)

    traced = _TracedEstimate(rule.estimate, params, batch, state, key)
    late, renewed = traced.late_leaves()
    walk, values = traced.gradients(late, any(value.content.known for _, value in renewed))
    for leaf, value in enumerate(values):  # a gradient's axes are its weight's
        for axis, dim in enumerate(value.dims):
            walk.units.unite(dim | {(leaf, axis)})
    names = [*weight_names(params, network), *(f"state.{name}" for name in trees.names(state))]
    writer = RowWriter(walk, [*names, *(f"constant {i}" for i in range(traced.constants))])
    # A weight that was lost is unknown. The place is named once.
    lost = {pair for value in values for pair in value.lost if pair[0] < traced.count}
    unknown, places = {leaf for leaf, _ in lost}, {place for _, place in lost}
    rows = [writer.row(leaf, v.content, leaf in unknown) for leaf, v in enumerate(values)]
    carried = [
        f"{names[leaf]} ({_contents_of(names, value, leaf)})"
        for leaf, value in ((traced.count + i, value) for i, value in renewed)
    ]
    return Locality(rule.name, tuple(rows), tuple(sorted(places | walk.unseen)), tuple(carried))


def weight_names(params: Params, network: Layer | None = None) -> list[str]:
    """Names the leaves of params by the blocks of a network, such as `dense_1.w`, or by place.

    Args:
      params: a tree of weights.
      network: the layers to which the first entries of params belong; None: leaves are named by
        their place.

    Returns:
      One name for each leaf.
    """
    paths = [path.split(".") for path in trees.names(params)]
    if network is None:
        return [".".join(path) for path in paths]
    blocks: dict[str, str] = {}
    for block in cut(network):
        inside = range(block.slice.start, block.slice.stop)
        filled = [str(i) for i in inside if jax.tree.leaves(params[i])]
        blocks |= {i: block.name if len(filled) == 1 else f"{block.name}.{i}" for i in filled}
    layers = len(network.parts)

    def name(path: list[str], short: bool) -> str:
        if path[0].isdecimal() and int(path[0]) < layers:
            return ".".join([blocks.get(path[0], path[0]), *path[1:]])
        if short:  # entries of the system or of the rule
            return ".".join(part for part in path if not part.isdecimal())
        return ".".join(blocks.get(part, part) for part in path[1:])

    for short in (True, False):
        names = [name(path, short) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [".".join(path) for path in paths]


class _TracedEstimate:
    """An estimate and its arguments.

    `count` is the number of leaves of params, and `states` that of the rule's state. `constants` is
    the number of constants of the program, after a walk.

    Args:
      estimate: the rule's estimate.
      params: its parameters.
      batch: at least two examples.
      state: the rule's state.
      key: the random key.
    """

    def __init__(
        self, estimate: Callable[..., Any], params: Params, batch: Batch, state: State, key: Key
    ) -> None:
        self._estimate, self._arguments = estimate, (params, batch, state, key)
        self.count, self.states = len(jax.tree.leaves(params)), len(jax.tree.leaves(state))
        self.constants = 0

    def gradients(self, late: Mapping[int, Value], with_state: bool) -> tuple[Walk, list[Value]]:
        """Walks to the gradients.

        Args:
          late: the leaves of the state that hold weights, and what they hold.
          with_state: whether to walk on to the new state, whose activity is read one step late.

        Returns:
          The walk, and what it knows of each gradient.
        """
        end = None if with_state else 1
        walk, values = self._walk(lambda result: (result[0].grads, result[1])[:end], late)
        for i, value in enumerate(values[: self.count]):
            # A product that lacks an axis of a weight, although it was not summed over it.
            pending = {leaf for leaf, function in value.summand if function != ADDED}
            lost = {n for n in pending if len(axes_of(n, value.dims)) < walk.weights.ranks[n]}
            values[i] = value._replace(lost=value.lost | {(leaf, UNSUMMED) for leaf in lost})
        return walk, values[: self.count]

    def late_leaves(self) -> tuple[dict[int, Value], list[tuple[int, Value]]]:
        """Finds the leaves of the state that hold other leaves one step late, and leaves made anew.

        Returns:
          The former by their number, and the latter as pairs of number and value.
        """
        late: dict[int, Value] = {}
        values: list[Value] = []
        for _ in range(self.states + 1):  # a leaf may hold the earlier content of another leaf
            values = self._walk(lambda result: result[1], late)[1]
            holding = {i: v for i, v in enumerate(values) if _others(self.count + i, v)}
            before, late = late, {i: _held_late(value) for i, value in holding.items()}
            if late == before:
                break
        return late, [(i, v) for i, v in enumerate(values) if i in late or v.content.known]

    def _walk(
        self, part: Callable[[Any], Any], late: Mapping[int, Value]
    ) -> tuple[Walk, list[Value]]:
        with carries_all.on():
            closed = jax.make_jaxpr(lambda *args: part(self._estimate(*args)))(*self._arguments)
        jaxpr = without_dead_code(closed.jaxpr)
        avals: list[Any] = [var.aval for var in jaxpr.invars]
        fixed: list[Any] = [var.aval for var in jaxpr.constvars]
        self.constants, end = len(fixed), self.count + self.states
        weights, (x, y), rest = avals[: self.count], avals[self.count :][:2], avals[end + 2 :]
        states = avals[self.count + 2 : end + 2]
        shapes = [aval.shape for aval in (*weights, *states, *fixed)]
        walk, places = Walk(shapes), numbered(shapes)
        noise = Content(Kind.CONSTANT, frozenset({frozenset({Atom("noise")})}))
        consts = []
        for i, (const, aval) in enumerate(zip(closed.consts, fixed, strict=True)):
            value = held(const)  # a matrix of the program, unless all its columns are equal
            varying = len(aval.shape) - len(value.spread)
            matrix = _leaf(end + i, aval, 2)._replace(places=value.places)
            consts.append(matrix if varying > 1 else value)
        args = [
            *(_leaf(i, aval, 1)._replace(places=places[i]) for i, aval in enumerate(weights)),
            _data(x, Kind.ACTIVITY, "input", 0),
            _data(y, Kind.TARGET, "target", FAR),
            *(late.get(i) or _leaf(self.count + i, aval, 2) for i, aval in enumerate(states)),
            *(Value((noise,), (NO_LABELS,) * len(aval.shape)) for aval in rest),
        ]
        return walk, walk.run(jaxpr, consts, args)


def _contents_of(names: Sequence[str], value: Value, leaf: int) -> str:
    """Names the sources of a new state, leaf number `leaf`: other leaves, and a noun for data."""
    leaves = {names[i] for i, _ in _others(leaf, value) if i < len(names)}
    data = [_NOUNS[value.content.kind]] if value.content.known else []
    return ", ".join([*sorted(leaves), *data])


def _others(leaf: int, value: Value) -> Owners:
    owners = value.weights | value.summand | value.lost
    return frozenset(pair for pair in owners if pair[0] != leaf)


def _held_late(value: Value) -> Value:
    """What a leaf of the state, which holds other leaves, is to the next estimate."""
    owners = frozenset((i, LATE) for i, _ in value.weights | value.summand)
    weight, places = (Content(Kind.WEIGHT),), value.places
    return Value(weight, value.dims, weights=owners, lost=value.lost, places=places)


def _leaf(leaf: int, aval: Any, least: int) -> Value:
    """An array that does not depend on data. With fewer than `least` axes it is a coefficient."""
    rank = len(aval.shape)
    if rank < least or not jnp.issubdtype(aval.dtype, jnp.inexact):
        return constant(aval.shape)
    dims = tuple(frozenset({(leaf, axis)}) for axis in range(rank))
    return Value((Content(Kind.WEIGHT),), dims, weights=frozenset({(leaf, "")}))


def _data(aval: Any, kind: Kind, what: str, far: int) -> Value:
    terms = frozenset({frozenset({Atom(what)})})
    dims = (frozenset({BATCH}), *(NO_LABELS,) * (len(aval.shape) - 1))
    return Value((Content(kind, terms, far=far),), dims)
