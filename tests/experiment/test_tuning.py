"""Equal tuning budgets: what is drawn, what is chosen and by what alone, and what is recorded."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest
from annotated_types import Ge, Gt, Interval, Le

from bpeq.cli import signals
from bpeq.config.errors import ConfigError
from bpeq.config.loading import Config, load_config
from bpeq.config.problem import build
from bpeq.config.registry import resolve
from bpeq.experiment import train
from bpeq.experiment.tune import (
    RATE_SPAN,
    search_space,
    trial_settings,
    tune,
    validation_metric,
    with_settings,
)
from bpeq.rules import backprop
from bpeq.settings import Fraction, Positive, checked
from bpeq.types import Cost, Layer, LearningRule

CONFIG = """\
seed = 3

[data]
name = "digits"
validation = 0.9

[network]
layers = ["flatten", "dense(6)", "tanh", "dense(10)"]

[rule]
name = "eqprop"
beta = 0.2

[rules.backprop]
optimizer.learning_rate = 0.002

[solvers]
free = {name = "fixed_steps", steps = 3}
nudged = {name = "fixed_steps", steps = 2}

[optimizer]
name = "adam"
learning_rate = 0.01

[training]
epochs = 1
batch_size = 16
"""
RATE, BETA = "optimizer.learning_rate", "rule.beta"


def config(tmp_path: Path, *overrides: str, text: str = CONFIG) -> Config:
    (tmp_path / "c.toml").write_text(text)
    return load_config(tmp_path / "c.toml", overrides)


# --- the space and the draws -------------------------------------------------------------------


def test_the_first_trial_is_the_config_as_it_stands(tmp_path):
    whole = config(tmp_path)
    for trials in (1, 5):
        settings = trial_settings(whole, trials)
        assert len(settings) == trials
        assert settings[0] == {RATE: 0.01, BETA: 0.2}
        assert with_settings(whole, settings[0]) == whole


def test_the_others_fill_their_ranges_evenly_on_a_log_scale(tmp_path):
    """Ten times up and down, β three times: in each quarter about three of twelve trials."""
    for seed in (0, 1, 2):
        rows = trial_settings(config(tmp_path, f"seed={seed}"), 13)[1:]
        for key, own, span in ((RATE, 0.01, 10.0), (BETA, 0.2, 3.0)):
            places = np.array([np.log(row[key] / own) / np.log(span) / 2 + 0.5 for row in rows])
            assert len({row[key] for row in rows}) == 12
            counts = np.histogram(places, bins=4, range=(-1e-3, 1 + 1e-3))[0]
            assert counts.sum() == 12
            assert all(2 <= count <= 4 for count in counts), counts
        order = [[row[key] for row in rows] for key in (RATE, BETA)]
        assert np.argsort(order[0]).tolist() != np.argsort(order[1]).tolist()


def test_draws_follow_from_the_seed_and_every_rule_gets_the_same_multiples_of_its_rate(tmp_path):
    whole = config(tmp_path)
    own, other = trial_settings(whole, 6), trial_settings(whole.with_rule("backprop"), 6)
    assert trial_settings(whole, 6) == own != trial_settings(config(tmp_path, "seed=4"), 6)
    assert {*other[0]} == {RATE}
    multiples = [[row[RATE] / rows[0][RATE] for row in rows] for rows in (own, other)]
    assert multiples[0] == pytest.approx(multiples[1], rel=1e-2)  # three digits are kept


@checked
def settings_of_all_kinds(
    network: Layer,
    cost: Cost,
    *,
    plain: Positive = 0.5,
    tolerance: Positive = 0.5,
    either: Positive | Literal["auto"] = 0.5,
    auto: Positive | Literal["auto"] = "auto",
    below: Annotated[float, Gt(0), Le(0.6)] = 0.5,
    within: Annotated[float, Interval(gt=0, lt=1)] = 0.9,
    least: Annotated[float, Gt(0), Ge(0.4)] = 0.5,
    share: Fraction = 0.5,
    perhaps: float = 0.5,
    whole: Annotated[int, Gt(0)] = 4,
    switched: bool = True,
) -> LearningRule:
    """Backprop with settings of every kind."""
    return backprop(network, cost)


def test_a_rules_numbers_above_0_are_tuned_as_far_as_their_ranges_allow(tmp_path, monkeypatch):
    monkeypatch.setitem(resolve.__globals__["KINDS"]["rules"], "kinds", settings_of_all_kinds)
    text = CONFIG.replace('name = "eqprop"\nbeta = 0.2', 'name = "kinds"')
    whole = config(tmp_path, text=text)
    found = {key.removeprefix("rule."): ends for key, ends in search_space(whole).items()}
    assert set(found) == {RATE, "plain", "either", "below", "within", "least"}
    for name in ("plain", "either"):
        assert found[name] == pytest.approx((0.5, 0.5 / 3, 1.5))
    for name, least, most in (("below", 0.0, 0.6), ("within", 0.0, 1.0), ("least", 0.4, 2.0)):
        value, low, high = found[name]
        assert least <= low < value < high <= most
    for settings in trial_settings(whole, 40):
        build(with_settings(whole, settings))  # no draw is refused


def test_layer_rates_keep_their_proportions(tmp_path):
    whole = config(tmp_path, "optimizer.layer_rates=[0.0, 0.03]")
    changed = with_settings(whole, {RATE: 0.02, BETA: 0.1}).as_dict()
    assert changed["optimizer"]["layer_rates"] == pytest.approx([0.0, 0.06])
    assert (changed["optimizer"]["learning_rate"], changed["rule"]["beta"]) == (0.02, 0.1)
    assert {k: v for k, v in changed.items() if k not in ("optimizer", "rule")} == {
        k: v for k, v in whole.as_dict().items() if k not in ("optimizer", "rule")
    }


# --- the choice --------------------------------------------------------------------------------


@pytest.fixture
def judged(monkeypatch):
    """(errors by trial) -> tune, whose trials end with these validation errors."""

    def with_errors(metric: str, errors: list[Any]) -> list[Any]:
        seen: list[Any] = []

        def run(config, folder, progress, stop, problem, resume):
            seen.append((config, folder, problem))
            error = errors[len(seen) - 1]
            assert not folder.exists()
            if isinstance(error, Exception):
                raise error
            folder.mkdir(parents=True)
            (folder / "params.safetensors").write_bytes(b"weights")
            test = -error  # who looks at these chooses the worst
            made = {metric: error, metric.replace("validation", "test"): test, "train_error": test}
            return {"metrics": {name: {"mean": value} for name, value in made.items()}}

        monkeypatch.setattr(train, "run", run)
        return seen

    return with_errors


def test_the_lowest_validation_error_is_chosen_and_nothing_else_is_looked_at(judged, tmp_path):
    whole = config(tmp_path, "fidelity.examples=4")
    problem = build(whole)
    seen = judged("validation_error", [0.3, 0.1, 0.2, 0.1])
    best, record = tune(whole, problem, 4, tmp_path / "tuning")
    settings = trial_settings(whole, 4)
    assert record == {
        "metric": "validation_error",
        "chosen": 1,
        "trials": [
            {"settings": each, "validation_error": error}
            for each, error in zip(settings, [0.3, 0.1, 0.2, 0.1], strict=True)
        ],
    }
    assert best == with_settings(whole, settings[1])
    assert best.as_dict()["fidelity"]["examples"] == 4
    for i, (each, folder, blind) in enumerate(seen):
        assert folder == tmp_path / "tuning" / str(i)
        assert not (folder / "params.safetensors").exists()
        assert each.as_dict()["rule"]["beta"] == settings[i][BETA]
        assert "fidelity" not in each.as_dict()
        assert blind.test.shape == (1, 0)
        np.testing.assert_array_equal(blind.rows, problem.rows)
        np.testing.assert_array_equal(blind.validation, problem.validation)


def test_a_trial_that_diverges_or_is_refused_is_spent(judged, tmp_path):
    whole = config(tmp_path)
    refused = whole.error("rule.beta", 0.5, "must be small")
    judged("validation_error", [train.Diverged("too fast"), 0.2, float("nan"), refused, 0.1])
    best, record = tune(whole, build(whole), 5, tmp_path / "tuning")
    assert [trial["validation_error"] for trial in record["trials"]] == [None, 0.2, None, None, 0.1]
    assert [trial.get("failed") for trial in record["trials"]] == [
        *("too fast", None, None, f"{whole.path}:rule.beta = 0.5: must be small", None)
    ]
    assert record["chosen"] == 4
    assert best.as_dict()["rule"]["beta"] == record["trials"][4]["settings"][BETA]


def test_where_every_trial_fails_the_config_stands(judged, tmp_path):
    whole = config(tmp_path)
    judged("validation_error", [train.Diverged("too fast")] * 3)
    best, record = tune(whole, build(whole), 3, tmp_path / "tuning")
    assert (best, record["chosen"]) == (whole, 0)


def test_a_regression_is_judged_by_its_rmse(judged, tmp_path):
    text = CONFIG.replace('name = "digits"', 'name = "diabetes"').replace("dense(10)", "dense(1)")
    whole = config(tmp_path, text=text)
    judged("validation_rmse", [50.0, 60.0, 40.0])
    _, record = tune(whole, build(whole), 3, tmp_path / "tuning")
    assert (record["metric"], record["chosen"]) == ("validation_rmse", 2)
    assert [trial["validation_rmse"] for trial in record["trials"]] == [50.0, 60.0, 40.0]


# --- the command -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def compared(call, tmp_path_factory) -> tuple[Path, dict[str, Any], str]:
    """backprop with its nulls, three trials each, where the config's own rate is too low."""
    folder = tmp_path_factory.mktemp("tuned")
    (folder / "c.toml").write_text(CONFIG)
    argv = ["compare", folder / "c.toml", "--rules=backprop", "--out", folder / "out", "--tune", 3]
    said = call(*argv, "--set", "training.epochs=5", "--set", "seed=2")
    assert (said.code, said.err) == (0, [])
    return folder / "out", json.loads((folder / "out" / "comparison.json").read_text()), said.out


