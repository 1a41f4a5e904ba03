"""Limits, and the levels that few bits leave between them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array

_LAST_BITS = 256  # units of round-off: eight bits a unit, 3e-5 in float32, at limits of 1


class Levels:
    """Limits and levels of one kind of quantity; `change` applies them, None where there are none.

    Errors pass straight through the levels' steps, and not past the limits.
    """

    def __init__(self, what: str, bits: int | None, low: float | None, high: float | None) -> None:
        self.given = {f"{what}_bits": bits, f"{what}_min": low, f"{what}_max": high}
        if bits is not None and (low is None or high is None):
            remedy = f"needs {what}_min and {what}_max to lay its levels between"
            raise ValueError(f"imperfect: {what}_bits = {bits!r}: {remedy}")
        if low is not None and high is not None and low >= high:
            raise ValueError(f"imperfect: {what}_max = {high!r}: must be > {what}_min = {low!r}")
        self._low, self._high = low, high
        limited = low is not None or high is not None
        self.clip = self._clip if limited else None
        self.change = self.clip
        if bits is not None:
            assert low is not None
            assert high is not None
            start, step = low, (high - low) / (2**bits - 1)
            self.change = lambda a: start + step * _nearest((self._clip(a) - start) / step)
        self._everywhere, self._steps = bits is not None, 2 ** (bits or 1) - 1

    def keeping(self, a: Array, noise: float, xi: Array) -> Array:
        """`change(a)`, with a trace of the noise ξ in its last bits, inward, where it was changed.

        What is drawn next depends on the state's bits. Levels and limits map many states to one,
        which would draw one noise for ever; the trace is what tells its visits apart.
        """
        assert self.change is not None
        made, low, high = self.change(a), self._low, self._high
        size = max(abs(end) for end in (low, high, noise) if end is not None)
        trace = min(noise, _LAST_BITS * float(jnp.finfo(a.dtype).eps) * size)
        inward = jnp.ones_like(a) if high is None else -jnp.ones_like(a)
        if low is not None and high is not None:
            trace = min(trace, (high - low) / self._steps / 64)
            inward = jnp.where(2.0 * made > low + high, inward, -inward)
        kept = trace * inward * jnp.abs(xi)
        return made + jax.lax.stop_gradient(
            kept if self._everywhere else jnp.where(made == a, 0.0 * kept, kept)
        )

    def _clip(self, a: Array) -> Array:
        return jnp.clip(a, self._low, self._high)


@jax.custom_jvp
def _nearest(a: Array) -> Array:
    return jnp.round(a)


_nearest.defjvp(lambda primals, tangents: (_nearest(*primals), *tangents))
