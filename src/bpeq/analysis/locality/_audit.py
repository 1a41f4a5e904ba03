"""The locality audit of a rule: from the program of its estimate to a row for every weight."""

from __future__ import annotations

import jax

from bpeq.analysis.locality._rows import RowWriter
from bpeq.analysis.locality._trace import TracedEstimate, contents_of
from bpeq.analysis.locality.tables import Locality
from bpeq.core import trees
from bpeq.layers import cut
from bpeq.types import Batch, Key, Layer, LearningRule, Params, State


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
                  from units of other layers; a `batch statistic`, pooled over examples and used by
                  each, such as a β chosen from all gradients; an `error` that skips layers.

    The audit does not see:

    * values. A zero counts as its sources.
    * when and how a loop stops, and what its solver's tolerance reads.
    * sums inside a layer, such as a softmax over it.
    * that two different weights are equal.
    * which of two phases is which, if a rule puts them on another axis than the first. Both then
      count as read together.
    * the difference between units that are added, or that are multiplied entry by entry: a residual
      stream is one state.
    * what a nonlinearity does to a row of a weight that was added to activity, and how a weight is
      used behind a random matrix.

    The audit follows a fixed or random matrix of the rule, but gives it no row. If the axes of a
    weight are lost on the way to a gradient, the weight is `unknown` under transposed, and `unseen`
    names the primitive with its line. `unseen` also names primitives that the audit does not know.
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

    traced = TracedEstimate(rule.estimate, params, batch, state, key)
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
    unseen = places | (walk.unseen - {place.partition(" ")[0] for place in places})
    carried = [
        f"{names[leaf]} ({contents_of(names, value, leaf)})"
        for leaf, value in ((traced.count + i, value) for i, value in renewed)
    ]
    return Locality(rule.name, tuple(rows), tuple(sorted(unseen)), tuple(carried))


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