def test_every_row_has_as_many_trials_and_the_best_of_them_runs(compared):
    folder, found, _ = compared
    names = ["backprop", "linear_readout", "frozen_hidden"]
    assert list(found["tuning"]) == list(found["rules"]) == names
    for name, record in found["tuning"].items():
        errors = [trial["validation_error"] for trial in record["trials"]]
        assert len(errors) == 3
        assert record["chosen"] == errors.index(min(errors)) != 0  # or this test sees nothing
        best = record["trials"][record["chosen"]]
        ran = load_config(folder / name / "config.toml").as_dict()["optimizer"]
        chosen = best["settings"][RATE]
        assert record["trials"][0]["settings"] == {RATE: 0.002}
        assert 0.002 / RATE_SPAN <= chosen <= 0.002 * RATE_SPAN
        assert ran["learning_rate"] == chosen
        if name != "backprop":
            assert ran["layer_rates"][-1] == pytest.approx(chosen)
        # the run that counts is the chosen trial's training once more, now with its test examples
        final = found["rules"][name]["metrics"]
        assert final["validation_error"]["mean"] == min(errors)
        assert 0 < final["test_error"]["mean"] < 1
        for i in range(3):
            summary = json.loads((folder / "tuning" / name / str(i) / "summary.json").read_text())
            assert summary["metrics"]["validation_error"]["mean"] == errors[i]
            assert not any(metric.startswith("test") for metric in summary["metrics"])


