"""Limits, and the levels that few bits leave between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

from bpeq.settings import SettingError


class Levels:
    """Limits and levels of one kind of quantity; `change` applies them, None where there are none.

    Errors pass straight through the levels' steps, and not past the limits.
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
    return jnp.round(a)


_nearest.defjvp(lambda primals, tangents: (_nearest(*primals), *tangents))
