"""The sentences about a fidelity result, for the terminal and the page."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from bpeq.report.fidelity_plots import RUNAWAY
from bpeq.report.numbers import count, format_number, setting, share
from bpeq.runs.fidelity_results import Equilibrium, Fidelity, Fit, RuleFidelity

_AXES = {"beta": "β", "points": "N", "sweeps": "sweeps"}


def worst_layer(r: RuleFidelity) -> str:
    """The layer with the largest error, such as "0.230 in conv_1".

    Args:
      r: the fidelity of the rule.

    Returns:
      The text; empty for fewer than two layers.
    """
    errors = {name: m.relative_error for name, m in r.layers.items()}
    if len(errors) < 2:
        return ""
    name = max(errors, key=lambda k: math.inf if math.isnan(errors[k]) else errors[k])
    return f"{format_number(errors[name])} in {name}"


def objectives(rules: Mapping[str, RuleFidelity]) -> str:
    """Names the rules that follow another objective than the cost, and says what that means.

    Args:
      rules: the fidelity of each rule.

    Returns:
      The text; empty if there is no such rule.
    """
    own = {name: r.own_objective for name, r in rules.items()}
    follows = [f"{name} follows {o.objective}" for name, o in own.items() if o is not None]
    text = _sentence("Another objective than the cost", follows, "; ")
    return text and f"{text} Such a rule need not come near the cost's gradient."


def orders(result: Fidelity) -> str:
    """The fitted orders of the bias in one sentence, each with its error bar and the theory's.

    Args:
      result: the fidelity result.

    Returns:
      The sentence; empty without a fit.
    """
    parts = [
        _fitted(name, order, result.fit.get(name, Fit()))
        for name, order in result.bias_order.items()
    ]
    return _sentence("Bias order, the power of β by which the error grows", parts, "; ")


def pole(result: Fidelity) -> str:
    """The distance to the nearest pole in one sentence.

    Args:
      result: the fidelity result.

    Returns:
      The sentence; empty if the distance was not fitted.
    """
    radius, fit = result.radius, result.pole
    if radius is None:
        return f"Nearest pole in β: no fit holds: {fit.reason}." if fit.reason else ""
    return f"Nearest pole in β: {format_number(radius)}{_error_bar(fit.error, None)} away."


def precisions(rules: Mapping[str, RuleFidelity]) -> str:
    """Each rule's relative error in each measured precision.

    Args:
      rules: the fidelity of each rule.

    Returns:
      The sentence; empty without precisions.
    """
    parts = []
    for name, r in rules.items():
        errors = [f"{format_number(m.relative_error)} in {p}" for p, m in r.precisions.items()]
        parts += [f"{name} {', '.join(errors)}"] if errors else []
    return _sentence("Relative error", parts, "; ")


def gdu(result: Fidelity) -> str:
    """The slopes of the GDU check in one sentence.

    Args:
      result: the fidelity result.

    Returns:
      The sentence; empty if there was no check.
    """
    parts = [_fitted(name, one.slope, one.fit) for name, one in result.gdu.items()]
    head = "GDU, the slope over β of EP's updates less BPTT's, sweep by sweep"
    return _sentence(head, parts, "; ")


def equilibrium(result: Fidelity) -> str:
    """The measurements of the settled states in one sentence.

    Args:
      result: the fidelity result.

    Returns:
      The sentence; empty without measurements.
    """
    at = result.equilibrium
    if at is None:
        return ""
    curvatures = (("smallest curvature", at.curvature), ("of the outputs", at.output_curvature))
    parts = [
        f"{label} {format_number(c.smallest)} (median {format_number(c.median)})"
        for label, c in curvatures
        if c is not None
    ]
    if at.asymmetry is not None:
        parts.append(f"asymmetry {format_number(at.asymmetry)}")
    if at.saturated:
        states = ", ".join(f"{name} {share(part)}" for name, part in at.saturated.items())
        parts.append(f"saturated units: {states}")
    if at.jumped is not None:
        beta, part = setting(at.jumped.beta), share(at.jumped.share)
        parts.append(f"at β = {beta} {part} of the examples jump to another state")
    parts += [_jumps(at)] if at.along else []
    if at.settled is not None and at.settled < 1:
        parts.append(f"settled in {share(at.settled)} of the examples only")
    return _sentence(f"Equilibrium{sample(at)}", parts, "; ")


def sample(at: Equilibrium) -> str:
    """The examples of the equilibrium, such as " of 8 examples, 74 units each".

    Args:
      at: the measurements of the equilibrium.

    Returns:
      The text, with the known numbers.
    """
    parts = [] if at.examples is None else [f"{count(at.examples)} examples"]
    parts += [] if at.units is None else [f"{count(at.units)} units each"]
    return f" of {', '.join(parts)}" if parts else ""


def notes(result: Fidelity) -> list[str]:
    """All notes: of the result, of its rules, and about numbers that need a warning.

    Args:
      result: the fidelity result.

    Returns:
      The notes.
    """
    texts = [*result.notes]
    texts += [f"{name}: {r.note}" for name, r in result.rules.items() if r.note]
    for name, r in result.measured.items():
        if r.relaxes and not r.converged >= 1:
            texts.append(f"{name}: {share(r.converged)} of its phases settled, not all.")
        by = f" by {r.reference}" if r.reference else ""
        solves = [(r.reference_settled, f"its exact gradient{by}")]
        if (own := r.own_objective) is not None:
            solves.append((own.reference_settled, f"the exact gradient of {own.objective}"))
        texts += [
            f"{name}: {what} settled in {share(settled)} of its solves only: a small error "
            "proves nothing."
            for settled, what in solves
            if settled is not None and not settled >= 1
        ]
    away = _grid_places(result, lambda error: RUNAWAY < error < math.inf)
    texts.append(_sentence(f"Errors above {count(RUNAWAY)}, left out of the plots", away, "; "))
    texts.append(_sentence("Not finite", _not_finite(result), "; "))
    return [text for text in texts if text]


def _fitted(name: str, order: float, fit: Fit) -> str:
    """A fitted power of β, such as "centered 2.00 ± 0.01 (theory 2)"."""
    theory = "" if fit.theory is None else f" (theory {setting(fit.theory)})"
    if not math.isfinite(order):
        return f"{name}{theory} no fit holds{fit.reason and f', {fit.reason}'}"
    return f"{name} {format_number(order, decimals=2)}{_error_bar(fit.error, 2)}{theory}"


def _error_bar(error: float | None, decimals: int | None) -> str:
    """ " ± 0.01"; empty if the error bar is unknown."""
    return "" if error is None else f" ± {format_number(error, 2, decimals=decimals)}"


def _sentence(head: str, parts: Sequence[str], separator: str = ", ") -> str:
    """The parts after a head and a colon; empty without parts."""
    return f"{head}: {separator.join(parts)}." if parts else ""


def _jumps(at: Equilibrium) -> str:
    """The shares of examples that jump at each β, such as "3.1 % at 0.2, 25 % at 0.3"."""
    far = [(beta, part) for beta, part in at.along if part > 0]
    still = [beta for beta, _ in at.along if not far or beta < far[0][0]]
    begin = f"none jumps up to β = {setting(still[-1])}" if still else "jumps along β:"
    texts = ", ".join(f"{share(part)} at {setting(beta)}" for beta, part in far)
    return f"{begin}{',' * bool(still and far)} {texts}".strip()


def _not_finite(result: Fidelity) -> list[str]:
    """Names the errors that are not finite, by rule, layer and line of a grid. Plots omit them."""
    texts = []
    for name, r in result.measured.items():
        lost = [part for part, m in r.parts.items() if not math.isfinite(m.relative_error)]
        odd = ", ".join(", ".join(part) or "all" for part in lost)
        texts += [f"the relative error of {name} ({odd})"] if odd else []
    texts += _grid_places(result, lambda error: not math.isfinite(error))
    for name, one in result.gdu.items():
        pairs = zip(one.betas, one.mismatch, strict=True)
        betas = ", ".join(setting(beta) for beta, y in pairs if not math.isfinite(y))
        texts += [f"the GDU mismatch of {name} at β = {betas}"] if betas else []
    return texts


def _grid_places(result: Fidelity, wanted: Callable[[float], bool]) -> list[str]:
    """The points of the grids whose error is `wanted`, one text for each line."""
    lines: dict[str, list[str]] = {}
    for p in result.grid:
        if wanted(p.relative_error):
            parts = (p.rule, "" if p.varied == "points" else p.estimator, p.precision)
            name = f"{' '.join(part for part in parts if part)} at {_AXES[p.varied]} = "
            lines.setdefault(name, []).append(setting(p.x))
    return [name + ", ".join(xs) for name, xs in lines.items()]
