"""Whether an example's energy and sweep are its own, whatever stands beside it in the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bpeq.analysis.energy_contract._subject import Finding, Subject, drawn
from bpeq.core import trees
from bpeq.types import State

TOLERANCE = 1e-9  # of round-off, which another order of sums leaves


def alone_finding(subject: Subject, key: jax.Array) -> Finding:
    """max |in a batch − alone| over the largest value, of the energy and of a sweep."""
    system, params = subject.system, subject.params

    def made(x: Any, state: State) -> dict[str, Any]:
        clamped = system.clamp(params, x)
        found = {"sweep": system.sweep(params, clamped, state)}
        if system.energy is not None:
            found["energy"] = system.energy(params, clamped, state)
        return found

    @jax.jit
    def both(x: Any, state: State, mates: State) -> tuple[Any, Any]:
        batch = [jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *pair)
                 for pair in ((x, x), (state, mates))]  # fmt: skip
        one = jax.vmap(lambda *example: made(*jax.tree.map(lambda a: a[None], example)))
        return made(*batch), jax.tree.map(lambda a: a[:, 0], one(x, state))

    states = (drawn(subject, k) for k in jax.random.split(key))
    beside, alone = both(subject.x, *states)
    gaps = {}
    for name in alone:
        pairs = zip(jax.tree.leaves(beside[name]), jax.tree.leaves(alone[name]), strict=True)
        size = float(jnp.max(trees.max_abs(jax.tree.map(jnp.atleast_1d, alone[name]))))
        gaps[name] = max(float(np.abs(a[: len(b)] - b).max()) for a, b in pairs) / max(size, 1e-300)
    worst = max(gaps, key=lambda name: gaps[name])
    passed = bool(gaps[worst] <= TOLERANCE)
    words = f"an example's {' and '.join(sorted(gaps))} are the same alone and in a batch"
    if not passed:
        words = f"an example's {worst} depends on its batch mates: by {gaps[worst]:.1e} of its size"
    return Finding("alone", passed, gaps[worst], words)
