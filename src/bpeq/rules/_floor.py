"""A nudge too small for its dtype: the warning of every rule that divides a contrast by one."""

from __future__ import annotations

import warnings
from typing import Any

import jax.numpy as jnp

from bpeq.types import Caution


def warn_below_floor(rule: str, setting: str, value: float, dtype: Any) -> None:
    """Below 1,000 ε round-off in the states alone is a thousandth of the nudge or more."""
    floor = 1000.0 * float(jnp.finfo(dtype).eps)
    if value < floor:
        said = f"where round-off in {jnp.dtype(dtype).name} buries the contrast"
        warnings.warn(
            f"{rule}: {setting} = {value:g} is below {floor:.1g}, {said}", Caution, stacklevel=3
        )
