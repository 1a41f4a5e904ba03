"""The locality audit of a rule: from the program of its estimate to a row for every weight."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.interpreters.partial_eval import dce_jaxpr

from bpeq import trees
from bpeq.layers import cut
from bpeq.locality._rows import Namer, WeightRow
from bpeq.locality._values import BATCH, FAR, NONE, Atom, Content, Kind, Value
from bpeq.locality._walk import Walk, fixed
from bpeq.types import Batch, Key, Layer, LearningRule, Params, State


class Locality(NamedTuple):
    """The rows of one rule, a weight each, in the order of its params."""

    rule: str
    rows: tuple[WeightRow, ...]


def audit_locality(
    rule: LearningRule,
    params: Params,
    batch: Batch,
    *,
    key: Key,
    state: State = None,
    network: Layer | None = None,
) -> Locality:
    if state is None:
        params, state = rule.init(key, params)

    def gradient(params: Params, batch: Batch, state: State, key: Key) -> Params:
        return rule.estimate(params, batch, state, key)[0].grads

    closed = jax.make_jaxpr(gradient)(params, batch, state, key)
    outputs = [True] * len(closed.jaxpr.outvars)
    jaxpr, _ = dce_jaxpr(closed.jaxpr, outputs, instantiate=True)
    names = [*weight_names(params, network), *(f"state.{name}" for name in trees.names(state))]
    count = len(jax.tree.leaves(params))
    kept = len(jax.tree.leaves(state))
    avals = [var.aval for var in jaxpr.invars]
    weights, rest = avals[:count], avals[count:]
    fixtures = [var.aval for var in jaxpr.constvars]
    leaves = [*weights, *rest[2 : 2 + kept], *fixtures]
    walk = Walk([len(aval.shape) for aval in leaves])
    consts = [
        _weight(count + kept + i, aval, least=2) if fixed(const).content.kind else fixed(const)
        for i, (const, aval) in enumerate(zip(closed.consts, fixtures, strict=True))
    ]
    noise = Content(Kind.CONSTANT, frozenset({frozenset({Atom("noise")})}))
    args = [
        *(_weight(i, aval, least=1) for i, aval in enumerate(weights)),
        _data(rest[0], Kind.ACTIVITY, "input", 0),
        _data(rest[1], Kind.TARGET, "target", FAR),
        *(_weight(count + i, aval, least=2) for i, aval in enumerate(rest[2 : 2 + kept])),
        *(Value((noise,), (NONE,) * len(aval.shape)) for aval in rest[2 + kept :]),
    ]
    made = walk.run(jaxpr, consts, args)
    for leaf, value in enumerate(made):  # a gradient's axes are its weight's
        for axis, dim in enumerate(value.dims):
            walk.units.unite(dim | {(leaf, axis)})
    names += [f"constant {i}" for i in range(len(fixtures))]
    namer = Namer(walk, names)
    return Locality(
        rule.name, tuple(namer.row(leaf, value.content) for leaf, value in enumerate(made))
    )


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
    full = [
        ".".join([places.get(path[0], path[0]), *path[1:]])
        if int(path[0]) < own
        else ".".join(part for part in path if not part.isdecimal())  # a system's own entries
        for path in paths
    ]
    return full if len(set(full)) == len(full) else [".".join(path) for path in paths]


def _weight(leaf: int, aval: Any, least: int) -> Value:
    """An array of numbers that does not depend on the data; with fewer axes a coefficient."""
    rank = len(aval.shape)
    holds = rank >= least and jnp.issubdtype(aval.dtype, jnp.inexact)
    dims = tuple(frozenset({(leaf, axis)}) if holds else NONE for axis in range(rank))
    marked = frozenset({(leaf, "")}) if holds else frozenset[tuple[int, str]]()
    return Value((Content(Kind.CONSTANT),), dims, weights=marked)


def _data(aval: Any, kind: Kind, what: str, far: int) -> Value:
    terms = frozenset({frozenset({Atom(what)})})
    dims = (frozenset({BATCH}), *(NONE,) * (len(aval.shape) - 1))
    return Value((Content(kind, terms, far=far),), dims)
