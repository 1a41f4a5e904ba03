"""`compare_rules` against the measures it gathers, each called on its own, and what it says."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import pytest

import bpeq
from bpeq import costs, rules, systems
from bpeq.analysis.gradient_fidelity import gradient_fidelity
from bpeq.layers import chain, dense, tanh
from bpeq.solvers import fixed_steps
from bpeq.types import Batch, LearningRule, RuleInfo

NETWORK, COST, KEY = chain(dense(4), tanh(), dense(3)), costs.squared_error(), jax.random.key(5)
BATCH = Batch(jax.random.normal(jax.random.key(2), (6, 5)), jnp.arange(6, dtype=jnp.int32) % 3)
UNTIED = systems.hopfield(NETWORK, feedback="untied")


def start(init: Any = NETWORK.init) -> Any:
    return init(jax.random.key(0), (5,))[0]


def swept(rule: Any, system: Any = None, **settings: Any) -> LearningRule:
    system = systems.hopfield(NETWORK) if system is None else system
    return rule(system, COST, fixed_steps(9), fixed_steps(7), **settings)


@pytest.fixture(scope="module")
def found() -> Any:
    both = {
        "backprop": rules.backprop(NETWORK, COST),
        "EP": swept(rules.eqprop),
        "untied": (swept(rules.vector_field_eqprop, UNTIED), start(UNTIED.init)),
    }
    return bpeq.compare_rules(both, start(), BATCH, key=KEY, network=NETWORK)


def test_rows_hold_the_fidelity_of_each_rule_from_the_same_weights_and_key(found):
    each = {
        "backprop": (rules.backprop(NETWORK, COST), start()),
        "EP": (swept(rules.eqprop), start()),
        "untied": (swept(rules.vector_field_eqprop, UNTIED), start(UNTIED.init)),
    }
    assert list(found.rows) == list(each)
    for name, (rule, params) in each.items():
        alone = gradient_fidelity(rule, params, BATCH, key=KEY, network=NETWORK)
        assert found.rows[name].fidelity == alone
    assert found.rows["backprop"].fidelity.total.relative_error < 1e-14
    assert list(found.rows["untied"].fidelity.layers) == ["dense_1", "dense_2", "feedback"]


def test_rows_hold_costs_counted_by_hand(found):
    batch, first, second = 6, 5 * 4, 4 * 3
    assert found.rows["backprop"].resources.macs == batch * (2 * first + 3 * second)
    contrast = first + 2 * second + 4
    assert found.rows["EP"].resources.macs == batch * (first + (9 + 2 * 7) * 2 * second + contrast)
    sweeps = {name: row.resources.sweeps for name, row in found.rows.items()}
    assert sweeps == {"backprop": 0, "EP": 23, "untied": 23}
    assert all(row.resources.seconds > 0 for row in found.rows.values())


def test_rules_that_differentiate_different_functions_are_told_apart(found):
    assert {name: row.reference for name, row in found.rows.items()} == {
        "backprop": "autodiff",
        "EP": "recurrent_backprop",
        "untied": "recurrent_backprop",
    }
    assert found.notes == (
        "backprop on the feed-forward map and EP, untied on the settled system differentiate "
        "different functions.",
    )


def test_the_printed_table_has_every_figure_and_note(found):
    head, *lines, note = str(found).splitlines()
    assert head.split("  ")[0] == "rule"
    assert len({line.rindex(" ") for line in (head, *lines)}) <= 2  # the last column lines up
    for line, (name, row) in zip(lines, found.rows.items(), strict=True):
        words = line.split()
        worst = max(row.fidelity.layers.values(), key=lambda m: m.relative_error)
        assert words[0] == name
        assert float(words[1]) == pytest.approx(row.fidelity.total.relative_error, rel=1e-2)
        assert float(words[2]) == pytest.approx(row.fidelity.total.cosine, abs=1e-5)
        assert float(words[3]) == pytest.approx(worst.relative_error, rel=1e-2)
        assert words[7] == f"{row.resources.macs:,.0f}"
        assert float(words[8]) == pytest.approx(1e3 * row.resources.seconds, rel=1e-2)
    assert note == found.notes[0]


def silent(rule: LearningRule, **changes: Any) -> LearningRule:
    return rule._replace(info=RuleInfo(**changes))


def test_a_rule_without_a_reference_has_its_cost_and_no_fidelity():
    own = silent(rules.backprop(NETWORK, COST), note="is backprop, though it does not say so")
    found = bpeq.compare_rules({"own": own}, start(), BATCH, key=KEY)
    assert found.rows["own"].fidelity is None
    assert found.rows["own"].resources.macs == 6 * (2 * 5 * 4 + 3 * 4 * 3)
    assert found.notes == ()
    assert str(found).endswith("\nown: is backprop, though it does not say so")


def test_a_reference_is_lent_to_rules_that_have_none_of_their_own():
    own, exact = silent(rules.backprop(NETWORK, COST)), rules.autodiff(NETWORK, COST)
    found = bpeq.compare_rules({"own": own}, start(), BATCH, key=KEY, reference=exact)
    assert found.rows["own"].fidelity.total.relative_error < 1e-14
    assert found.rows["own"].reference == "autodiff"


def test_a_rule_after_another_objective_is_said_to_be():
    half = rules.autodiff(NETWORK, COST)._replace(name="half_the_cost")
    rule = rules.backprop(NETWORK, COST)
    own = rule._replace(info=rule.info._replace(note="is local", objective=half))
    found = bpeq.compare_rules({"own": own}, start(), BATCH, key=KEY)
    said = "is local; follows another objective than ∇C: half_the_cost"
    assert found.rows["own"].note == said


def test_weights_that_the_exact_gradient_leaves_alone_are_not_the_worst_layer():
    def estimate(params: Any, batch: Batch, state: Any, key: Any) -> Any:
        found, state = exact.estimate(params, batch, state, key)
        return found._replace(grads=(*found.grads[:-1], {"idle": jnp.ones(2)})), state

    def forward(params: Any, x: Any, key: Any = None) -> Any:
        return NETWORK.forward(params[:-1], x, key)

    def backward(params: Any, feedback: Any, residuals: Any, dy: Any) -> Any:
        raise NotImplementedError

    longer = NETWORK._replace(forward=forward, backward=backward)
    exact = rules.autodiff(longer, COST)
    own = exact._replace(estimate=estimate)
    params = (*start(), {"idle": jnp.zeros(2)})
    found = bpeq.compare_rules({"own": own}, params, BATCH, key=KEY, network=NETWORK)
    assert found.rows["own"].fidelity.layers["idle"].relative_error == float("inf")
    assert "idle" not in str(found)


def test_no_rules_are_refused():
    with pytest.raises(ValueError, match=r"compare_rules: rules = \{\}: must hold at least one"):
        bpeq.compare_rules({}, start(), BATCH, key=KEY)
