"""Kolen–Pollack updates of a relaxing system: one gradient for a weight and its feedback."""

from __future__ import annotations

from typing import Any

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.settings import SettingError
from bpeq.types import Layer, Params


def symmetrise_feedback_gradients(grads: Params, network: Layer | None) -> Params:
    """Give both weights of a connection the sum of their two gradients.

        g_W, g_B  →  g_W + g_B,  g_W + g_B

    Args:
      grads: gradients in the shape of params. The last entry is {"feedback": tree}: a dict by the
        names of the connections, or a tuple that mirrors the entries before it.
      network: the network whose blocks have those names; None is allowed for a tuple only.

    Returns:
      A tree like grads.

    Raises:
      ValueError: there is no feedback entry, a named entry comes without a network, or an entry
        does not fit its forward weights.
    """
    forward, feedback = _split(grads)
    if isinstance(feedback, tuple):  # mirrors the forward entries; an empty part has no feedback
        if len(feedback) != len(forward):
            said = f"the feedback tuple has {len(feedback)} entries; must be {len(forward)}"
            raise _wrong(f"{said}, as many as params have before it")
        for i, part in enumerate(feedback):
            if trees.size(part):
                forward[i] = _sum(str(i), forward[i], part)
        given = [a if trees.size(b) else b for a, b in zip(forward, feedback, strict=True)]
        return (*forward, {"feedback": tuple(given)})
    if not isinstance(feedback, dict):
        said = (
            f"feedback is {trees.describe_tree(feedback)}; must be a dict by connection, or a tuple"
        )
        raise _wrong(f"{said}")
    if network is None:
        raise _wrong(
            f"network = None: must be the network whose "
            f"blocks name the feedback weights {', '.join(feedback)}"
        )
    # A named entry belongs to a block of the network or to a skip.
    places, both = {block.name: block.slice for block in cut(network)}, {}
    skips = forward[-1].get("skips", {}) if forward and isinstance(forward[-1], dict) else {}
    for name, part in feedback.items():
        if name in places:
            both[name] = _sum(name, tuple(forward[places[name]]), part)
            forward[places[name]] = both[name]
        elif name in skips:
            both[name] = _sum(name, skips[name], part)
            forward[-1] = {"skips": {**forward[-1]["skips"], name: both[name]}}
        else:
            raise _wrong(
                f"feedback {name!r} names no connection; allowed: {', '.join([*places, *skips])}"
            )
    return (*forward, {"feedback": both})


def _sum(name: str, own: Params, back: Params) -> Params:
    """The sum of both gradients; an error if their shapes differ."""
    wrong = trees.difference(back, own)
    if wrong:
        raise _wrong(f"feedback {name!r} does not fit its forward weights: {wrong}")
    return trees.add(own, back)


def _split(params: Params) -> tuple[list[Params], Any]:
    """The entries before the last one, and the feedback tree that the last one holds."""
    last = params[-1] if isinstance(params, tuple) and params else None
    if not (isinstance(last, dict) and "feedback" in last):
        raise _wrong(
            "params have no {'feedback': ...} entry; "
            "allowed only for systems with feedback weights of their own, such as "
            "hopfield(..., feedback = 'untied')"
        )
    return list(params[:-1]), last["feedback"]


def _wrong(remedy: str) -> SettingError:
    """The error for params that `kolen_pollack` cannot use."""
    return SettingError("vector_field_eqprop", "kolen_pollack", True, remedy)
