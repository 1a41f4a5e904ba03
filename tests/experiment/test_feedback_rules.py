"""The feedback-alignment family from a config: digits, the run folder, and what is refused."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bpeq
from bpeq.config.loading import load_config
from bpeq.config.problem import build, seed_keys

CONFIG = Path("configs/digits.toml")
SMALL = ["network.layers.1.features=16", "training.epochs=20", "seeds=2", "data.validation=0"]
FAMILY = ["feedback_alignment", "direct_feedback_alignment", "sign_symmetric", "kolen_pollack"]


def settings(*pairs):
    return [word for pair in [*SMALL, *pairs] for word in ("--set", pair)]


@pytest.fixture(scope="module")
def runs(call, tmp_path_factory):
    folder = tmp_path_factory.mktemp("family")
    for name in FAMILY:
        words = settings(f"rule.name={name}", "fidelity.examples=20")
        said = call("run", CONFIG, *words, "--out", folder / name)
        assert said.code == 0, said.err
    return folder


@pytest.mark.long
@pytest.mark.parametrize("name", FAMILY)
def test_a_run_records_the_alignment_of_every_layer_before_and_after(runs, name):
    summary = json.loads((runs / name / "summary.json").read_text())
    assert summary["metrics"]["train_error"]["mean"] < 0.3  # of ten digits
    rows = [summary["fidelity"][when]["layers"] for when in ("initial", "trained")]
    for row in rows:
        assert list(row) == ["dense_1", "dense_2"] + ["feedback"] * (name == "kolen_pollack")
        assert row["dense_2"]["relative_error"] < 1e-5
        assert row["dense_1"]["relative_error"] > 0.05
    assert rows[1]["dense_1"]["cosine"] > rows[0]["dense_1"]["cosine"]
    assert [row["name"] for row in summary["layers"]] == list(rows[0])


def test_a_kolen_pollack_run_loads_with_its_gap_where_the_decay_left_it(runs):
    loaded = bpeq.load_run(runs / "kolen_pollack", seed=1)
    test = loaded.data.test[1]
    output = np.asarray(loaded.rule.apply(loaded.params, jnp.asarray(loaded.data.x[test])))
    error = np.mean(output.argmax(axis=1) != loaded.data.y[test])
    assert error == pytest.approx(loaded.summary["metrics"]["test_error"]["values"][1], abs=1e-6)
    with jax.enable_x64(False):
        problem = build(load_config(CONFIG, [*SMALL, "rule.name=kolen_pollack"]))
        keys = seed_keys(0, 2)[1]
        start, _ = problem.rule.init(keys[1], problem.init(keys[0]))
    steps = loaded.summary["updates"]
    progress = np.arange(steps) / steps
    rates = 0.005 * 0.5 * (1 + np.cos(np.pi * progress))  # the config's own schedule
    factor = np.prod(1 - 0.1 * rates)
    before, after = (np.asarray(p[-1]["feedback"][3]["w"]) for p in (start, loaded.params))
    np.testing.assert_allclose(after, factor * before, rtol=1e-4)
    assert factor < 0.95


def test_fidelity_looks_at_a_trained_kolen_pollack_run(runs, call, tmp_path):
    run = runs / "kolen_pollack"
    words = settings("rule.name=kolen_pollack", "fidelity.examples=20")
    argv = ["--rules", "kolen_pollack", "--run", run, "--out", tmp_path / "f"]
    said = call("fidelity", CONFIG, *words, *argv)
    assert said.code == 0, said.err
    found = json.loads((tmp_path / "f" / "fidelity.json").read_text())["rules"]["kolen_pollack"]
    kept = json.loads((run / "summary.json").read_text())["fidelity"]["trained"]
    for name, row in kept["layers"].items():
        assert found["layers"][name]["cosine"] == pytest.approx(row["cosine"], abs=1e-6)


def test_an_optimizer_without_decoupled_decay_is_refused(call, tmp_path):
    config = tmp_path / "d.toml"
    config.write_text(
        '[data]\nname = "digits"\n[network]\nlayers = ["flatten", "dense(10)"]\n'
        '[cost]\nname = "squared_error"\n[rule]\nname = "kolen_pollack"\n'
        '[optimizer]\nname = "momentum"\nlearning_rate = 0.1\n'
        "[training]\nepochs = 1\nbatch_size = 16\n"
    )
    said = call("run", config, "--out", tmp_path / "out")
    assert said.code == 2
    assert len(said.err) == 1
    assert "means nothing under the rule 'kolen_pollack'; allowed: adamw" in said.err[0]
    assert not (tmp_path / "out").exists()


def test_layer_rates_and_batch_norm_go_with_the_gap_in_a_config(call, tmp_path):
    layers = '["flatten", "dense(8)", "batch_norm()", "tanh", "dense(10)"]'
    words = settings("rule.name=kolen_pollack", "optimizer.layer_rates=[0.0, 0.005]")
    words = ["--set", f"network.layers={layers}", *words[2:]]
    said = call("run", CONFIG, *words, "--out", tmp_path / "out")
    assert said.code == 0, said.err
    params = bpeq.load_run(tmp_path / "out").params
    assert float(jnp.abs(params[2]["mean"]).max()) > 0.1  # absorbed
    assert float(jnp.abs(params[-1]["feedback"][2]["mean"]).max()) == 0.0


VECTOR_FIELD = """
[data]
name = "xor"
[network]
layers = ["dense(4)", "tanh", "dense(1)"]
[rule]
name = "vector_field_eqprop"
kolen_pollack = true
[rules.kolen_pollack]
[system]
feedback = "untied"
[optimizer]
name = "adamw"
learning_rate = 0.01
weight_decay = 0.1
[training]
epochs = 1
batch_size = 4
"""
OWN_SYSTEM = """
import jax.numpy as jnp
from bpeq.systems import from_field
from bpeq.types import System

