"""How an estimate's phases settled, as metrics of a batch."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jaxtyping import Array

from bpeq.types import SolveInfo


def settling(info: dict[str, Any]) -> dict[str, Array]:
    """`sweeps` of all phases and of each solve, `unsettled`, and what else an estimate measured."""
    solves = {name: part for name, part in info.items() if isinstance(part, SolveInfo)}
    if not solves:
        return {}
    metrics = {f"sweeps_{name}": s.steps.mean() for name, s in solves.items()}
    phases = [s.steps.size // s.steps.shape[-1] * s.steps.mean() for s in solves.values()]
    unsettled = jnp.concatenate([~s.converged.reshape(-1) for s in solves.values()])
    measured = {name: info[name] for name in ("beta", "error_bar") if name in info}
    return {"sweeps": jnp.stack(phases).sum(), **metrics, "unsettled": unsettled.mean()} | measured
