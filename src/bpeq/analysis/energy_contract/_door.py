"""What is refused before anything is checked, and integer weights, of which nothing is asked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bpeq.analysis.energy_contract._subject import Finding, Subject, drawn
from bpeq.core import trees
from bpeq.types import Params, System


def refuse(system: System, params: Params, x: Array) -> None:
    """Looks at shapes and kinds alone.

    Raises:
      ValueError: functions that do not take what the others give; a state or an output that is not
        of real floating numbers; an energy that is no such number for each example.
    """

    def found(name: str, fn: Callable[..., Any], *args: Any) -> Any:
        try:
            return jax.eval_shape(fn, *args)
        except (TypeError, ValueError, IndexError) as error:
            said = str(error).strip().split("\n")[0]
            if said.startswith(f"{system.name}: "):
                raise
            given = f"x {_one(x)}" + "".join(f" and state {_one(state)}" for state in args[2:])
            raise ValueError(f"check_energy: {name} fails at {given}: {said}") from error

    clamped = found("clamp", system.clamp, params, x)
    state = found("init_state", system.init_state, params, clamped)
    if not _floating(state):
        remedy = "a state must be of real floating numbers"
        raise ValueError(f"check_energy: init_state gives {_one(state)}: {remedy}")
    if system.energy is not None:
        energy = found("energy", system.energy, params, clamped, state)
        if energy.shape != x.shape[:1] or not _floating(energy):
            remedy = "it must give one real floating number for each example"
            raise ValueError(f"check_energy: energy gives {_one(energy)}: {remedy}")
    output = found(
        "readout", lambda p, c, s: system.readout.forward(p, s)[0], params, clamped, state
    )
    if not _floating(output):
        remedy = "an output must be of real floating numbers"
        raise ValueError(f"check_energy: readout gives {_one(output)}: {remedy}")


def on_floats(system: System, params: Params) -> tuple[System, Params, Callable[[Params], Params]]:
    """The system as one of its floating weights alone, by their names; the others are held.

    Returns:
      that system, those weights, and the way from them to all.
    """
    leaves, structure = jax.tree.flatten(params)
    floats = [i for i, leaf in enumerate(leaves) if _floating(leaf)]
    if len(floats) == len(leaves):
        return system, params, lambda own: own
    names = trees.names(params)

    def whole(own: Params) -> Params:
        every = list(leaves)
        for i in floats:
            every[i] = own[names[i]]
        return jax.tree.unflatten(structure, every)

    def part(tree: Params) -> Params:
        every = jax.tree.leaves(tree)
        return {names[i]: every[i] for i in floats}

    def of_whole(fn: Any) -> Any:
        return fn and (lambda own, *args, **more: fn(whole(own), *args, **more))

    def backward(own: Params, feedback: Params, *args: Any) -> Any:
        dparams, dx = system.readout.backward(whole(own), whole(feedback), *args)
        return part(dparams), dx

    denergy, dforce = of_whole(system.denergy), of_whole(system.dforce)
    readout = system.readout._replace(forward=of_whole(system.readout.forward), backward=backward)
    made = system._replace(
        clamp=of_whole(system.clamp),
        init_state=of_whole(system.init_state),
        sweep=of_whole(system.sweep),
        energy=of_whole(system.energy),
        denergy=denergy and (lambda *args: part(denergy(*args))),
        force=of_whole(system.force),
        dforce=lambda *args: part(dforce(*args)),
        readout=readout,
        traits=system.traits._replace(forward=of_whole(system.traits.forward)),
    )
    return made, part(params), whole


def not_finite(subject: Subject, key: jax.Array) -> Finding | None:
    """A finding where no random state around the equilibria has a finite energy and force."""

    def values(state: Any) -> Any:
        return {
            "force": subject.force(state),
            **({} if subject.energy is None else {"energy": subject.energy(state)}),
        }

    if _finite(values(drawn(subject, key))):
        return None
    at_start = {name: _finite(value) for name, value in sorted(values(subject.start).items())}
    where = "near the equilibria"
    if not all(at_start.values()):
        where = "where a free phase starts"
    what = next((name for name, good in at_start.items() if not good), "energy or force")
    words = f"the {what} is not finite {where}; nothing else is looked at"
    return Finding("gradient", False, np.nan, words)


def _finite(tree: Any) -> bool:
    return all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(tree))


def _floating(tree: Any) -> bool:
    return all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(tree))


def _one(tree: Any) -> str:
    """The kinds and shapes of one example's."""
    drop = lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype)  # noqa: E731
    return trees.describe_tree(jax.tree.map(drop, tree))
