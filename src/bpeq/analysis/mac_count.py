"""Multiply-accumulates of a traced program; where loops have no known length, by running them."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.extend.core import Literal
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array

from bpeq.core.tracing import disable_fast_paths


def count_macs(fn: Callable[..., Any], *args: Any) -> float:
    """Multiply-accumulates of matrix products and convolutions in `fn(*args)`.

    Elementwise work is not counted, nor is what no result depends on. A scan counts its length.
    The length of a while loop is data: where there is one, what leads to it is computed, and the
    rounds it takes are counted. What a `fixed_steps` saves of its sweeps, or a convolution by going
    another way, is not taken off: counts are of what the formulas ask for, on any device.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> count_macs(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
      30.0
      >>> shrink = lambda x: jax.lax.while_loop(lambda x: x[0, 0] > 1, lambda x: x @ x / 4, x)
      >>> count_macs(shrink, 3 * jnp.eye(2))  # 3, 2.25, 1.27, 0.40: three rounds of 8
      24.0
    """
    with disable_fast_paths.on():
        traced = jax.make_jaxpr(fn)(*args)
    if not _loops(traced.jaxpr):
        return _count(_used(traced.jaxpr))
    return _runner(traced.jaxpr, traced.consts, outputs=False)(jax.tree.leaves(args))[1]


def _used(jaxpr: Any) -> Any:
    """The program without what no result depends on; inside a while loop jax leaves that to us."""
    return dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)[0]


def _count(jaxpr: Any) -> float:
    """Of a program whose loops all have a known length."""
    return sum((_macs(eqn) for eqn in jaxpr.eqns), 0.0)


def _macs(eqn: Any) -> float:
    kind = eqn.primitive.name
    if kind == "dot_general":
        (contract, _), _ = eqn.params["dimension_numbers"]
        shared = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
        return float(math.prod(eqn.outvars[0].aval.shape) * shared)
    if kind == "conv_general_dilated":
        kernel = eqn.invars[1].aval.shape
        outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
        return math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / outputs
    counts = [_count(inner) for inner, _ in _inner(eqn)]
    if kind == "cond":
        return max(counts)
    return sum(counts) * (eqn.params["length"] if kind == "scan" else 1)


def _inner(eqn: Any) -> list[tuple[Any, Sequence[Any]]]:
    """The programs inside an equation, each with its constants."""
    names = ("jaxpr", "call_jaxpr", "fun_jaxpr", "cond_jaxpr", "body_jaxpr")
    found = [eqn.params[name] for name in names if name in eqn.params]
    found += eqn.params.get("branches", ())
    return [(getattr(each, "jaxpr", each), getattr(each, "consts", ())) for each in found]


def _loops(part: Any) -> bool:
    """Whether there is a while loop in an equation or a program, however deep."""
    if hasattr(part, "eqns"):
        return any(map(_loops, part.eqns))
    return part.primitive.name == "while" or any(_loops(inner) for inner, _ in _inner(part))


Run = Callable[[Sequence[Any]], tuple[list[Any], float]]
"""arguments -> (results, multiply-accumulates on the way)"""


def _runner(jaxpr: Any, consts: Sequence[Any], outputs: bool = True) -> Run:
    """Runs a program piece by piece: its loops one by one, and each stretch between two compiled.

    outputs: whether its results are wanted; without them it runs as far as its loops need it.
    """
    jaxpr = _used(jaxpr)
    needed = {v for v in jaxpr.outvars if not isinstance(v, Literal)} if outputs else set()
    pieces = []
    stretches = [(loops, list(eqns)) for loops, eqns in itertools.groupby(jaxpr.eqns, _loops)]
    for loops, eqns in reversed(stretches):
        for part in [[eqn] for eqn in reversed(eqns)] if loops else [eqns]:
            pieces.append(_looped(part[0]) if loops else _straight(part, needed))
            needed.update(pieces[-1].takes)

    def run(args: Sequence[Any]) -> tuple[list[Any], float]:
        known = dict(zip([*jaxpr.constvars, *jaxpr.invars], [*consts, *args], strict=True))
        total = 0.0
        for piece in reversed(pieces):
            made, macs = piece.run([known[v] for v in piece.takes])
            known.update(zip(piece.gives, made, strict=True))
            total += macs
        wanted = jaxpr.outvars if outputs else ()
        return [v.val if isinstance(v, Literal) else known[v] for v in wanted], total

    return run


class _Piece(NamedTuple):
    takes: list[Any]
    gives: list[Any]
    run: Run


def _straight(eqns: Sequence[Any], needed: set[Any]) -> _Piece:
    """Equations without loops: all are counted, and those that `needed` depends on computed."""
    kept: list[Any] = []
    inside = set(needed)
    for eqn in reversed(eqns):
        if inside.intersection(eqn.outvars):
            kept.insert(0, eqn)
            inside.update(_variables(eqn))
    made = [v for eqn in kept for v in eqn.outvars]
    takes = list(dict.fromkeys(v for eqn in kept for v in _variables(eqn) if v not in made))
    gives = [v for v in made if v in needed]
    macs = sum(map(_macs, eqns))

    @jax.jit
    def compute(values: Sequence[Any]) -> list[Any]:
        known = dict(zip(takes, values, strict=True))
        for eqn in kept:
            inputs = [v.val if isinstance(v, Literal) else known[v] for v in eqn.invars]
            result = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
            several = eqn.primitive.multiple_results
            known.update(zip(eqn.outvars, result if several else [result], strict=True))
        return [known[v] for v in gives]

    return _Piece(takes, gives, lambda values: (compute(values), macs))


def _variables(eqn: Any) -> list[Any]:
    return [v for v in eqn.invars if not isinstance(v, Literal)]


def _looped(eqn: Any) -> _Piece:
    """An equation that has a while loop in it, or is one."""
    kind, params = eqn.primitive.name, eqn.params
    takes = list(dict.fromkeys(_variables(eqn)))
    runners = [_runner(jaxpr, consts) for jaxpr, consts in _inner(eqn)]

    def run(values: Sequence[Any]) -> tuple[list[Any], float]:
        known = dict(zip(takes, values, strict=True))
        inputs = [v.val if isinstance(v, Literal) else known[v] for v in eqn.invars]
        if kind == "while":
            return _while(params, inputs, *runners)
        if kind == "scan":
            return _scan(params, inputs, *runners)
        if kind == "cond":
            chosen = min(max(int(inputs[0]), 0), len(runners) - 1)
            return runners[chosen](inputs[1:])
        return runners[0](inputs)

    return _Piece(takes, list(eqn.outvars), run)


def _while(params: Any, inputs: list[Any], cond: Run, body: Run) -> tuple[list[Any], float]:
    a, b = params["cond_nconsts"], params["cond_nconsts"] + params["body_nconsts"]
    for_cond, for_body, carry, total = inputs[:a], inputs[a:b], inputs[b:], 0.0
    while (on := cond([*for_cond, *carry])[0][0]).any():
        moved, macs = body([*for_body, *carry])
        carry = [_where(on, new, old) for new, old in zip(moved, carry, strict=True)]
        total += macs
    return carry, total


def _where(on: Array, new: Array, old: Array) -> Array:
    """Under vmap a loop has a condition for each of its copies, and those that are done stay."""
    return (
        jnp.where(on.reshape(on.shape + (1,) * (new.ndim - on.ndim)), new, old) if on.ndim else new
    )


def _scan(params: Any, inputs: list[Any], body: Run) -> tuple[list[Any], float]:
    """A scan with a while loop in it, whose rounds may differ from one step to the next."""
    a, b = params["num_consts"], params["num_consts"] + params["num_carry"]
    consts, carry, sequences, total = inputs[:a], inputs[a:b], inputs[b:], 0.0
    rows, steps = [], range(params["length"])
    for i in reversed(steps) if params["reverse"] else steps:
        made, macs = body([*consts, *carry, *(s[i] for s in sequences)])
        carry, total = made[: b - a], total + macs
        rows.append(made[b - a :])
    if params["reverse"]:
        rows.reverse()
    return [*carry, *(jnp.stack(column) for column in zip(*rows, strict=True))], total
