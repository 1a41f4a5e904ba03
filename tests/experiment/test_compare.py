"""Rules side by side: what they share, what a difference means, and what a gradient costs."""

from __future__ import annotations

import csv
import itertools
import json
import signal
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file
from scipy import stats

from bpeq.analysis.gradient_fidelity import gradient_fidelity
from bpeq.cli import signals
from bpeq.config.loading import load_config
from bpeq.config.problem import build, seed_keys
from bpeq.experiment.compare import _controls, _function, raise_diverged
from bpeq.experiment.saved_run import load_run
from bpeq.experiment.train import Diverged
from bpeq.types import Batch

HIDDEN, OUT, BATCH, FREE, NUDGED = 128, 10, 16, 5, 3
DIGITS = f"""\
seeds = 3

[data]
name = "digits"
validation = 0.9

[network]
layers = ["flatten", "dense({HIDDEN})", "tanh", "dense({OUT})"]

[rule]
name = "eqprop"

[solvers.free]
name = "fixed_steps"
steps = {FREE}

[solvers.nudged]
name = "fixed_steps"
steps = {NUDGED}

[controls]
cost.name = "softmax_cross_entropy"
optimizer.learning_rate = 0.03

[optimizer]
name = "adam"
learning_rate = 0.01

[training]
epochs = 2
batch_size = {BATCH}
evaluate_every = 2
"""
ROWS = ["backprop", "eqprop", "linear_readout", "frozen_hidden"]
FIRST = BATCH * 64 * HIDDEN  # multiply-accumulates of one product with the hidden layer's weights
SECOND = BATCH * HIDDEN * OUT


@pytest.fixture
def no_pictures(monkeypatch) -> None:
    monkeypatch.setattr("bpeq.report.write_report", lambda folder: folder)


def read(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "comparison.json").read_text())


@pytest.fixture(scope="module")
def folder(call, tmp_path_factory) -> Path:
    """backprop and eqprop on a tenth of the digits, three seeds each on a split of its own."""
    folder = tmp_path_factory.mktemp("compared")
    (folder / "c.toml").write_text(DIGITS)
    argv = ["compare", folder / "c.toml", "--rules", "backprop, eqprop", "--out", folder / "out"]
    said = call(*argv)
    assert (said.code, said.err) == (0, [])
    return folder / "out"


@pytest.fixture(scope="module")
def found(folder) -> dict[str, Any]:
    return read(folder)


# --- the folder --------------------------------------------------------------------------------


def test_the_folder_has_a_run_a_row_and_the_comparison(folder):
    assert {path.name for path in folder.iterdir()} >= {
        *ROWS,
        "comparison.json",
        "comparison.csv",
        "comparison.png",
        "accuracy_cost.png",
        "report.html",
    }
    for name in ROWS:
        assert {path.name for path in (folder / name).iterdir()} >= {
            "config.toml",
            "metrics.jsonl",
            "params.safetensors",
            "summary.json",
        }


def test_comparison_has_the_keys_that_scripts_read(found):
    assert {"rules", "paired", "config", "seeds"} <= set(found)
    assert list(found["rules"]) == ROWS
    for row in found["rules"].values():
        assert {"metrics", "cost"} <= set(row)
        assert set(row["cost"]) == {"sweeps", "macs", "seconds", "bytes"}
        for statistic in row["metrics"].values():
            assert set(statistic) == {"mean", "std", "values"}
            assert len(statistic["values"]) == 3


def test_a_rows_metrics_are_those_of_its_run(folder, found):
    for name, row in found["rules"].items():
        summary = json.loads((folder / name / "summary.json").read_text())
        assert row["metrics"] == summary["metrics"]
        assert summary["rule"] == ("eqprop" if name == "eqprop" else "backprop")


def test_the_csv_has_the_jsons_errors(folder, found):
    with (folder / "comparison.csv").open(newline="") as file:
        lines = {line["rule"]: line for line in csv.DictReader(file)}
    assert set(ROWS) <= set(lines)
    for name in ROWS:
        error = found["rules"][name]["metrics"]["test_error"]["mean"]
        assert any(
            float(value) == pytest.approx(error, rel=1e-3)
            for key, value in lines[name].items()
            if "error" in key and "mean" in key
        )


