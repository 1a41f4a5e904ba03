"""What a program holds of its own: constants, programs inside it, and the lines it comes from."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import ClosedJaxpr

from bpeq.analysis.locality._places import Places
from bpeq.analysis.locality._units import NONE
from bpeq.analysis.locality._values import NOTHING, Content, Kind, Value


def where(eqn: Any) -> str:
    """A primitive, and the line of the user's that it comes from."""
    trace = eqn.source_info.traceback
    own = os.path.join(os.path.dirname(jax.__file__), "")
    for frame in trace.frames if trace else ():
        if not frame.file_name.startswith(own):
            return f"{eqn.primitive.name} ({os.path.basename(frame.file_name)}:{frame.line_num})"
    return str(eqn.primitive.name)


def fixed(const: Any) -> Value:
    """A constant of the program."""
    if jnp.issubdtype(getattr(const, "dtype", bool), jax.dtypes.prng_key):
        return _plain(jnp.shape(const), False)
    zero = hasattr(const, "any") and not bool(const.any())
    known = isinstance(const, jax.Array | np.ndarray | np.generic | int | float | bool)
    places = Places.constant(const) if known else None
    return _plain(jnp.shape(const), zero)._replace(places=places)


def opened(inner: Any) -> tuple[Any, list[Value]]:
    if isinstance(inner, ClosedJaxpr):
        return inner.jaxpr, [fixed(const) for const in inner.consts]
    return inner, []


def literal(var: Any) -> Value:
    made = _plain(var.aval.shape, var.val == 0)
    return made._replace(places=Places.constant(jnp.asarray(var.val, var.aval.dtype)))


def constant(var: Any) -> Value:
    return _plain(var.aval.shape, False)


def _plain(shape: Sequence[int], zero: bool) -> Value:
    return Value((NOTHING if zero else Content(Kind.CONSTANT),), (NONE,) * len(shape))
