"""What is said of a fidelity result in words, in the terminal and on the page alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from bpeq.report import _numbers as n
from bpeq.report._fidelity_read import Equilibrium, Microscope
from bpeq.report._fidelity_rule import Measures, Rule

MEASURES = ("relative error", "cosine", "norm ratio", "sign agreement, %")
RUNAWAY = 1e4  # a relative error above which a nudged phase has run away
ENDS = ("settled, %", "sweeps", "β", "error bar")


def measured(m: Measures) -> list[str]:
    """A cell a measure, in the order of MEASURES."""
    ratio = n.plain(m.norm_ratio, 4) if math.isfinite(m.norm_ratio) else n.ABSENT
    signs = percent(m.sign_agreement) if math.isfinite(m.sign_agreement) else n.ABSENT
    return [n.plain(m.relative_error), cosine(m.cosine), ratio, signs]


def cosine(value: float) -> str:
    """Five decimals, since 0.99998 is not 1."""
    return n.fixed(value, 5)


def share(value: float) -> str:
    """A share in percent: "99.6 %"."""
    return f"{percent(value)} %" if math.isfinite(value) else n.fixed(value)


def percent(value: float) -> str:
    """`share` without its unit; 100 and 0 only where it is all or nothing."""
    if not math.isfinite(value) or value in (0.0, 1.0):
        return n.fixed(100 * value, 0)
    if value > 0.999:
        return ">99.9"
    return "<0.1" if value < 0.001 else n.fixed(100 * value, 1)


def setting(value: float) -> str:
    """A number that someone chose, such as β: as short as it was written."""
    text = f"{value:.5g}"
    return n.plain(value) if "e" in text or not math.isfinite(value) else text.replace("-", "−")


def settling(r: Rule) -> list[str]:
    """A cell each, in the order of ENDS; dashes where a rule has none of it."""
    return [
        percent(r.settled) if r.relaxes else n.ABSENT,
        n.plain(r.sweeps) if r.relaxes else n.ABSENT,
        n.ABSENT if r.beta is None else setting(r.beta),
        n.ABSENT if r.error_bar is None else n.plain(r.error_bar),
    ]


def worst(r: Rule) -> str:
    """ "0.230 in conv_1", the layer that is furthest off; empty where there are no two."""
    errors = {name: m.relative_error for name, m in r.layers.items()}
    if len(errors) < 2:
        return ""
    name = max(errors, key=lambda k: math.inf if math.isnan(errors[k]) else errors[k])
    return f"{n.plain(errors[name])} in {name}"


def objectives(rules: Sequence[Rule]) -> str:
    """Which rules follow another objective than the cost, and what that means; empty if none do."""
    said = [f"{r.name} follows {r.own.objective}" for r in rules if r.own is not None]
    if not said:
        return ""
    return (
        f"Another objective than the cost: {'; '.join(said)}. Such a rule need not come near the "
        "cost's gradient."
    )


def orders(found: Microscope) -> str:
    """The fitted orders of the bias in one sentence; empty without a fit."""
    known = {name: fit.order for name, fit in found.fits.items() if math.isfinite(fit.order)}
    said = ", ".join(f"{name} {n.fixed(order)}" for name, order in known.items())
    return f"Bias order, the power of β by which the error grows: {said}." if said else ""


def pole(found: Microscope) -> str:
    """The distance to the nearest pole; empty where it is not known."""
    return "" if found.radius is None else f"Nearest pole in β: {n.plain(found.radius)} away."


def equilibrium(at: Equilibrium | None) -> str:
    """The settled states in one line; empty where they were not looked at."""
    if at is None:
        return ""
    said = []
    for label, spread in (("smallest curvature", at.curvature), ("of the outputs", at.output)):
        if spread is not None:
            median = f"(median {n.plain(spread[1])})"
            said.append(f"{label} {n.plain(spread[0])} {median}")
    if at.asymmetry is not None:
        said.append(f"asymmetry {n.plain(at.asymmetry)}")
    if at.saturated:
        states = ", ".join(f"{name} {share(part)}" for name, part in at.saturated.items())
        said.append(f"saturated units: {states}")
    if at.jumped is not None:
        beta, part = at.jumped
        said.append(f"at β = {setting(beta)} {share(part)} of the examples jump to another state")
    if at.along:
        said.append(jumps(at))
    if at.settled is not None and at.settled < 1:
        said.append(f"settled in {share(at.settled)} of the examples only")
    return f"Equilibrium{looked_at(at)}: {'; '.join(said)}." if said else ""


def jumps(at: Equilibrium) -> str:
    """Which examples leave their branch, along the grid of β: "3.1 % at 0.2, 25 % at 0.3"."""
    far = [(beta, part) for beta, part in at.along if part > 0]
    if not far:
        return f"none jumps up to β = {setting(at.along[-1][0])}"
    still = [beta for beta, _ in at.along if beta < far[0][0]]
    begin = f"none jumps up to β = {setting(still[-1])}, " if still else "jumps along β: "
    return begin + ", ".join(f"{share(part)} at {setting(beta)}" for beta, part in far)


def gdu(found: Microscope) -> str:
    """The slopes of the GDU check in one sentence; empty where it was not made."""
    theory = {"one-sided": 1, "centered": 2}
    said = [
        f"{name} {n.fixed(one.slope)} (theory {theory[name]})" if name in theory
        else f"{name} {n.fixed(one.slope)}"
        for name, one in found.gdu.items()
    ]  # fmt: skip
    if not said:
        return ""
    return f"GDU, the slope over β of EP's updates less BPTT's, sweep by sweep: {', '.join(said)}."


def precisions(rules: Sequence[Rule]) -> str:
    """Each rule's relative error in the precisions that were asked for; empty without any."""
    said = [
        f"{r.name} {', '.join(f'{n.plain(m.relative_error)} in {p}' for p, m in kinds)}"
        for r in rules
        if (kinds := list(r.precisions.items()))
    ]
    return f"Relative error: {'; '.join(said)}." if said else ""


