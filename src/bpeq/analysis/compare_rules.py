"""Rules side by side on one batch: how near each comes to its exact gradient, and at what cost."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from bpeq.analysis.gradient_cost import GradientCost, compiled_gradient, gradient_costs
from bpeq.analysis.gradient_fidelity import Fidelity, gradient_fidelity
from bpeq.types import Batch, Key, Layer, LearningRule, Params


class RuleRow(NamedTuple):
    """What one batch shows of one rule.

    fidelity:  against the exact gradient of the rule's own function; None where it has none.
    cost:      of this gradient, on this machine.
    reference: the name of the rule that gave the exact gradient; empty where there is none.
    note:      what one must know of the rule in these settings; empty: nothing.
    """

    fidelity: Fidelity | None
    cost: GradientCost
    reference: str
    note: str


class SideBySide(NamedTuple):
    """Rows by the rules' names, and what must be said of several together; `print` shows a table.

    Fidelity in total and of the layer that is furthest off, with the layer's name.
    """

    rows: dict[str, RuleRow]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        head = ["rule", "relative error", "cosine", "worst layer", "settled"]
        head += ["sweeps", "MACs", "ms", "KiB"]
        table = [head, *([name, *_cells(row)] for name, row in self.rows.items())]
        wide = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join(text.rjust(w) if i else text.ljust(w) for i, (text, w) in enumerate(pairs))
            for pairs in (list(zip(line, wide, strict=True)) for line in table)
        ]
        said = [f"{name}: {row.note}" for name, row in self.rows.items() if row.note]
        return "\n".join([*(line.rstrip() for line in lines), *said, *self.notes])


def compare_rules(
    rules: Mapping[str, LearningRule | tuple[LearningRule, Params]],
    params: Params,
    batch: Batch,
    *,
    key: Key,
    network: Layer | None = None,
    reference: LearningRule | None = None,
) -> SideBySide:
    """Rules on one network and one batch: gradient fidelity and the cost of a gradient.

    Every rule starts from the same `params` and the same key. Each is set against the exact
    gradient, in float64, of its own function: rules on a feed-forward network and rules that settle
    a system differentiate different functions, and a note says so.

    Args:
      rules: by the names that the rows get. A rule on a system with weights of its own, such as
        untied feedback, comes as a pair (rule, params), with what that system's `init` gives.
      params: as `network.init` gives them; each rule's own `init` is called on them.
      batch: x `[batch, ...]` and y, in the dtype of params.
      key: the one key of every rule's init and estimate.
      network: names the layers by its blocks; without it they are named by their place in params.
      reference: an exact rule of the same function, for rules that have none of their own.

    Raises:
      ValueError: there are no rules.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq import costs, layers, rules, systems
      >>> network = layers.chain(layers.dense(4), layers.tanh(), layers.dense(1))
      >>> system, cost = systems.hopfield(network), costs.squared_error()
      >>> params, _ = network.init(jax.random.key(0), (2,))
      >>> batch = Batch(jnp.ones((3, 2)), jnp.ones((3, 1)))
      >>> found = compare_rules(
      ...     {"backprop": rules.backprop(network, cost), "EP": rules.eqprop(system, cost)},
      ...     params, batch, key=jax.random.key(1), network=network)
      >>> found.rows["backprop"].fidelity.total.relative_error < 1e-5
      True
      >>> found.rows["EP"].fidelity.total.cosine > 0.999, found.rows["backprop"].cost.macs
      (True, 84.0)
      >>> print(found.notes[0][:54])
      backprop on the feed-forward map and EP on the settled
    """
    if not rules:
        raise ValueError("compare_rules: rules = {}: must hold at least one rule")
    gradients, about, groups = {}, {}, {}
    for name, given in rules.items():
        rule, start = given if not isinstance(given, LearningRule) else (given, params)
        trained, state = rule.init(key, start)
        exact, fidelity = rule.info.reference or reference, None
        if exact is not None:
            groups[name] = function_of(exact)
            fidelity = gradient_fidelity(
                rule, trained, batch, key=key, state=state, network=network, reference=exact
            )
        gradients[name] = compiled_gradient(rule, trained, batch, state, key)
        about[name] = (fidelity, exact.name if exact else "", remark(rule))
    rows = {}
    for name, cost in gradient_costs(gradients).items():
        fidelity, exact_name, note = about[name]
        rows[name] = RuleRow(fidelity, cost, exact_name, note)
    return SideBySide(rows, tuple(filter(None, [functions_note(groups)])))


def remark(rule: LearningRule) -> str:
    """What a comparison must say of a rule: its own note, and what else it is after than ∇C."""
    other = ""
    if rule.info.objective is not None:
        other = f"follows another objective than ∇C: {rule.info.objective.name}"
    return "; ".join(filter(None, [rule.info.note, other]))


def function_of(reference: LearningRule) -> str:
    """What function an exact rule differentiates, in words."""
    known = {
        "autodiff": "the feed-forward map",
        "backprop": "the feed-forward map",
        "recurrent_backprop": "the settled system",
    }
    return known.get(reference.name, f"the function that {reference.name} differentiates")


def functions_note(groups: Mapping[str, str]) -> str:
    """That rules differentiate different functions; empty where all are one.

    Args:
      groups: the function that each rule differentiates, in words, by the rule's name.

    Example:
      >>> functions_note({"a": "the map", "b": "the settled system", "c": "the map"})
      'a, c on the map and b on the settled system differentiate different functions.'
    """
    functions = list(dict.fromkeys(groups.values()))
    if len(functions) < 2:
        return ""
    names = [", ".join(name for name, each in groups.items() if each == f) for f in functions]
    parts = [f"{who} on {function}" for who, function in zip(names, functions, strict=True)]
    return f"{'; '.join(parts[:-1])} and {parts[-1]} differentiate different functions."


def _cells(row: RuleRow) -> list[str]:
    """A row of the printed table."""
    cost, found = row.cost, row.fidelity
    costs = [f"{cost.sweeps:.3g}", f"{cost.macs:,.0f}", f"{1e3 * cost.seconds:.3g}"]
    costs.append(f"{cost.bytes / 1024:.0f}")
    if found is None:
        return ["—", "—", "—", "—", *costs]
    errors = {name: m.relative_error for name, m in found.layers.items()}
    known = {name: e for name, e in errors.items() if e < math.inf} or errors
    worst = max(known, key=lambda name: known[name])  # inf: the exact gradient leaves it alone
    furthest = f"{known[worst]:.2e} {worst}"
    near = [f"{found.total.relative_error:.2e}", f"{found.total.cosine:.5f}", furthest]
    return [*near, f"{found.settled:.0%}" if found.sweeps else "—", *costs]
