"""From a system's state to its output, as a layer without weights of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bpeq.types import Key, Layer, Params, Shape


def state_readout(forward: Callable[..., Any], backward: Callable[..., Any]) -> Layer:
    """A Layer from a state to the output; it reads the system's own params, so it draws none.

    `backward` gives (dparams, dstate), dstate with None for the states that the output ignores.
    """

    def init(key: Key, shape: Shape) -> tuple[Params, Shape]:
        raise TypeError("a readout has no parameters of its own: call the system's init")

    return Layer("readout", init, forward, backward)