def looked_at(at: Equilibrium) -> str:
    """ " of 8 examples, 74 units each", as far as that is known."""
    parts = [] if at.examples is None else [f"{n.count(at.examples)} examples"]
    parts += [] if at.units is None else [f"{n.count(at.units)} units each"]
    return f" of {', '.join(parts)}" if parts else ""


def notes(found: Microscope) -> list[str]:
    """The result's own notes, those of its rules, and what its figures call for."""
    said = [*found.notes, *(f"{r.name}: {r.note}" for r in found.rules if r.note)]
    for r in found.rules:
        if r.relaxes and not r.settled >= 1:
            said.append(f"{r.name}: {share(r.settled)} of its phases settled, not all.")
        if r.reference_settled is not None and not r.reference_settled >= 1:
            said.append(
                f"{r.name}: its exact gradient{_by(r)} settled in {share(r.reference_settled)} of "
                "its solves only: a small error proves nothing."
            )
        if r.own is not None and r.own.settled is not None and not r.own.settled >= 1:
            said.append(
                f"{r.name}: the exact gradient of {r.own.objective} settled in "
                f"{share(r.own.settled)} of its solves only: a small error proves nothing."
            )
    away = _points(found, lambda error: RUNAWAY < error < math.inf)
    said += (
        [f"Errors above {n.count(RUNAWAY)}, left out of the plots: {'; '.join(away)}."]
        if away
        else []
    )
    lost = lost_figures(found)
    return said + ([f"Not finite: {'; '.join(lost)}."] if lost else [])


def lost_figures(found: Microscope) -> list[str]:
    """The errors that are not finite, by rule and layer, and by line of a grid; plots lack them."""
    said = []
    for r in found.rules:
        rows = {"all": r.total, **r.layers}
        if r.own is not None:
            rows |= {f"own objective, {name}": m for name, m in r.own.layers.items()}
            rows["own objective"] = r.own.total
        odd = [name for name, m in rows.items() if not math.isfinite(m.relative_error)]
        said += [f"the relative error of {r.name} ({', '.join(odd)})"] if odd else []
    said += _points(found, lambda error: not math.isfinite(error))
    for name, one in found.gdu.items():
        betas = [setting(b) for b, y in zip(one.betas, one.mismatch, strict=True)
                 if not math.isfinite(y)]  # fmt: skip
        said += [f"the GDU mismatch of {name} at β = {', '.join(betas)}"] if betas else []
    return said


def _points(found: Microscope, wanted: Callable[[float], bool]) -> list[str]:
    """Where the grids have such errors, line by line."""
    lines: dict[str, list[str]] = {}
    for p in found.grid:
        if wanted(p.error):
            parts = (p.rule, "" if p.varied == "points" else p.estimator, p.precision)
            name = f"{' '.join(part for part in parts if part)} at {_AXES[p.varied]} = "
            lines.setdefault(name, []).append(setting(p.x))
    return [name + ", ".join(xs) for name, xs in lines.items()]


_AXES = {"beta": "β", "points": "N", "sweeps": "sweeps"}


def _by(r: Rule) -> str:
    return f" by {r.reference}" if r.reference else ""
