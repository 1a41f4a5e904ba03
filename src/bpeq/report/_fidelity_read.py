"""fidelity.json in, checked numbers out: its rules, the grids, the equilibrium."""

from __future__ import annotations

from typing import Any, NamedTuple

from bpeq.report._fidelity_rule import Rule, maybe, needed, rule
from bpeq.report._read import mapping, number, numbers, only_noted
from bpeq.types import DataError

VARIED = ("beta", "points", "sweeps")


class Point(NamedTuple):
    """One estimate of a grid: where it stands, its relative error, the share that settled.

    estimator: which of eqprop's nudgings, empty for other rules. beta: 0 for rules without one.
    against: the objective whose gradient it is set against, empty where that is the cost.
    """

    rule: str
    estimator: str
    precision: str
    varied: str
    beta: float
    x: float
    error: float
    cosine: float
    settled: float
    against: str


class Fit(NamedTuple):
    """log10 error = intercept + order · log10 β, over `betas`; intercept None: order alone."""

    order: float
    intercept: float | None
    betas: list[float]


class Equilibrium(NamedTuple):
    """What the settled states are like; None where it was not looked at.

    curvature, output: the smallest of all examples, and their median. jumped: β, and the share;
    along: the same for every β of the grid.
    """

    curvature: tuple[float, float] | None
    output: tuple[float, float] | None
    asymmetry: float | None
    saturated: dict[str, float]
    jumped: tuple[float, float] | None
    along: list[tuple[float, float]]
    units: float | None
    examples: float | None
    settled: float | None


class Gdu(NamedTuple):
    """EP's updates against BPTT's gradients: their mismatch over β, and its slope."""

    slope: float
    betas: list[float]
    mismatch: list[float]


class Microscope(NamedTuple):
    """All that fidelity.json says; what is absent is None or empty."""

    name: str
    params: str
    precision: str
    examples: float | None
    rules: list[Rule]
    grid: list[Point]
    fits: dict[str, Fit]
    radius: float | None
    equilibrium: Equilibrium | None
    gdu: dict[str, Gdu]
    notes: list[str]


def microscope(result: dict[str, Any]) -> Microscope:
    """What fidelity.json holds, checked.

    Raises:
      DataError: a key that must be there is missing, or a value has the wrong type; names it.
    """
    rules = mapping(result.get("rules"), "rules")
    if not rules:
        raise DataError("rules: must hold at least one rule")
    gdu = mapping(result.get("gdu"), "gdu")
    noted = [f"{name}: {entry['note']}" for name, entry in rules.items() if only_noted(entry)]
    return Microscope(
        str(result.get("name") or ""),
        str(result.get("params") or ""),
        str(result.get("precision") or ""),
        maybe(result, "examples", ""),
        [rule(k, entry, f"rules.{k}") for k, entry in rules.items() if not only_noted(entry)],
        [_point(p, f"grid.{i}") for i, p in enumerate(_list(result.get("grid"), "grid"))],
        _fits(result),
        maybe(result, "radius", ""),
        _equilibrium(result.get("equilibrium")),
        {name: _gdu(entry, f"gdu.{name}") for name, entry in gdu.items()},
        [*map(str, _list(result.get("notes"), "notes")), *noted],
    )


def _point(entry: Any, where: str) -> Point:
    fields = mapping(entry, where)
    varied = fields.get("varied")
    if varied not in VARIED:
        raise DataError(f"{where}.varied: must be one of {', '.join(VARIED)}, not {varied!r}")
    x = needed(fields, varied, where)
    if not x > 0:
        raise DataError(f"{where}.{varied}: must be a number > 0, not {fields[varied]!r}")
    return Point(
        str(fields.get("rule") or ""),
        str(fields.get("estimator") or ""),
        str(fields.get("precision") or ""),
        varied,
        maybe(fields, "beta", where) or 0.0,
        x,
        needed(fields, "relative_error", where),
        number(fields.get("cosine"), f"{where}.cosine"),
        number(fields.get("converged", 1.0), f"{where}.converged"),
        str(fields.get("against") or ""),
    )


def _fits(result: dict[str, Any]) -> dict[str, Fit]:
    orders, fits = (
        mapping(result.get("bias_order"), "bias_order"),
        mapping(result.get("fit"), "fit"),
    )
    found = {}
    for name, order in orders.items():
        fit, where = mapping(fits.get(name), f"fit.{name}"), f"fit.{name}"
        betas = numbers(_list(fit.get("betas"), f"{where}.betas"), f"{where}.betas")
        intercept = maybe(fit, "intercept", where)
        found[name] = Fit(number(order, f"bias_order.{name}"), intercept, betas)
    return found  # fmt: skip


def _equilibrium(entry: Any) -> Equilibrium | None:
    if entry is None:
        return None
    where = "equilibrium"
    fields = mapping(entry, where)
    saturated = mapping(fields.get("saturated"), f"{where}.saturated")
    jumped = mapping(fields.get("jumped"), f"{where}.jumped")
    along = mapping(fields.get("jumped_along"), f"{where}.jumped_along")
    ends = [
        numbers(_list(along.get(key), f"{where}.{key}"), f"{where}.jumped_along.{key}")
        for key in ("betas", "shares")
    ]
    if len(ends[0]) != len(ends[1]):
        raise DataError(f"{where}.jumped_along.shares: must hold a number a beta, {len(ends[0])}")
    return Equilibrium(
        _spread(fields.get("curvature"), f"{where}.curvature"),
        _spread(fields.get("output_curvature"), f"{where}.output_curvature"),
        maybe(fields, "asymmetry", where),
        {k: number(v, f"{where}.saturated.{k}") for k, v in saturated.items()},
        (needed(jumped, "beta", f"{where}.jumped"), needed(jumped, "share", f"{where}.jumped"))
        if jumped
        else None,
        sorted(zip(*ends, strict=True)),
        maybe(fields, "units", where),
        maybe(fields, "examples", where),
        maybe(fields, "settled", where),
    )


def _spread(entry: Any, where: str) -> tuple[float, float] | None:
    if entry is None:
        return None
    fields = mapping(entry, where)
    return needed(fields, "smallest", where), needed(fields, "median", where)


def _gdu(entry: Any, where: str) -> Gdu:
    fields = mapping(entry, where)
    betas, mismatch = (
        numbers(_list(fields.get(k), f"{where}.{k}"), f"{where}.{k}") for k in ("betas", "mismatch")
    )
    if len(betas) != len(mismatch):
        raise DataError(f"{where}.mismatch: must hold a number a beta, {len(betas)}")
    return Gdu(number(fields.get("slope"), f"{where}.slope"), betas, mismatch)


def _list(value: Any, where: str) -> list[Any]:
    if value is None:
        return []
    if not isinstance(value, list):
        raise DataError(f"{where}: must be a list")
    return value
