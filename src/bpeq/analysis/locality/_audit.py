"""The locality audit of a rule: from the program of its estimate to a row for every weight."""

from __future__ import annotations

from typing import NamedTuple

import jax

from bpeq.analysis.locality._program import Program, carried, what
from bpeq.analysis.locality._rows import Namer, WeightRow
from bpeq.core import trees
from bpeq.layers import cut
from bpeq.types import Batch, Key, Layer, LearningRule, Params, State


class Locality(NamedTuple):
    """The rows of one rule, a weight each, in the order of its params.

    unseen: primitives of the estimate that the audit does not know; with any, rows may lack
        something. With its line where a weight went into it and came out unknown how: that weight
        is `unknown` under transposed.
    carried: what of the rule's own state it makes anew of weights or data, and of which: it is read
        a step late.
    """

    rule: str
    rows: tuple[WeightRow, ...]
    unseen: tuple[str, ...] = ()
    carried: tuple[str, ...] = ()


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

    program = Program(rule.estimate, params, batch, state, key)
    late, kept = carried(program)
    walk, made = program.gradients(late, any(value.content.known for _, value in kept))
    count = program.count
    for leaf, value in enumerate(made):  # a gradient's axes are its weight's
        for axis, dim in enumerate(value.dims):
            walk.units.unite(dim | {(leaf, axis)})
    own = weight_names(params, network)
    states = [f"state.{name}" for name in trees.names(state)]
    namer = Namer(walk, [*own, *states, *(f"constant {i}" for i in range(program.fixtures))])
    lost = {(leaf, at) for value in made for leaf, at in value.lost if leaf < count}
    unknown = {leaf for leaf, _ in lost}
    rows = tuple(namer.row(leaf, v.content, leaf in unknown) for leaf, v in enumerate(made))
    told = {at for _, at in lost}
    unseen = tuple(sorted(told | (walk.unseen - {at.partition(" ")[0] for at in told})))
    notes = tuple(f"{states[i]} ({what([*own, *states], value, i + count)})" for i, value in kept)
    return Locality(rule.name, rows, unseen, notes)


def weight_names(params: Params, network: Layer | None = None) -> list[str]:
    """The leaves by the blocks of `network`, such as `dense_1.w`; else by their place in params."""
    paths = [path.split(".") for path in trees.names(params)]
    if network is None:
        return [".".join(path) for path in paths]
    places: dict[str, str] = {}
    for block in cut(network):
        inside = range(block.slice.start, block.slice.stop)
        filled = [str(i) for i in inside if jax.tree.leaves(params[i])]
        places |= {i: block.name if len(filled) == 1 else f"{block.name}.{i}" for i in filled}
    own = len(network.parts)

    def called(path: list[str], plain: bool) -> str:
        if path[0].isdecimal() and int(path[0]) < own:
            return ".".join([places.get(path[0], path[0]), *path[1:]])
        if plain:  # a system's or a rule's own entries
            return ".".join(part for part in path if not part.isdecimal())
        return ".".join(places.get(part, part) for part in path[1:])

    for plain in (True, False):
        names = [called(path, plain) for path in paths]
        if len(set(names)) == len(names):
            return names
    return [".".join(path) for path in paths]
