"""Rules beside each other on one batch: how near each is to its exact gradient, what it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from bpeq.analysis.gradient_cost import GradientResources, compiled_gradient, measure_gradients
from bpeq.analysis.gradient_fidelity import Fidelity, gradient_fidelity
from bpeq.settings import SettingError
from bpeq.types import Batch, Key, Layer, LearningRule, Params


class RuleRow(NamedTuple):
    """What one batch shows of one rule.

    fidelity:  against the exact gradient of the rule's own function; None if there is none.
    resources: what this gradient takes on this machine.
    reference: the name of the rule that gave the exact gradient; empty if there is none.
    note:      what a reader must know of the rule in these settings; empty: nothing.
    """

    fidelity: Fidelity | None
    resources: GradientResources
    reference: str
    note: str


class RuleComparison(NamedTuple):
    """`print` of it is a table, with fidelity in total and of the worst layer.

    rows:  by the rules' names.
    notes: on several rules together.
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
        remarks = [f"{name}: {row.note}" for name, row in self.rows.items() if row.note]
        return "\n".join([*(line.rstrip() for line in lines), *remarks, *self.notes])


def compare_rules(
    rules: Mapping[str, LearningRule | tuple[LearningRule, Params]],
    params: Params,
    batch: Batch,
    *,
    key: Key,
    network: Layer | None = None,
    reference: LearningRule | None = None,
) -> RuleComparison:
    """Compares rules on one network and one batch: gradient fidelity, and what a gradient takes.

    Every rule starts from the same `params` and the same key. Each is compared with the exact
    gradient of its own function, in float64. Rules on a feed-forward network and rules that settle
    a system differentiate different functions; a note says so.

    Args:
      rules: by the names that the rows get. A rule on a system with weights of its own, such as
        untied feedback, comes as a pair (rule, params), with what that system's `init` gives.
      params: as `network.init` gives them; each rule's own `init` is called on them.
      batch: x `[batch, ...]` and y, in the dtype of params.
      key: the one key of every rule's init and estimate.
      network: names the layers by its blocks; without it they are named by their place in params.
      reference: an exact rule of the same function, for rules that have none of their own.

    Returns:
      A row for each rule, and notes.

    Raises:
      SettingError: there are no rules.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from bpeq import costs, layers, rules, systems
      >>> network = layers.chain(layers.dense(4), layers.tanh(), layers.dense(1))
      >>> system, cost = systems.hopfield(network), costs.squared_error()
      >>> params, _ = network.init(jax.random.key(0), (2,))
      >>> batch = Batch(jnp.ones((3, 2)), jnp.ones((3, 1)))
      >>> comparison = compare_rules(
      ...     {"backprop": rules.backprop(network, cost), "EP": rules.eqprop(system, cost)},
      ...     params, batch, key=jax.random.key(1), network=network)
      >>> comparison.rows["backprop"].fidelity.total.relative_error < 1e-5
      True
      >>> comparison.rows["EP"].fidelity.total.cosine > 0.999
      True
      >>> comparison.rows["backprop"].resources.macs
      84.0
      >>> print(comparison.notes[0][:54])
      backprop on the feed-forward map and EP on the settled
    """
    if not rules:
        raise SettingError("compare_rules", "rules", rules, "must hold at least one rule")
    gradients, about, groups = {}, {}, {}
    for name, each in rules.items():
        rule, start = (each, params) if isinstance(each, LearningRule) else each
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
    for name, resources in measure_gradients(gradients).items():
        fidelity, exact_name, note = about[name]
        rows[name] = RuleRow(fidelity, resources, exact_name, note)
    return RuleComparison(rows, tuple(filter(None, [functions_note(groups)])))


def remark(rule: LearningRule) -> str:
    """What a comparison must say of a rule: its note, and the objective it follows instead of ∇C.

    Args:
      rule: the learning rule.
    """
    other = ""
    if rule.info.objective is not None:
        other = f"follows another objective than ∇C: {rule.info.objective.name}"
    return "; ".join(filter(None, [rule.info.note, other]))


def function_of(reference: LearningRule) -> str:
    """The function that an exact rule differentiates, in words.

    Args:
      reference: an exact rule, as `RuleInfo.reference` holds it.
    """
    known = {
        "autodiff": "the feed-forward map",
        "backprop": "the feed-forward map",
        "recurrent_backprop": "the settled system",
    }
    return known.get(reference.name, f"the function that {reference.name} differentiates")


def functions_note(groups: Mapping[str, str]) -> str:
    """A note that rules differentiate different functions; empty if all differentiate one.

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
    (sweeps, macs, seconds, size), fidelity = row.resources, row.fidelity
    resources = [f"{sweeps:.3g}", f"{macs:,.0f}", f"{1e3 * seconds:.3g}", f"{size / 1024:.0f}"]
    if fidelity is None:
        return ["—", "—", "—", "—", *resources]
    errors = {name: m.relative_error for name, m in fidelity.layers.items()}
    # The error is infinite in a layer that the exact gradient leaves alone.
    finite = {name: e for name, e in errors.items() if e < math.inf} or errors
    worst = max(finite, key=lambda name: finite[name])
    total = [f"{fidelity.total.relative_error:.2e}", f"{fidelity.total.cosine:.5f}"]
    settled = f"{fidelity.settled:.0%}" if fidelity.sweeps else "—"
    return [*total, f"{finite[worst]:.2e} {worst}", settled, *resources]