# --- null controls -----------------------------------------------------------------------------


def test_the_null_controls_are_marked_and_the_rules_are_not(found):
    marked = {name: row["control"] for name, row in found["rules"].items()}
    assert marked == {
        "backprop": False,
        "eqprop": False,
        "linear_readout": True,
        "frozen_hidden": True,
    }
    for name, row in found["rules"].items():
        assert row["note"].startswith("null control: ") == marked[name]


def test_the_controls_are_trained_with_what_controls_asks_for(folder):
    for name in ("linear_readout", "frozen_hidden"):
        config = load_config(folder / name / "config.toml").as_dict()
        assert config["cost"]["name"] == "softmax_cross_entropy"
        assert config["optimizer"]["layer_rates"][-1] == 0.03
    assert (
        load_config(folder / "backprop" / "config.toml").as_dict()["cost"]["name"]
        == "squared_error"
    )


def test_the_linear_readout_has_no_hidden_layer(folder):
    weights = load_file(folder / "linear_readout" / "params.safetensors")
    assert {array.shape for array in weights.values()} == {(3, 64, OUT), (3, OUT)}


def drawn(folder: Path) -> dict[tuple[int, ...], np.ndarray]:
    """The initial weights of a run's three seeds, by their shapes."""
    with jax.enable_x64(False):
        config = load_config(folder / "config.toml")
        leaves = jax.tree.leaves(jax.vmap(build(config).init)(seed_keys(0, 3)[:, 0]))
    return {leaf.shape: np.asarray(leaf) for leaf in leaves}


def kept(folder: Path) -> dict[tuple[int, ...], np.ndarray]:
    """The weights that a run saved, by their shapes."""
    return {array.shape: array for array in load_file(folder / "params.safetensors").values()}


def test_the_frozen_hidden_layer_stays_as_drawn_and_the_last_one_moves(folder):
    before, after = (which(folder / "frozen_hidden") for which in (drawn, kept))
    moved = {shape: float(np.abs(after[shape] - array).max()) for shape, array in before.items()}
    assert moved[3, 64, HIDDEN] == moved[3, HIDDEN] == 0.0
    assert min(moved[3, HIDDEN, OUT], moved[3, OUT]) > 0.01


def test_a_net_without_a_hidden_layer_has_no_frozen_control(tmp_path):
    (tmp_path / "c.toml").write_text(XOR)
    flat = load_config(tmp_path / "c.toml", ['network.layers=["dense(1)"]'])
    assert set(_controls(flat.for_controls())) == {"linear_readout"}


# --- the same start, and then paired differences -----------------------------------------------

XOR = """\
seeds = 3

[data]
name = "xor"

[network]
layers = ["dense(3, bias_init='normal')", "tanh", "dense(1, bias_init='normal')"]

[solvers.free]
name = "fixed_steps"
steps = 2

[solvers.nudged]
name = "fixed_steps"
steps = 2

[optimizer]
name = "sgd"
learning_rate = 1e-30

[training]
epochs = 1
batch_size = 2
"""


OWN = """\
from bpeq.rules import backprop
from bpeq.types import Cost, Layer, LearningRule, RuleInfo
import jax, jax.numpy as jnp


def appends(network: Layer, cost: Cost) -> LearningRule:
    "Backprop, whose init appends an entry that is drawn from its key and trained beside."
    rule = backprop(network, cost)

    def init(key, params):
        return (*params, {"extra": jax.random.normal(key, (7,))}), ()

    def apply(params, x, key=None):
        return rule.apply(params[:-1], x, key)

    def estimate(params, batch, state, key):
        found, state = rule.estimate(params[:-1], batch, state, key)
        grads = (*found.grads, {"extra": params[-1]["extra"]})
        return found._replace(grads=grads), state

    about = RuleInfo(note="drags an entry along")
    return LearningRule("appends", init, apply, estimate, info=about)
"""


def with_own(tmp_path: Path, name: str) -> tuple[Path, str]:
    """The XOR config beside a module of that name, and the rule in it."""
    (tmp_path / "c.toml").write_text(
        XOR + '\n[rules.vector_field_eqprop]\nsystem.feedback="untied"\n'
    )
    (tmp_path / f"{name}.py").write_text(OWN)
    return tmp_path / "c.toml", f"{name}:appends"


