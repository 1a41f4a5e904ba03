"""Compares rules on one batch: the error of each gradient, and the resources that it needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

from bpeq.analysis.gradient_cost import GradientResources, compiled_gradient, measure_gradients
from bpeq.analysis.gradient_fidelity import Fidelity, gradient_fidelity
from bpeq.settings import SettingError
from bpeq.types import Batch, Key, Layer, LearningRule, Params


class RuleRow(NamedTuple):
    """The results of one rule on one batch.

    Args:
      fidelity: the error against the exact gradient of the rule's own function; None without a
        reference.
      resources: sweeps, MACs, seconds and bytes of one gradient on this machine.
      reference: the name of the rule that computed the exact gradient; empty without one.
      note: what a reader must know of the rule with these settings; may be empty.
    """

    fidelity: Fidelity | None
    resources: GradientResources
    reference: str
    note: str


class RuleComparison(NamedTuple):
    """The results of all rules. `print` shows a table with the total and the worst layer error.

    Args:
      rows: the results by the name of the rule.
      notes: remarks about several rules.
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
    """Compares rules on one network and one batch: gradient fidelity, and resources of a gradient.

    All rules start from the same `params` and the same key. Each is compared with the exact
    gradient of its own function, in float64. A rule on a feed-forward network and a rule that
    settles a system differentiate different functions. A note says so.

    Args:
      rules: rules by the names of their rows. If the system of a rule has weights of its own, such
        as untied feedback, give a pair (rule, params), with params from that system's `init`.
      params: the parameters from `network.init`. Each rule's own `init` is called on them.
      batch: x `[batch, ...]` and y, in the dtype of params.
      key: the random key of every rule's init and estimate.
      network: names the layers by its blocks; None: layers are named by their place in params.
      reference: an exact rule of the same function, for rules without a reference of their own;
        None: such rules have no fidelity.

    Returns:
      One row for each rule, and notes.

    Raises:
      SettingError: `rules` is empty.

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
    """The remarks of a comparison about a rule: its note, and its objective if that is not C.

    Args:
      rule: the learning rule.

    Returns:
      The text; empty without a remark.
    """
    other = ""
    if rule.info.objective is not None:
        other = f"follows another objective than ∇C: {rule.info.objective.name}"
    return "; ".join(filter(None, [rule.info.note, other]))


def function_of(reference: LearningRule) -> str:
    """Names the function that an exact rule differentiates.

    Args:
      reference: an exact rule, such as `RuleInfo.reference`.

    Returns:
      The name in words.
    """
    known = {
        "autodiff": "the feed-forward map",
        "backprop": "the feed-forward map",
        "recurrent_backprop": "the settled system",
    }
    return known.get(reference.name, f"the function that {reference.name} differentiates")


def functions_note(groups: Mapping[str, str]) -> str:
    """Notes that rules differentiate different functions.

    Args:
      groups: rule -> the function that it differentiates, in words.

    Returns:
      The note; empty if all rules differentiate the same function.

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
    # The error is infinite in a layer whose exact gradient is zero.
    finite = {name: e for name, e in errors.items() if e < math.inf} or errors
    worst = max(finite, key=lambda name: finite[name])
    total = [f"{fidelity.total.relative_error:.2e}", f"{fidelity.total.cosine:.5f}"]
    settled = f"{fidelity.settled:.0%}" if fidelity.sweeps else "—"
    return [*total, f"{finite[worst]:.2e} {worst}", settled, *resources]
