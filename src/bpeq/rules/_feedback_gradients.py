"""Kolen–Pollack updates of a relaxing system: one gradient for a weight and its feedback."""

from __future__ import annotations

from typing import Any

from bpeq.core import trees
from bpeq.layers import cut
from bpeq.settings import SettingError
from bpeq.types import Layer, Params


def symmetrise_feedback_gradients(grads: Params, network: Layer | None) -> Params:
    """Both weights of a connection get the sum of their gradients.

    Raises:
      ValueError: no feedback entry, a named one without a network, or one that fits no forward
        weights.
    """
    forward, feedback = _split(grads)
    if isinstance(feedback, tuple):  # it mirrors the forward entries, empty where none is fed back
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
    return SettingError("vector_field_eqprop", "kolen_pollack", True, remedy)
