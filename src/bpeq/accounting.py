"""What one gradient costs: multiply-accumulates of the traced program, and bytes of memory."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax.interpreters.partial_eval import dce_jaxpr


def count_macs(fn: Callable[..., Any], *args: Any, trips: Sequence[float] = ()) -> float:
    """Multiply-accumulates of matrix products and convolutions in `fn(*args)`.

    Scans count their length. A while loop's length is data: the i-th one met counts `trips[i]`
    rounds, as measured, or 1. Elementwise work is not counted, nor is what no result depends on.

    Example:
      >>> import jax.numpy as jnp
      >>> count_macs(lambda a, b: a @ b, jnp.ones((2, 3)), jnp.ones((3, 5)))
      30.0
    """
    traced = jax.make_jaxpr(fn)(*args).jaxpr
    used, _ = dce_jaxpr(traced, [True] * len(traced.outvars))
    return _count(used, list(trips))


def temporary_bytes(fn: Callable[..., Any], *args: Any) -> int:
    """Bytes that the compiled `fn(*args)` takes beside its arguments and results; 0 if unknown."""
    analysis = jax.jit(fn).lower(*args).compile().memory_analysis()
    return int(analysis.temp_size_in_bytes) if analysis is not None else 0


def _count(jaxpr: Any, trips: list[float]) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        kind = eqn.primitive.name
        if kind == "dot_general":
            (contract, _), _ = eqn.params["dimension_numbers"]
            shared = math.prod(eqn.invars[0].aval.shape[axis] for axis in contract)
            total += math.prod(eqn.outvars[0].aval.shape) * shared
        elif kind == "conv_general_dilated":
            kernel = eqn.invars[1].aval.shape
            outputs = kernel[eqn.params["dimension_numbers"].rhs_spec[0]]
            total += math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / outputs
        elif kind == "while":
            rounds = trips.pop(0) if trips else 1.0
            total += rounds * _count(eqn.params["body_jaxpr"].jaxpr, trips)
        elif kind == "cond":
            total += max(_count(branch.jaxpr, trips) for branch in eqn.params["branches"])
        else:
            length = eqn.params["length"] if kind == "scan" else 1
            total += length * sum(_count(inner, trips) for inner in _inner(eqn.params))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    found = [params[key] for key in ("jaxpr", "call_jaxpr", "fun_jaxpr") if key in params]
    return [getattr(jaxpr, "jaxpr", jaxpr) for jaxpr in found]
