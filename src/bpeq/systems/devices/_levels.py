"""Limits of a quantity, and the levels that few bits leave between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.settings import SettingError


class Levels:
    """Limits and levels of one kind of quantity, weights or states.

        Q(a) = min + Δ round((clip(a) − min) / Δ),   Δ = (max − min) / (2^bits − 1)

    Derivatives pass straight through the steps of the levels. They are zero beyond the limits.

    Args:
      what: "weight" or "state", for messages.
      bits: number of bits; None: no levels.
      low: lower limit; None: none.
      high: upper limit; None: none.

    `given` holds the settings by name. `clip` applies the limits; None if there are none. `change`
    applies limits and levels; None if there are none.

    Raises:
      SettingError: bits without both limits, or limits in the wrong order.
    """

    def __init__(self, what: str, bits: int | None, low: float | None, high: float | None) -> None:
        self.given = {f"{what}_bits": bits, f"{what}_min": low, f"{what}_max": high}
        if bits is not None and (low is None or high is None):
            remedy = f"needs {what}_min and {what}_max to lay its levels between"
            raise SettingError("imperfect", f"{what}_bits", bits, remedy)
        if low is not None and high is not None and low >= high:
            raise SettingError("imperfect", f"{what}_max", high, f"must be > {what}_min = {low!r}")
        self._low, self._high = low, high
        limited = low is not None or high is not None
        self.clip = self._clip if limited else None
        self.change = self.clip
        if bits is not None:
            assert low is not None
            assert high is not None
            start, step = low, (high - low) / (2**bits - 1)
            self.change = lambda a: start + step * _nearest((self._clip(a) - start) / step)

    def _clip(self, a: Array) -> Array:
        return jnp.clip(a, self._low, self._high)


@jax.custom_jvp
def _nearest(a: Array) -> Array:
    """Round to the nearest integer, with derivative 1."""
    return jnp.round(a)


_nearest.defjvp(lambda primals, tangents: (_nearest(*primals), *tangents))
