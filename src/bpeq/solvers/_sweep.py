"""A step for a solver that takes the index of the sweep, and may run on a part of the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from jaxtyping import Array

from bpeq.settings import SettingError
from bpeq.types import State


@dataclass(frozen=True)
class Sweep:
    """The step that rules give to a solver, instead of a plain function state -> state.

    numbered(state, n) -> state: sweep n of one solve, n = 0, 1, ... A noisy device draws its noise
        by this index.
    some(rows) -> Sweep: the same sweep on those examples alone; None if it needs the whole batch.
    noisy: whether the index matters. A solver of your own then must call `run_sweep`; otherwise
        every sweep would have the same noise.
    """

    numbered: Callable[[State, Array | int], State]
    some: Callable[[Array], Sweep] | None = None
    noisy: bool = False

    def __call__(self, state: State) -> State:
        """Sweep 0, for solvers that call a plain function; an error if the index matters."""
        if self.noisy:
            remedy = "a solver must number its sweeps by bpeq.solvers.run_sweep(step, state, n)"
            raise SettingError("imperfect", "noise", None, remedy)
        return self.numbered(state, 0)


def run_sweep(step: Callable[[State], State], state: State, n: Array | int) -> State:
    """Sweep n of a solve.

    Args:
      step: a `Sweep`, or a plain function of the state, which ignores the index.
      state: the state before the sweep.
      n: the number of earlier sweeps in this solve, >= 0.

    Returns:
      The state after the sweep.

    Example:
      >>> run_sweep(lambda s: s + 1, 3, 0), run_sweep(Sweep(lambda s, n: s + n), 3, 5)
      (4, 8)
    """
    return step.numbered(state, n) if isinstance(step, Sweep) else step(state)
