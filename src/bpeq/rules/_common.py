"""What rules share: a rule without a state, and traced settings in a rule's state."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.types import Caution, Key, Params, State


def no_state(key: Key, params: Params) -> tuple[Params, State]:
    """The `init` of a rule that trains the params as they are, and remembers nothing."""
    return params, ()


def traced_settings(
    owner: str, params: Params, divides: str | None = None, **settings: float
) -> dict[str, Array]:
    """Numeric settings as a rule's state, in the dtype of params: a new value compiles nothing.

    Args:
      owner: the rule's name.
      params: whose dtype they get.
      divides: which of them a contrast is divided by, if any. Below 1,000 ε a warning says that
        round-off in the states alone is a thousandth of the nudge or more.
      settings: by name.
    """
    dtype = jnp.result_type(*jax.tree.leaves(params))
    floor = 1000.0 * float(jnp.finfo(dtype).eps)
    if divides is not None and settings[divides] < floor:
        said = f"where round-off in {jnp.dtype(dtype).name} buries the contrast"
        warnings.warn(
            f"{owner}: {divides} = {settings[divides]:g} is below {floor:.1g}, {said}",
            Caution,
            stacklevel=3,
        )
    return {name: jnp.asarray(value, dtype) for name, value in settings.items()}
