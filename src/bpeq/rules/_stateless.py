"""One pure function, lifted to a learning rule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from bpeq.types import Batch, Estimate, Key, LearningRule, Params, State


def stateless(
    apply: Callable[..., Array],
    fn: Callable[[Params, Batch, Key], Estimate],
    name: str = "stateless",
    trained: Callable[[Params], Any] | None = None,
) -> LearningRule:
    """A rule without a state out of (params, batch, key) -> Estimate.

    Args:
      apply: (params, x, key=None) -> output.
      fn: gives the Estimate of one batch; grads are batch means in the shape of params.
      name: the rule's name.
      trained: which leaves training may change, such as a network's `trained`; None: all.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq.types import Batch, Estimate
      >>> rule = stateless(lambda p, x, key=None: p * x,
      ...                  lambda p, batch, key: Estimate(p, jnp.zeros(()), batch.x, {}))
      >>> rule.estimate(2.0, Batch(jnp.ones(1), jnp.ones(1)), (), jax.random.key(0))[0].grads
      2.0
    """

    def init(key: Key, params: Params) -> tuple[Params, State]:
        return params, ()

    def estimate(params: Params, batch: Batch, state: Any, key: Key) -> tuple[Estimate, State]:
        return fn(params, batch, key), state

    return LearningRule(name, init, apply, estimate, trained=trained)