def test_the_chosen_settings_are_printed(compared):
    _, found, out = compared
    for record in found["tuning"].values():
        rate = record["trials"][record["chosen"]]["settings"][RATE]
        assert f"learning_rate {rate:.5g}" in out


def test_a_signal_while_tuning_keeps_the_trials_that_have_ended(call, tmp_path, monkeypatch):
    """Two rows a trial: the third row is the first of the second trial."""
    (tmp_path / "c.toml").write_text(CONFIG)
    rows = iter([None, None, signal.SIGINT])
    monkeypatch.setattr(signals, "asked_to_stop", lambda: next(rows))
    out = tmp_path / "out"
    argv = ["compare", tmp_path / "c.toml", "--rules=backprop", "--out", out, "--tune", 3]
    said = call(*argv, "--set", "training.epochs=2")
    line = f"stopped after epoch 1 of 2; saved {out}/tuning/backprop/1"
    again = f"go on with: the same command, --out {out} --resume"
    assert (said.code, said.err) == (130, [f"bpeq: {line}; {again}"])
    found = json.loads((out / "comparison.json").read_text())
    assert (found["rules"], found["paired"], found["interrupted"]) == ({}, [], line)
    record = found["tuning"]["backprop"]
    assert (record["chosen"], len(record["trials"])) == (None, 1)
    summary = json.loads((out / "tuning" / "backprop" / "0" / "summary.json").read_text())
    error = summary["metrics"]["validation_error"]["mean"]
    assert record["trials"][0]["settings"] == {RATE: 0.002}
    assert record["trials"][0]["validation_error"] == error
    said = call("report", out)
    line = f"bpeq: {out}/comparison.json: was interrupted ({line}); it has no report"
    assert (said.code, said.err) == (3, [line])


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--tune=0"], "bpeq: --tune = 0: must be a whole number >= 1"),
        (["--tune=-3"], "bpeq: --tune = -3: must be a whole number >= 1"),
        (["--tune=many"], "bpeq: Invalid value for '--tune': "),
        (["--tune=2.5"], "bpeq: Invalid value for '--tune': "),
        (
            ["--tune=2", "--set", "data.validation=0.0"],
            "bpeq: --set data.validation = 0.0: leaves no validation split, by which --tune ",
        ),
    ],
)
def test_what_cannot_be_tuned_is_refused_in_one_line(call, tmp_path, words, line):
    (tmp_path / "c.toml").write_text(CONFIG)
    out = tmp_path / "out"
    said = call("compare", tmp_path / "c.toml", "--rules=backprop", "--out", out, *words)
    assert (said.code, len(said.err), said.bar) == (2, 1, False)
    assert said.err[0].startswith(line)
    assert not out.exists()


def test_a_data_set_without_that_setting_is_named(tmp_path):
    (tmp_path / "own_data.py").write_text(
        "from bpeq.data import Dataset, digits\n\n\ndef plain() -> Dataset:\n    return digits()\n"
    )
    whole = config(tmp_path).override("data={name = 'own_data:plain'}")
    problem = build(whole)
    blind = problem._replace(validation=problem.validation[:, :0])
    with pytest.raises(ConfigError) as caught:
        validation_metric(whole, blind, "--tune")
    assert caught.value.setting == "data.name"
    assert caught.value.value == "own_data:plain"
