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
    """What the update of each weight takes, read off the program of the rule's estimate.

    The estimate is traced, not run, and what each array is made of is followed from x and y to the
    gradients: through products, loops and branches, whoever wrote them, whatever the rule is
    called. A row for every leaf of params:

    reads         what the gradient's last products and sums take, up to the last weight on the way:
                  `input`; `target`; `noise`, a random number; and states, by the block that drives
                  them, with their phase:
                    forward       computed from x in one pass
                    drive         the same, where it enters a relaxation as a constant: with x
                                  clamped it is there in every phase
                    free          settled without y
                    nudged        settled with y, by a nudge or clamped to it
                    target        computed from y and activity without settling
                    output error  an output set against its target, where it stands
                    error         that error after a weight has carried it elsewhere
    transposed    whether the weight is also used against the way that activity takes up through it
                  (for a convolution: its kernel with input and output channels exchanged), and for
                  what: `coupling`, activity coming down in every relaxation in which the weight
                  sends activity up; `activity (phases)`, in these only; `error`; `target`; `probe`,
                  a random vector. `(its sign)` where only that is used, `(entry by entry)` where a
                  gain multiplies activity and error alike.
    stored        the phases that must be remembered, since one product takes them together with a
                  later one: backprop's activations meet an error. A contrast between phases is a
                  sum, each of whose products takes one phase: it stores none of them.
    error_pass    `yes`: the gradient takes an error that weights have carried, apart from all
                  activity; `inside the sweeps`: an error is carried through a weight and then added
                  to activity, such as a nudge through a readout; `no`. An output's own error needs
                  no pass.
    global_signal what the gradient takes from beyond the two ends of its weight: `a number` pooled
                  from units of other layers; a `batch statistic`, pooled over examples and used by
                  each, such as a β chosen from all gradients; an `error` that skips layers.

    What it cannot see: values, so that a zero counts as what it is made of; when and how a loop
    stops, and what its solver's tolerance takes; sums inside a layer, such as a softmax over it;
    weights that another weight equals without being it; which of two phases is which, where a rule
    lays them along another axis than the first: both then count as read together. Units that are
    added, or meet in a product entry by entry, count as the same: a residual stream is one state.
    What goes through a matrix of the rule's own, fixed or random, is followed; it has no row. Of a
    row of a weight that was added to activity it does not see what a nonlinearity makes of both,
    nor how a weight is used behind a random matrix.

    A weight that reaches a gradient by a way on which its axes were lost is `unknown` under
    transposed, and `unseen` names the primitive with its line; so it does a primitive that the
    audit does not know. What a rule makes anew in its own state is read a step late: weights in it
    count as used where it is used, `(a step late)`.

    Args:
      rule: any rule whose estimate can be traced.
      params, state: as the rule's `init` gives them. Without a state `rule.init(key, params)` is
        called on params as `network.init` gives them.
      batch: two examples or more, x `[batch, ...]` and y.
      network: names weights and states by its blocks; without it they go by their place in params.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq import costs, layers, rules
      >>> network = layers.chain(layers.dense(4), layers.tanh(), layers.dense(1))
      >>> params, _ = network.init(jax.random.key(0), (3,))
      >>> found = audit_locality(rules.backprop(network, costs.squared_error()), params,
      ...     Batch(jnp.ones((2, 3)), jnp.ones((2, 1))), key=jax.random.key(1), network=network)
      >>> found.rows[3].weight, found.rows[3].transposed
      ('dense_2.w', ('error',))
      >>> found.rows[1].reads, found.rows[1].stored, found.rows[1].error_pass
      (('input', 'dense_1 forward', 'dense_1 error'), ('forward',), 'yes')

    Source: the demands are Crick's 1989, The recent excitement about neural networks, and Bengio et
    al.'s 2015, Towards biologically plausible deep learning.
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
    # Where weights were lost: such a weight is unknown, and the place is named once.
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
    """The names of the leaves: by the blocks of a network, such as `dense_1.w`, or by their place.

    Args:
      params: a tree of weights.
      network: the layers that the first of its entries belong to; None names leaves by their place.
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
        if short:  # entries of the system's or of the rule's
            return ".".join(part for part in path if not part.isdecimal())
        return ".".join(blocks.get(part, part) for part in path[1:])

    for short in (True, False):
        names = [name(path, short) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [".".join(path) for path in paths]
