"""A step for a solver that knows the number of the sweep, and can be had for some examples."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array

from bpeq.settings import SettingError
from bpeq.types import State


@dataclass(frozen=True)
class Sweep:
    """What the rules hand to a solver in place of a plain function state -> state.

    numbered(state, n) -> state: the n-th sweep, n = 0, 1, ... in one solve. The number is what a
        noisy device draws its noise by.
    some(rows) -> Sweep: the same on those examples alone; None if the batch cannot be taken apart.
    noisy: whether the number matters. A solver of your own then calls `run_sweep`, or it would draw
        one noise for ever.
    """

    numbered: Callable[[State, Array | int], State]
    some: Callable[[Array], Sweep] | None = None
    noisy: bool = False

    def __call__(self, state: State) -> State:
        if self.noisy:
            remedy = "a solver must number its sweeps by bpeq.solvers.run_sweep(step, state, n)"
            raise SettingError("imperfect", "noise", None, remedy)
        return self.numbered(state, 0)


def run_sweep(step: Callable[[State], State], state: State, n: Array | int) -> State:
    """The n-th sweep of a solve.

    Args:
      step: a `Sweep`, or a plain function of the state, to which the number makes no difference.
      state: where the sweep starts.
      n: how many sweeps the solve has made before.

    Returns:
      The state after the sweep.

    Example:
      >>> run_sweep(lambda s: s + 1, 3, 0), run_sweep(Sweep(lambda s, n: s + n), 3, 5)
      (4, 8)
    """
    return step.numbered(state, n) if isinstance(step, Sweep) else step(state)