FEEDBACK = {"3.feedback.dense_2.0.w", "3.feedback.dense_2.0.b"}


def named(folder: Path) -> dict[str, np.ndarray]:
    """The weights that a run saved, by their place in params."""
    return load_file(folder / "params.safetensors")


@pytest.mark.long
@pytest.mark.usefixtures("no_pictures")
def test_rules_start_from_the_same_weights_whatever_they_append_to_them(call, tmp_path):
    config, own = with_own(tmp_path, "appends_at_start")
    out = tmp_path / "out"
    said = call("compare", config, f"--rules=backprop,vector_field_eqprop,{own}", "--out", out)
    assert (said.code, said.err) == (0, [])
    start = drawn(out / "backprop")
    assert len({seed.tobytes() for seed in start[3, 2, 3]}) == 3
    places = {"0.w": (3, 2, 3), "0.b": (3, 3), "2.w": (3, 3, 1), "2.b": (3, 1)}
    appended = {"vector_field_eqprop": FEEDBACK, own: {"3.extra"}}
    for name in ("backprop", "frozen_hidden", "vector_field_eqprop", own):
        weights = named(out / name.replace(":", "."))
        assert set(weights) - set(places) == appended.get(name, set())
        for place, shape in places.items():
            np.testing.assert_array_equal(weights[place], start[shape])
    assert read(out)["rules"][own]["note"] == "drags an entry along"


@pytest.mark.usefixtures("no_pictures")
def test_rules_see_the_same_batches_in_the_same_order(call, tmp_path):
    """Two rules of one gradient, one of them with an entry more, end at the same weights; another
    order of the rows, which is what another seed has, ends elsewhere."""
    config, own = with_own(tmp_path, "appends_in_order")
    out = tmp_path / "out"
    argv = ["compare", config, f"--rules=backprop,{own}", "--out", out]
    sets = [
        "optimizer.learning_rate=0.5",
        "training.epochs=20",
        "network.layers.0.bias_init='zeros'",
    ]
    said = call(*argv, *(word for each in sets for word in ("--set", each)))
    assert (said.code, said.err) == (0, [])
    a, b = named(out / "backprop"), named(out / own.replace(":", "."))
    start = drawn(out / "backprop")
    assert float(np.abs(a["0.w"] - start[3, 2, 3]).max()) > 0.1
    for place, weights in a.items():
        np.testing.assert_allclose(b[place], weights, rtol=0, atol=1e-6)
    orders = [
        np.asarray(jax.random.permutation(jax.random.fold_in(k, 1), 4))
        for k in seed_keys(0, 3)[:, 2]
    ]
    assert len({order.tobytes() for order in orders}) > 1


def test_every_two_rows_are_compared_once(found):
    pairs = [(pair["a"], pair["b"]) for pair in found["paired"]]
    assert pairs == [
        ("backprop", "eqprop"),
        ("backprop", "linear_readout"),
        ("backprop", "frozen_hidden"),
        ("eqprop", "linear_readout"),
        ("eqprop", "frozen_hidden"),
        ("linear_readout", "frozen_hidden"),
    ]
    assert {(pair["metric"], pair["n"], pair["level"]) for pair in found["paired"]} == {
        ("test_error", 3, 0.95)
    }


def test_the_intervals_hold_for_all_comparisons_together(found):
    """Bonferroni over the six pairs: Student's interval at 1 − 0.05/6."""
    widths = []
    for pair in found["paired"]:
        a, b = (found["rules"][pair[k]]["metrics"]["test_error"]["values"] for k in ("a", "b"))
        interval = stats.ttest_rel(a, b).confidence_interval(1 - 0.05 / 6)
        assert pair["mean"] == pytest.approx(np.mean(a) - np.mean(b), rel=1e-12)
        assert (pair["low"], pair["high"]) == pytest.approx((interval.low, interval.high))
        assert (pair["comparisons"], pair["correction"]) == (6, "Holm")
        widths.append(pair["high"] - pair["low"])
    assert min(widths) > 0