def {name}() -> System:
    return from_field(
        field=lambda p, s, x: -s + x @ p["w"] if isinstance(p, dict) else -s + x @ p[0]["w"],
        init_state=lambda p, x: jnp.zeros(1),
        readout=lambda p, s: s,
        init=lambda key, shape: ({params}, (1,)),
    )
"""
DECAY = "whose feedback comes to the weights by decay alone; allowed: adamw with weight_decay > 0"
FLAT = '{"w": jnp.ones((2, 1))}'
ODD = "(" + FLAT + ', {"feedback": {"a_b": jnp.ones(1)}})'


@pytest.mark.parametrize(
    ("name", "params", "settings", "line"),
    [
        ("tied", "", ['system.feedback="tied"'], "rule.kolen_pollack = true: params have no"),
        ("own", FLAT, ["system={name='{m}:own'}"], "rule.kolen_pollack = true: params have no"),
        ("odd", ODD, ["system={name='{m}:odd'}"], "feedback 'a_b' names no connection; allowed: d"),
        ("zero", "", ["optimizer.weight_decay=0.0"], "weight_decay = 0.0: {}'vector_field_eqp"),
        ("sgd", "", ["optimizer={name='sgd', learning_rate=0.1}"], "optimizer.name = 'sgd': {}'v"),
        ("kp", "", ["rule.name=kolen_pollack", "optimizer.weight_decay=0.0"], "{}'kolen_pollack'"),
    ],
)
def test_kolen_pollack_without_feedback_or_decay_is_one_line_and_exit_2(
    call, tmp_path, monkeypatch, name, params, settings, line
):
    module = f"kp_{name}_system"
    (tmp_path / "c.toml").write_text(VECTOR_FIELD)
    (tmp_path / f"{module}.py").write_text(OWN_SYSTEM.format(name=name, params=params or "None"))
    words = [word for s in settings for word in ("--set", s.replace("{m}", module))]
    said = call("run", tmp_path / "c.toml", "--out", tmp_path / "out", *words)
    assert (said.code, len(said.err)) == (2, 1), said.err
    assert line.replace("{}", "means nothing under the rule ") in said.err[0]
    assert not (tmp_path / "out").exists()
    if "{}" in line:
        assert said.err[0].endswith(DECAY)


def test_homeostasis_is_as_good_as_decay(call, tmp_path):
    (tmp_path / "c.toml").write_text(VECTOR_FIELD)
    words = ["--set", "optimizer={name='sgd', learning_rate=0.1}", "--set", "rule.homeostasis=0.1"]
    assert call("run", tmp_path / "c.toml", "--out", tmp_path / "out", *words).code == 0
