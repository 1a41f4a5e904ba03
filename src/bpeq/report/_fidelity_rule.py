"""A rule's row of fidelity.json, checked: its measures in total, by layer, to its own objective."""

from __future__ import annotations

from typing import Any, NamedTuple

from bpeq.report._read import mapping, number
from bpeq.types import DataError


class Measures(NamedTuple):
    """How near a gradient comes to the exact one; NaN where a figure is not finite or not known."""

    relative_error: float
    cosine: float
    norm_ratio: float
    sign_agreement: float


class Own(NamedTuple):
    """A rule's own objective, by its name, and how near the estimate comes to its exact gradient.

    settled, residual: the share of that gradient's solves that settled, their largest residual.
    """

    objective: str
    total: Measures
    layers: dict[str, Measures]
    settled: float | None
    residual: float | None


class Rule(NamedTuple):
    """One rule: all parameters together, layer by layer, and how its own phases ended.

    beta, error_bar: None where the rule has none. reference: the name of the exact rule, with the
    share of its solves that settled and their largest residual. amplitude: how far the nudge moves
    each state; residual: what its solver left unsettled of that. own: where the rule follows
    another objective than the cost, the same of that. precisions: in total, in each asked for.
    """

    name: str
    total: Measures
    layers: dict[str, Measures]
    settled: float
    sweeps: float
    beta: float | None
    error_bar: float | None
    reference: str
    reference_settled: float | None
    reference_residual: float | None
    amplitude: dict[str, float]
    residual: float | None
    note: str
    own: Own | None
    precisions: dict[str, Measures]

    @property
    def relaxes(self) -> bool:
        return self.sweeps != 0


def rule(name: str, entry: Any, where: str) -> Rule:
    """One entry of `rules`, or of a summary's `fidelity`. Raises DataError as `microscope`."""
    fields = mapping(entry, where)
    nudge = mapping(fields.get("nudge"), f"{where}.nudge")
    moved = mapping(nudge.get("amplitude"), f"{where}.nudge.amplitude")
    return Rule(
        name,
        _measures(fields, where),
        _layers(fields, where),
        needed(fields, "converged", where),
        needed(fields, "sweeps", where),
        maybe(fields, "beta", where),
        maybe(fields, "error_bar", where),
        str(fields.get("reference") or ""),
        maybe(fields, "reference_settled", where),
        maybe(fields, "reference_residual", where),
        {k: number(v, f"{where}.nudge.amplitude.{k}") for k, v in moved.items()},
        maybe(nudge, "residual", f"{where}.nudge"),
        str(fields.get("note") or ""),
        _own(fields.get("own_objective"), f"{where}.own_objective"),
        {k: _measures(mapping(v, f"{where}.precisions.{k}"), f"{where}.precisions.{k}")
         for k, v in mapping(fields.get("precisions"), f"{where}.precisions").items()},
    )  # fmt: skip


def _own(entry: Any, where: str) -> Own | None:
    if entry is None:
        return None
    fields = mapping(entry, where)
    return Own(
        str(fields.get("objective") or "its own objective"),
        _measures(fields, where),
        _layers(fields, where),
        maybe(fields, "reference_settled", where),
        maybe(fields, "reference_residual", where),
    )


def _layers(fields: dict[str, Any], where: str) -> dict[str, Measures]:
    layers = mapping(fields.get("layers"), f"{where}.layers")
    rows = [(layer, mapping(row, f"{where}.layers.{layer}")) for layer, row in layers.items()]
    return {layer: _measures(row, f"{where}.layers.{layer}") for layer, row in rows}


def needed(fields: dict[str, Any], key: str, where: str) -> float:
    """A number that must be there; null stands for one that is not finite."""
    if key not in fields:
        raise DataError(f"{where}.{key}: is missing")
    return number(fields[key], f"{where}.{key}")


def maybe(fields: dict[str, Any], key: str, where: str) -> float | None:
    value = fields.get(key)
    return None if value is None else number(value, f"{where}.{key}".lstrip("."))


def _measures(fields: dict[str, Any], where: str) -> Measures:
    return Measures(
        needed(fields, "relative_error", where),
        needed(fields, "cosine", where),
        number(fields.get("norm_ratio"), f"{where}.norm_ratio"),
        number(fields.get("sign_agreement"), f"{where}.sign_agreement"),
    )