# --- costs -------------------------------------------------------------------------------------


def test_backprop_costs_two_products_forward_and_three_back(found):
    """x·w₁, h·w₂; then ∂C/∂w₁, ∂C/∂w₂ and δ·w₂ᵀ. Nothing needs the error at the input."""
    macs = found["rules"]["backprop"]["cost"]["macs"]
    assert macs == 2 * FIRST + 3 * SECOND == 323_584


def test_eqprop_costs_one_drive_two_products_a_sweep_and_one_contrast(found):
    """A sweep of two blocks is s₂·w₂ᵀ and s₁·w₂. The contrast: one product for the first weights,
    whose input is the same in both phases, one for each phase at the second, and the scaled
    difference of the two phases' states, which is itself a product with two weights."""
    sweeps = FREE + 2 * NUDGED
    contrast = FIRST + 2 * SECOND + BATCH * HIDDEN
    macs = found["rules"]["eqprop"]["cost"]["macs"]
    assert macs == FIRST + sweeps * 2 * SECOND + contrast


def test_the_linear_readout_costs_one_product_each_way(found):
    assert found["rules"]["linear_readout"]["cost"]["macs"] == 2 * BATCH * 64 * OUT


def test_sweeps_are_those_of_all_phases_and_none_for_backprop(found):
    sweeps = {name: row["cost"]["sweeps"] for name, row in found["rules"].items()}
    assert sweeps == {
        "backprop": 0,
        "eqprop": FREE + 2 * NUDGED,
        "linear_readout": 0,
        "frozen_hidden": 0,
    }


def test_seconds_and_bytes_are_of_one_gradient_and_training_time_stands_beside(folder, found):
    for name, row in found["rules"].items():
        summary = json.loads((folder / name / "summary.json").read_text())
        assert row["seconds"] == summary["seconds"]
        assert 0 < row["cost"]["seconds"] < 0.5
        assert row["cost"]["bytes"] > 0


# --- fidelity ----------------------------------------------------------------------------------


def test_every_rule_has_its_fidelity_before_and_after_training_and_no_control_has(folder, found):
    """From the weights that the run saved, and from those that its seed draws."""
    assert [name for name, row in found["rules"].items() if "fidelity" in row] == ROWS[:2]
    for name in ROWS[:2]:
        run, known = load_run(folder / name), found["rules"][name]["fidelity"]
        keys = seed_keys(0, 1)[0]
        network = run.config.build_network()
        with jax.enable_x64(False):
            rows = run.data.train[0][:32]
            y = jnp.asarray(run.data.y[rows], jnp.int32)
            batch = Batch(jnp.asarray(run.data.x[rows], jnp.float32), y)
            first = network.init(keys[0], run.data.x.shape[1:])[0]
            for end, params in (("initial", first), ("trained", run.params)):
                own, state = run.rule.init(keys[1], params)
                alone = gradient_fidelity(
                    run.rule, own, batch, key=keys[1], state=state, network=network
                )
                assert known[end]["cosine"] == pytest.approx(alone.total.cosine, rel=1e-5)
                layers = {k: v["relative_error"] for k, v in known[end]["layers"].items()}
                expected = {k: v.relative_error for k, v in alone.layers.items()}
                assert layers == pytest.approx(expected, rel=1e-3, abs=1e-6)
        assert known["examples"] == 32
    exact, ours = (found["rules"][name]["fidelity"] for name in ROWS[:2])
    assert exact["trained"]["relative_error"] < 1e-5
    assert ours["initial"]["relative_error"] > 1e-3


# --- notes -------------------------------------------------------------------------------------


def test_the_notes_say_which_rules_differentiate_which_functions(found):
    assert (
        "backprop on the feed-forward map and eqprop on the settled system differentiate different "
        "functions." in found["notes"]
    )


def functions(tmp_path: Path, rules: list[str], text: str = "") -> dict[str, str]:
    (tmp_path / "c.toml").write_text(XOR + text)
    config = load_config(tmp_path / "c.toml")
    configs = {name: config.with_rule(name) for name in rules}
    return {name: _function(each, config, build(each)) for name, each in configs.items()}


