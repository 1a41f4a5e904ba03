"""The first checks of `check_energy`: misfits are errors, infinite values end the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.analysis.energy_contract._context import Context, Finding, draw_state, is_finite
from bpeq.core import trees
from bpeq.types import Params, System


def refuse_misfits(system: System, params: Params, x: Array) -> None:
    """Checks that the functions of a system fit each other, by shapes and dtypes only.

    Args:
      system: the system.
      params: its weights.
      x: inputs `[batch, ...]`.

    Raises:
      ValueError: a function does not accept the result of another; a state or an output does not
        consist of real floating-point numbers; or an energy is not one such number for each
        example.
    """

    def shape_of(name: str, fn: Callable[..., Any], *args: Any) -> Any:
        try:
            return jax.eval_shape(fn, *args)
        except (TypeError, ValueError, IndexError) as error:
            message = str(error).strip().split("\n")[0]
            if message.startswith(f"{system.name}: "):
                raise
            where = f"x {_example(x)}" + "".join(f" and state {_example(s)}" for s in args[2:])
            raise ValueError(f"check_energy: {name} fails at {where}: {message}") from error

    def refuse(name: str, values: Any, remedy: str, shape: Any = None) -> None:
        floating = all(jnp.issubdtype(v.dtype, jnp.floating) for v in jax.tree.leaves(values))
        if not floating or (shape is not None and values.shape != shape):
            raise ValueError(f"check_energy: {name} gives {_example(values)}: {remedy}")

    clamped = shape_of("clamp", system.clamp, params, x)
    state = shape_of("init_state", system.init_state, params, clamped)
    refuse("init_state", state, "a state must be of real floating numbers")
    if system.energy is not None:
        energy = shape_of("energy", system.energy, params, clamped, state)
        remedy = "it must give one real floating number for each example"
        refuse("energy", energy, remedy, x.shape[:1])
    output = shape_of(
        "readout", lambda p, c, s: system.readout.forward(p, s)[0], params, clamped, state
    )
    refuse("readout", output, "an output must be of real floating numbers")


def not_finite(context: Context, key: jax.Array) -> Finding | None:
    """Checks that energy and force are finite at a random state near the equilibria.

    Args:
      context: the system and its states.
      key: draws the random state.

    Returns:
      A finding if they are not finite, else None.
    """

    def values(state: Any) -> dict[str, Any]:
        energy = {} if context.energy is None else {"energy": context.energy(state)}
        return {**energy, "force": context.force(state)}

    if is_finite(values(draw_state(context, key))):
        return None
    infinite = [name for name, v in values(context.start).items() if not is_finite(v)]
    where = "where a free phase starts" if infinite else "near the equilibria"
    what = infinite[0] if infinite else "energy or force"
    words = f"the {what} is not finite {where}; no other check was made"
    return Finding("gradient", False, np.nan, words)


def _example(tree: Any) -> str:
    """The dtypes and shapes of one example's leaves."""
    drop = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)  # noqa: E731
    return trees.describe_tree(jax.tree.map(drop, tree))
