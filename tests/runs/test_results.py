"""Result files as typed models: what they hold, and the one line for a file that is damaged."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from bpeq.runs import fidelity_results, results
from bpeq.types import DataError

MEASURES = {"relative_error": 0.1, "cosine": 0.99}
RULE = {**MEASURES, "converged": 1.0, "sweeps": 40, "layers": {"dense_1": MEASURES}}
POINT = {**MEASURES, "rule": "eqprop", "varied": "beta", "beta": 0.1}
FIDELITY = {
    "rules": {"eqprop": {**RULE, "error_bar": 0.1, "nudge": {"amplitude": {"s1": 1e-4}}}},
    "grid": [POINT, {**POINT, "points": None}],
    "bias_order": {"centered": 2.0},
    "fit": {"centered": {"betas": [0.1], "intercept": 0.0}},
    "radius": 2.25,
    "equilibrium": {
        "curvature": {"smallest": 0.2, "median": 0.4},
        "jumped": {"beta": 0.1, "share": 0.0},
        "jumped_along": {"betas": [0.4, 0.1], "shares": [0.25, 0.0]},
    },
    "gdu": {"centered": {"slope": 2.0, "betas": [0.1, 0.01], "mismatch": [1e-2, 1e-4]}},
    "notes": [],
}
TRIAL = {"settings": {"rule.beta": 0.2}, "validation_error": 0.05}
TUNING = {"metric": "validation_error", "chosen": 0, "trials": [TRIAL]}


def changed(tree: dict[str, Any], place: str, value: Any) -> str:
    """JSON text with one value replaced, or its key removed if value is `...`."""
    whole = json.loads(json.dumps(tree))
    *way, last = place.split("/")
    at = whole
    for key in way:
        at = at[int(key) if isinstance(at, list) else key]
    if value is ...:
        del at[last]
    else:
        at[last] = value
    return json.dumps(whole)


def test_null_is_nan_and_a_key_that_may_be_absent_may_be_null() -> None:
    row = fidelity_results.RuleFidelity.parse({**RULE, "cosine": None, "beta": None, "nudge": None})
    assert math.isnan(row.cosine)
    assert math.isnan(row.norm_ratio)
    assert (row.beta, row.nudge, row.layers["dense_1"].cosine) == (None, None, 0.99)
    point = fidelity_results.GridRow.parse({**POINT, "converged": None})
    assert math.isnan(point.converged)
    assert fidelity_results.GridRow.parse(POINT).converged == 1.0


@pytest.mark.parametrize(
    ("given", "mean", "std", "lost"),
    [
        ([0.1, 0.3], 0.2, math.sqrt(0.02), 0),
        ({"values": [0.1, None]}, math.nan, math.nan, 1),
        ({"mean": 0.5, "std": 0.25, "values": [0.1, 0.3]}, 0.5, 0.25, 0),
        (0.5, 0.5, math.nan, 0),
        ({"mean": "NaN"}, math.nan, math.nan, 1),
    ],
)
def test_a_statistic_may_be_values_alone(given: Any, mean: float, std: float, lost: int) -> None:
    summary = results.Summary.parse({"metrics": {"test_error": given}})
    statistic = summary.metrics["test_error"]
    assert (statistic.mean, statistic.std) == pytest.approx((mean, std), nan_ok=True)
    assert statistic.lost == lost


def test_a_rule_without_an_exact_reference_has_a_note_in_place_of_figures() -> None:
    rules = {"eqprop": RULE, "mine": {"note": "no exact reference"}}
    fidelity = fidelity_results.Fidelity.parse({"rules": rules})
    assert list(fidelity.measured) == ["eqprop"]
    assert fidelity.rules["mine"].note == "no exact reference"
    ends = fidelity_results.TrainingFidelity(initial=rules["mine"], trained=rules["eqprop"]).ends
    assert list(ends) == ["trained"]


def test_unknown_keys_are_kept() -> None:
    summary = results.Summary.parse({"diagnosis": {"cause": "beta"}})
    assert summary.model_dump()["diagnosis"] == {"cause": "beta"}


def test_history_takes_the_later_of_two_lines_and_leaves_timings_out(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"epoch": e, "step": 10 * e, "loss": v, "seconds": 1.0, "values": {"loss": [v, None]}}
        for e, v in ((1, 0.9), (2, 0.7), (2, 0.5))
    ]
    path.write_text("\n".join(map(json.dumps, lines)))
    history = results.read_history(path)
    assert (history.axis, list(history.series)) == ("epoch", ["loss"])
    assert history.series["loss"].x.tolist() == [1, 2]
    assert history.series["loss"].values[:, 0].tolist() == [0.9, 0.5]
    assert results.read_history(tmp_path / "absent.jsonl") == results.History()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rules": {"eqprop": {"relat', ": no valid JSON"),
        ("[]", ": must be a JSON object, not []"),
        ("[" * 100_000, ": no valid JSON"),
        ("\udcff", ": cannot be read"),
        ("{}", "rules: is missing"),
        ('{"rules": {}}', "rules: must hold at least one rule"),
        (changed(FIDELITY, "rules", 3), "rules: must be an object, not 3"),
        (changed(FIDELITY, "rules/eqprop", []), "rules.eqprop: must be an object, not []"),
        (changed(FIDELITY, "rules/eqprop/cosine", ...), "rules.eqprop.cosine: is missing"),
        (changed(FIDELITY, "rules/eqprop/sweeps", "x"), "eqprop.sweeps: must be a number, not 'x'"),
        (changed(FIDELITY, "rules/eqprop/layers/dense_1", 1), "layers.dense_1: must be an object"),
        (changed(FIDELITY, "rules/eqprop/layers/dense_1/cosine", ...), "dense_1.cosine: is miss"),
        (changed(FIDELITY, "rules/eqprop/error_bar", {}), "error_bar: must be a number, not {}"),
        (changed(FIDELITY, "rules/eqprop/nudge/amplitude/s1", "x"), "amplitude.s1: must be a num"),
        (changed(FIDELITY, "grid", {"a": 1}), "grid: must be a list"),
        (changed(FIDELITY, "grid/1/varied", "gamma"), "grid.1.varied: must be one of beta"),
        (changed(FIDELITY, "grid/1/beta", ...), "grid.1.beta: is missing"),
        (changed(FIDELITY, "grid/1/beta", 0), "grid.1.beta: must be a number > 0, not 0"),
        (changed(FIDELITY, "grid/1/relative_error", ...), "grid.1.relative_error: is missing"),
        (changed(FIDELITY, "bias_order/centered", "two"), "bias_order.centered: must be a number"),
        (changed(FIDELITY, "fit/centered/betas", 1.0), "fit.centered.betas: must be a list"),
        (changed(FIDELITY, "radius", "far"), "radius: must be a number, not 'far'"),
        (changed(FIDELITY, "equilibrium/curvature/median", ...), "curvature.median: is missing"),
        (changed(FIDELITY, "equilibrium/jumped/share", "x"), "jumped.share: must be a number"),
        (changed(FIDELITY, "equilibrium/jumped_along/shares", []), "jumped_along.shares: must"),
        (changed(FIDELITY, "gdu/centered/mismatch", [1.0]), "gdu.centered.mismatch: must hold"),
        (changed(FIDELITY, "notes", "a note"), "notes: must be a list"),
        (changed(FIDELITY, "environment", 3), "environment: must be an object, not 3"),
    ],
)
def test_a_damaged_file_is_named_with_its_key(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "fidelity.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError) as caught:
        fidelity_results.Fidelity.read(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        ("chosen", 3, "tuning.eqprop.chosen: must be the number of a trial"),
        ("chosen", None, "tuning.eqprop.chosen: must be the number of a trial"),
        ("trials", {}, "tuning.eqprop.trials: must be a list"),
        ("trials/0/settings/rule.beta", "b", "trials.0.settings.rule.beta: must be a number"),
        ("trials/0/validation_error", "b", "tuning.eqprop.trials.0.validation_error: must be a"),
    ],
)
def test_damaged_tuning_is_named(place: str, value: Any, message: str) -> None:
    tuning = json.loads(changed(TUNING, place, value))
    with pytest.raises(DataError) as caught:
        results.Comparison.parse({"rules": {"eqprop": {}}, "tuning": {"eqprop": tuning}})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"epoch": 1}\n{"epoch": 2, "tr', ":2: no valid JSON"),
        ('{"epoch": 1}\n\n7\n', ":3: must be a JSON object"),
        ('{"epoch": 1, "a": "b"}', ":1: a: must be a number"),
        ('{"epoch": 1, "values": {"a": ["b"]}}', ":1: values.a: must be a number"),
    ],
)
def test_a_damaged_line_is_named(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        results.read_history(path)
    assert str(caught.value).startswith(f"{path}{message}")