def test_rules_are_grouped_by_the_function_that_they_differentiate(tmp_path):
    rules = ["backprop", "autodiff", "eqprop", "asymmetric_eqprop", "bptt", "vector_field_eqprop"]
    own = (
        '\n[rules.asymmetric_eqprop]\nsystem.feedback = "untied"\n'
        '[rules.bptt]\nsystem = { name = "predictive" }\nsweeps = 3\n'
        '[rules.autodiff]\nnetwork.layers = ["dense(4)", "tanh", "dense(1)"]\n'
        "[rules.vector_field_eqprop]\nbeta = 0.3\n"
    )
    assert functions(tmp_path, rules, own) == {
        "backprop": "the feed-forward map",
        "autodiff": "the feed-forward map with another network",
        "eqprop": "the settled system",
        "asymmetric_eqprop": "the settled system with system.feedback = 'untied'",
        "bptt": "the settled system with system.name = 'predictive'",
        "vector_field_eqprop": "the settled system",
    }


# --- ends that are not the planned one ---------------------------------------------------------


def test_a_signal_ends_a_comparison_with_130_and_keeps_what_there_is(call, tmp_path, monkeypatch):
    (tmp_path / "c.toml").write_text(XOR)
    monkeypatch.setattr(signals, "asked_to_stop", lambda: signal.SIGINT)
    out = tmp_path / "out"
    argv = ["compare", tmp_path / "c.toml", "--rules=backprop,autodiff", "--out", out]
    said = call(*argv, "--set", "training.epochs=2")
    assert (said.code, said.err) == (
        130,
        [
            f"bpeq: stopped after epoch 1 of 2; saved {out}/backprop; "
            f"go on with: the same command, --out {out} --resume"
        ],
    )
    assert {path.name for path in out.iterdir()} - {".lock"} == {"backprop"}
    assert (out / "backprop" / "params.safetensors").exists()


@pytest.fixture(scope="module")
def diverged(call, tmp_path_factory) -> tuple[Any, Path]:
    """What was said where the first one of two rules diverged, and the folder."""
    folder = tmp_path_factory.mktemp("diverged")
    (folder / "c.toml").write_text(f"{XOR}\n[rules.autodiff]\noptimizer.learning_rate = 1e9\n")
    argv = ["compare", folder / "c.toml", "--rules=autodiff,backprop", "--set=seeds=2"]
    return call(*argv, "--out", folder / "out", "--set", "training.epochs=30"), folder


def test_a_diverging_row_ends_a_comparison_with_4_and_one_line(diverged):
    said, folder = diverged
    assert said.code == 4
    (line,) = said.err
    assert line.startswith(f"bpeq: {folder}/c.toml: diverged in epoch ")
    assert line.endswith(f" are in {folder}/out/autodiff/params.safetensors")


def test_the_rows_beside_a_diverging_one_go_on(diverged):
    said, folder = diverged
    rows = read(folder / "out")["rules"]
    names = ["autodiff", "backprop", "linear_readout", "frozen_hidden"]
    assert list(rows) == names
    for name, row in rows.items():
        assert ("diverged" in row) == (name == "autodiff") == (row["metrics"] == {})
        assert set(row["cost"]) == {"sweeps", "macs", "seconds", "bytes"}
    assert rows["autodiff"]["cost"]["macs"] == rows["backprop"]["cost"]["macs"]
    assert rows["autodiff"]["fidelity"]["initial"]["relative_error"] < 1e-5
    pairs = {frozenset((pair["a"], pair["b"])) for pair in read(folder / "out")["paired"]}
    others = [name for name in names if name != "autodiff"]
    assert pairs == {frozenset(pair) for pair in itertools.combinations(others, 2)}
    assert (folder / "out" / "report.html").exists()
    assert "autodiff diverged and has no result" in " ".join(said.out.split())


def test_all_rows_that_diverged_are_named(tmp_path):
    rows = {"a": {"diverged": "c.toml: too fast"}, "b": {}, "c": {"diverged": "c.toml: too"}}
    with pytest.raises(Diverged, match=r"^c\.toml: too fast; also diverged: c$"):
        raise_diverged({"rules": rows})
    raise_diverged({"rules": {"b": {}}})
