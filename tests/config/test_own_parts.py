"""A user's own parts: what goes wrong in them is one line that says where; what works."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from bpeq.config.loading import load_config
from bpeq.config.problem import build

MODULE = """\
import jax
import jax.numpy as jnp
import numpy as np
import optax

from bpeq.data import Dataset, finish, shuffled
from bpeq.rules import autodiff, stateless
from bpeq.settings import Count, Positive
from bpeq.systems import from_energy
from bpeq.types import Cost, Estimate, Layer, LearningRule, RuleInfo, System


def net(hidden: Count = 3, gain: Positive = 1.0) -> System:
    def energy(w, s, x):
        h = jnp.tanh(s["h"])
        norms = jnp.sum(s["h"] ** 2) + jnp.sum(s["o"] ** 2)
        return gain * norms / 2 - h @ (w["a"] @ x) - s["o"] @ (w["b"] @ h)

    def init(key, shape):
        return {"a": jnp.ones((hidden, 2)), "b": jnp.ones((1, hidden)) / 4}, (1,)

    def init_state(w, x):
        return {"h": jnp.zeros(hidden), "o": jnp.zeros(1)}

    return from_energy(energy, init_state, lambda w, s: s["o"], init)


def rule(network: Layer, cost: Cost, gain: Positive = 1.0) -> LearningRule:
    def apply(params, x, key=None):
        return network.forward(params, x, key)[0]

    def estimate(params, batch, key):
        output, kept = network.forward(params, batch.x, key)
        error = gain * cost.error(output, batch.y) / len(output)
        grads, dx = network.backward(params, params, kept, error)
        loss = cost.value(output, batch.y).mean()
        return Estimate(grads, loss, output, {})

    return stateless(apply, estimate, "own")


def layer(factor: Positive = 1.0) -> Layer:
    return Layer(
        name="own",
        init=lambda key, shape: ((), shape),
        forward=lambda params, x, key=None: (factor * x, ()),
        backward=lambda params, feedback, kept, dy: ((), factor * dy),
    )


def cost() -> Cost:
    return Cost("own", lambda o, y: jnp.sum((o - y) ** 2, axis=1), lambda o, y: 2 * (o - y))


def data(n: Count = 40) -> Dataset:
    x = np.ones((n, 2), np.float32)
    return finish("own", x, x[:, :1], shuffled(n, 1, 0.1, 0.2), task="regression", outputs=1)


def optimizer(learning_rate: Positive) -> optax.GradientTransformation:
    return optax.sgd(learning_rate)
"""
CONFIG = """\
[data]
name = "xor"

[system]
name = "own_parts:net"

[solvers.free]
name = "fixed_steps"
steps = 4

[solvers.nudged]
name = "fixed_steps"
steps = 4

[rule]
name = "eqprop"

[optimizer]
name = "adam"
learning_rate = 0.01

[training]
epochs = 2
batch_size = 4

[network]
layers = ["dense(3)", "tanh", "dense(1)"]
"""
SPARE = """
    plain = stateless(apply, estimate, "own")

    def init(key, params):
        return (*params, {"spare": jnp.ones(1)}), ()

    def beside(params, batch, state, key):
        made, state = plain.estimate(params[:-1], batch, state, key)
        return made._replace(grads=(*made.grads, {"spare": jnp.full(1, jnp.nan)})), state

    def forward(params, x, key=None):
        return apply(params[:-1], x, key)

    return plain._replace(init=init, apply=forward, estimate=beside)
"""
NETWORK = '\n[network]\nlayers = ["dense(3)", "tanh", "dense(1)"]\n'
SYSTEM = "c.toml:system.name = 'own_parts:net': "
RULE = "--set rule.name = 'own_parts:rule': "
BOTH = "{'b': *, 'w': *}, (), {'b': *, 'w': *}"
PARAMS = "0.b float32[3], 0.w float32[2, 3], 2.b float32[1], 2.w float32[3, 1]"


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Writes the config and the module, after some replacements, into the working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def own(*edits: tuple[str, str], config: str = CONFIG) -> Path:
        code = MODULE
        for old, new in edits:
            assert code.count(old) == 1, old
            code = code.replace(old, new)
        (tmp_path / "own_parts.py").write_text(code)
        (tmp_path / "c.toml").write_text(config)
        sys.modules.pop("own_parts", None)
        return tmp_path

    yield own
    sys.modules.pop("own_parts", None)


def line_of(text: str) -> int:
    """Where the module has a text, counted from 1."""
    assert MODULE.count(text) == 1
    return MODULE[: MODULE.index(text)].count("\n") + 1


def at(text: str) -> str:
    return f"own_parts.py, line {line_of(text)}: "


def one_line(done) -> tuple[int, str]:
    """Exit code and the line, without JAX's own words: they differ from version to version."""
    (line,) = done.err
    return done.code, re.sub(
        r"(\w+TypeError: |\w+ConversionError: |dimensions to ).*", r"\1…", line
    )


ENERGIES = [
    (
        'jnp.sum(s["h"] ** 2)',
        's["h"] ** 2',
        "from_energy: energy gives float32[3] for one example; it must give a number",
    ),
    ('jnp.tanh(s["h"])', 'jnp.tanh(s["hh"])', at("jnp.tanh") + "KeyError: 'hh'"),
    (
        '(w["b"] @ h)',
        '(h @ w["b"])',
        at("return gain") + "TypeError: dot_general requires contracting dimensions to …",
    ),
    (
        "norms = ",
        "if norms_ > 0: pass\n        norms = ",
        at("norms = ") + "NameError: name 'norms_' is not defined",
    ),
    (
        "h = jnp.tanh",
        "if x.sum() > 0: pass\n        h = jnp.tanh",
        at("h = jnp.tanh") + "TracerBoolConversionError: …",
    ),
    (
        "h = jnp.tanh",
        "h = np.tanh",
        at("h = jnp.tanh") + "TracerArrayConversionError: …",
    ),
    (
        ", (1,)\n",
        "\n",
        "init gives a float32[3, 2], b float32[1, 3]; it must give (params, shape of one output)",
    ),
    (", (1,)\n", ", 1\n", "init gives the shape 1; it must be a tuple such as (10,)"),
    (
        '"o": jnp.zeros(1)}',
        '"o": jnp.zeros(1, int)}',
        "init_state gives h float32[4, 3], o int32[4, 1]: states must be floating-point",
    ),
    (
        'lambda w, s: s["o"]',
        "lambda w, s: s",
        "readout gives, of 4 examples, h float32[4, 3], o float32[4, 1], not float32[4, 1]",
    ),
    (
        'lambda w, s: s["o"]',
        'lambda w, s: s["h"]',
        "readout gives, of 4 examples, float32[4, 3], not float32[4, 1]",
    ),
    ('lambda w, s: s["o"]', 'lambda w, s: s["out"]', at("return from_energy") + "KeyError: 'out'"),
    (
        's["o"], init)',
        's["o"])',
        at("return from_energy") + "TypeError: from_energy: missing a required argument: 'init'",
    ),
    (
        's["o"], init)',
        's["o"], init, step=1)',
        at("return from_energy")
        + "TypeError: from_energy: got an unexpected keyword argument 'step'",
    ),
    (
        's["o"], init)',
        's["o"], init, step_size=0)',
        "from_energy: step_size = 0: must be a number > 0",
    ),
    ("    return from_energy", "    from_energy", "gives a NoneType; it must give a System"),
    ("    def energy", "    {}['k']\n    def energy", at("def energy") + "KeyError: 'k'"),
    (
        "    def energy",
        "    raise ValueError('hidden must be even')\n    def energy",
        "hidden must be even",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), ENERGIES, ids=[row[2][:60] for row in ENERGIES])
def test_an_energy_that_cannot_be_is_one_line_before_anything_is_made(call, own, old, new, said):
    folder = own((old, new))
    done = call("run", "c.toml")
    assert one_line(done) == (2, f"bpeq: {SYSTEM}{said}")
    assert not (folder / "runs").exists()


def test_outputs_of_another_width_are_the_systems_fault_though_there_is_a_network(call, own):
    own((", (1,)\n", ", (2,)\n"))
    said = "c.toml:system.name: one example of xor (2) gives outputs of shape (2,); it must be (1,)"
    assert call("run", "c.toml").err == [f"bpeq: {said}"]


RULES = [
    ("Estimate(grads,", "Estimate(dx,", f"grads are float32[4, 2], not {PARAMS}"),
    (
        "Estimate(grads,",
        "Estimate(list(grads),",
        f"grads are PyTreeDef([{BOTH}]), not PyTreeDef(({BOTH}))",
    ),
    (
        "Estimate(grads,",
        "Estimate(jax.tree.map(lambda g: g[:1], grads),",
        "grads are 0.b float32[1], not 0.b float32[3]",
    ),
    (".mean()\n", "\n", "loss is float32[4], not float32[]"),
    ("return Estimate(", "return (", "estimate gives a tuple; it must give an Estimate"),
    ("return Estimate(", "Estimate(", "estimate gives a NoneType; it must give an Estimate"),
    ("output, {})", "output, None)", "info is a NoneType; it must be a dict"),
    (
        "params, x, key)[0]",
        "params, x, key)[0][:, 0]",
        "apply gives, of 4 examples, float32[4], not float32[4, 1]",
    ),
    (
        "error = gain *",
        "error = gian *",
        at("error = gain") + "NameError: name 'gian' is not defined",
    ),
    (
        "error = gain *",
        "error = float(output[0, 0]) *",
        at("error = gain") + "ConcretizationTypeError: …",
    ),
    (
        'return stateless(apply, estimate, "own")',
        "return estimate",
        "gives a function; it must give a LearningRule",
    ),
    (
        "cost: Cost, gain",
        "cost: Cost, inner: LearningRule, gain",
        "missing a required argument: 'inner'",
    ),
]


@pytest.mark.parametrize(("old", "new", "said"), RULES, ids=[row[2][:60] for row in RULES])
def test_a_rule_that_cannot_be_is_one_line_before_anything_is_made(call, own, old, new, said):
    folder = own((old, new))
    done = call("run", "c.toml", "--set", "rule.name=own_parts:rule")
    assert one_line(done) == (2, f"bpeq: {RULE}{said}")
    assert not (folder / "runs").exists()


FORWARD = "(factor * x, ())"
OWN_LAYER = 'network.layers.1="own_parts:layer(2)"'
LAYER = "--set network.layers.1 = 'own_parts:layer': "
COST = "--set cost.name = 'own_parts:cost': "
OPTIMIZER = "--set optimizer.name = 'own_parts:optimizer': "
OTHERS = [
    (
        FORWARD,
        "(factr * x, ())",
        OWN_LAYER,
        2,
        LAYER + at(FORWARD) + "NameError: name 'factr' is not defined",
    ),
    (
        "((), factor * dy)",
        "factor * dy",
        OWN_LAYER,
        2,
        LAYER + "too many values to unpack (expected 2)",
    ),
    (
        "    return Layer(",
        "    1 / 0\n    return Layer(",
        OWN_LAYER,
        2,
        LAYER + at("    return Layer(") + "ZeroDivisionError: division by zero",
    ),
    (
        ", axis=1)",
        ")",
        "cost.name=own_parts:cost",
        2,
        COST + "value gives, of 4 examples, float32[], not float32[4]",
    ),
    (
        "2 * (o - y)",
        "(o - y)[:, 0]",
        "cost.name=own_parts:cost",
        2,
        COST + "error gives float32[4], not float32[4, 1]",
    ),
    (
        "2 * (o - y)",
        "2 * (o - z)",
        "cost.name=own_parts:cost",
        2,
        COST + at("2 * (o - y)") + "NameError: name 'z' is not defined",
    ),
    (
        "    x = np.ones",
        "    open('absent')\n    x = np.ones",
        "data.name=own_parts:data",
        3,
        "--set data.name = 'own_parts:data': [Errno 2] No such file or directory: 'absent'",
    ),
    (
        "    x = np.ones",
        "    {}['k']\n    x = np.ones",
        "data.name=own_parts:data",
        2,
        "--set data.name = 'own_parts:data': " + at("    x = np.ones") + "KeyError: 'k'",
    ),
    (
        "x = np.ones((n, 2), np.float32)",
        "x = np.ones((n, 2))",
        "data.name=own_parts:data",
        3,
        "own: x is float64 (40, 2): float32 [n, ...] is needed",
    ),
    (
        "optax.sgd(learning_rate)",
        "optax.sgd(rate)",
        "optimizer={name = 'own_parts:optimizer', learning_rate = 0.1}",
        2,
        OPTIMIZER + at("return optax.sgd") + "NameError: name 'rate' is not defined",
    ),
    (
        "def optimizer(learning_rate: Positive)",
        "def optimizer(rate: Positive = 1.0)",
        "optimizer={name = 'own_parts:optimizer'}",
        2,
        OPTIMIZER + "has no setting learning_rate",
    ),
]


@pytest.mark.parametrize(
    ("old", "new", "set_", "code", "said"), OTHERS, ids=[row[-1][:70] for row in OTHERS]
)
def test_another_part_that_cannot_be_is_one_line(call, own, old, new, set_, code, said):
    folder = own((old, new))
    done = call("run", "c.toml", "--set", "rule.name=backprop", "--set", set_)
    assert (done.code, done.err) == (code, [f"bpeq: {said}"])
    assert not (folder / "runs").exists()


TYPOS = [
    ("system.name=own_part:net", "cannot import 'own_part': No module named 'own_part'"),
    (
        "system.name=own_parts:nett",
        "the module 'own_parts' has no factory 'nett'; did you mean 'net'?",
    ),
    (
        "system.name=own_parts.net",
        "allowed: hopfield, predictive, resistive; a path is written 'own_parts:net'",
    ),
    ("system.hiden=3", "unknown key; allowed: hidden, gain, name; did you mean 'hidden'?"),
    ("system.hidden=0", "must be a whole number >= 1"),
    ("system.gain=-1.0", "must be a number > 0"),
    (
        "optimizer.layer_rates=[0.1, 0.1]",
        "needs a network of layers to count its blocks",
    ),
]


@pytest.mark.parametrize(("set_", "said"), TYPOS, ids=[row[0] for row in TYPOS])
def test_a_typo_is_one_line_with_the_nearest_name(call, own, set_, said):
    own()
    done = call("run", "c.toml", "--set", set_)
    key, _, value = set_.partition("=")
    shown = value if value[:1] in "0123456789-[" else repr(value)
    assert (done.code, done.err) == (2, [f"bpeq: --set {key} = {shown}: {said}"])


def test_a_rule_named_by_rules_is_told_so(call, own):
    own(("error = gain *", "error = gian *"))
    said = f"{at('error = gain')}NameError: name 'gian' is not defined"
    for command in ("compare", "fidelity"):
        done = call(command, "c.toml", "--rules", "eqprop,own_parts:rule")
        assert (done.code, done.err) == (2, [f"bpeq: --rules = 'own_parts:rule': {said}"])


def test_every_command_builds_the_parts_and_so_finds_the_fault(call, own):
    folder = own(('jnp.tanh(s["h"])', 'jnp.tanh(s["hh"])'))
    said = f"bpeq: {SYSTEM}{at('jnp.tanh')}KeyError: 'hh'"
    for argv in (["check"], ["fidelity"], ["compare", "--rules", "eqprop,backprop"]):
        done = call(argv[0], "c.toml", *argv[1:])
        assert (done.code, done.err) == (2, [said])
    assert not (folder / "runs").exists()


EXITS = ["sys.exit(0)", "raise SystemExit", "raise KeyboardInterrupt"]
PLACES = {
    "the module": ("def net(", "{}\n\n\ndef net("),
    "the factory": ("    def energy", "    {}\n\n    def energy"),
    "a function in the trace": ("        h = jnp.tanh", "        {}\n        h = jnp.tanh"),
}


@pytest.mark.parametrize("code", EXITS)
@pytest.mark.parametrize("place", PLACES)
def test_own_code_that_exits_is_one_line_with_exit_code_2(call, own, place, code):
    old, new = PLACES[place]
    folder = own(("import jax\n", "import sys\n\nimport jax\n"), (old, new.format(code)))
    done = call("run", "c.toml")
    (line,) = done.err
    assert done.code == 2
    assert line.startswith(f"bpeq: {SYSTEM}")
    assert ("SystemExit" if "Exit" in code or "exit" in code else "KeyboardInterrupt") in line
    assert not (folder / "runs").exists()


def test_a_bug_of_ours_keeps_its_traceback(own, monkeypatch):
    """Only where a config has parts of the user's own may an error be theirs."""
    own(config=CONFIG.replace("own_parts:net", "hopfield"))

    def broken(*args: object, **kwargs: object) -> None:
        raise ZeroDivisionError("ours")

    monkeypatch.setattr("bpeq.rules._eqprop._refuse", broken)
    with pytest.raises(ZeroDivisionError, match="ours"):
        build(load_config("c.toml"))


# --- what shows only in training ---------------------------------------------------------------


def test_a_weight_that_no_loss_reads_ends_a_run_with_4_where_it_is_not_finite(call, own):
    own(
        ('    return stateless(apply, estimate, "own")', SPARE),
        config=CONFIG.replace('name = "eqprop"', 'name = "own_parts:rule"'),
    )
    done = call("run", "c.toml", "--out", "out")
    assert done.code == 4
    (line,) = done.err
    start = "bpeq: c.toml: diverged in epoch 1 (step 1): the parameter 3.spare is not finite; "
    assert line.startswith(start)
    assert line.endswith("the parameters of epoch 0 are in out/params.safetensors")


def test_a_nan_ends_a_run_with_4_and_the_solvers_are_named_where_there_are_phases(call, own):
    own(("gain * norms", "jnp.nan * norms"))
    done = call("run", "c.toml", "--out", "out")
    assert done.code == 4
    (line,) = done.err
    start = "bpeq: c.toml: diverged in epoch 1 (step 1): the training loss of seed 0 is nan, "
    where = "the parameter a is not finite; try a smaller "
    remedy = "optimizer.learning_rate than 0.01, or solvers under which every phase settles; "
    saved = "the last good checkpoint is out/checkpoints/1-000000000.safetensors, "
    end = "the parameters of epoch 0 are in out/params.safetensors"
    assert line == start + where + remedy + saved + end


def test_a_rule_whose_gradient_is_nan_ends_with_4(call, own):
    own(("error = gain *", "error = jnp.nan *"))
    done = call("run", "c.toml", "--set", "rule.name=own_parts:rule", "--out", "out")
    assert done.code == 4
    assert "optimizer.learning_rate than 0.01; the last good checkpoint" in done.err[0]


# --- what works --------------------------------------------------------------------------------


@pytest.mark.long
def test_a_network_beside_an_own_system_is_for_other_rules_and_the_controls(call, own):
    """The system's weights are no layers of it: its run, its check and its rates ignore it."""
    own()
    config = load_config("c.toml")
    assert build(config).network is None
    assert build(config.with_rule("backprop")).network is not None
    rows = [line for line in call("check", "c.toml").out.splitlines() if "float" in line]
    assert [row.strip()[:6] for row in rows] == ["energy", "energy"]
    done = call("compare", "c.toml", "--rules", "eqprop,own_parts:rule", "--out", "out")
    assert (done.code, done.err) == (0, [])
    made = json.loads(Path("out/comparison.json").read_text())["rules"]
    assert list(made) == ["eqprop", "own_parts:rule", "linear_readout", "frozen_hidden"]


def test_an_own_system_made_of_the_network_keeps_its_layers(own):
    """Its params begin with the network's: rates by layer and rows by layer apply to those."""
    own(
        ("hidden: Count = 3, gain", "network: Layer, hidden: Count = 3, gain"),
        (
            'return {"a": jnp.ones((hidden, 2)), "b": jnp.ones((1, hidden)) / 4}, (1,)',
            "w = {'a': jnp.ones((3, 2)), 'b': jnp.ones((1, 3))}\n        "
            "return (*network.init(key, shape)[0], w), (1,)",
        ),
        ('h = jnp.tanh(s["h"])', 'h, w = jnp.tanh(s["h"]), w[-1]'),
    )
    problem = build(load_config("c.toml", ["optimizer.layer_rates=[0.1, 0.2]"]))
    assert [part.name for part in problem.network.parts] == ["dense", "tanh", "dense"]


def test_without_a_network_the_one_control_is_a_linear_readout(call, own):
    own(config=CONFIG.replace(NETWORK, ""))
    done = call("compare", "c.toml", "--rules", "eqprop,bptt", "--out", "out")
    assert (done.code, done.err) == (0, [])
    made = json.loads(Path("out/comparison.json").read_text())["rules"]
    assert {name: row["control"] for name, row in made.items()} == {
        "eqprop": False,
        "bptt": False,
        "linear_readout": True,
    }
    kept = load_config("out/linear_readout/config.toml").as_dict()["network"]["layers"]
    assert [(layer["name"], layer.get("features")) for layer in kept] == [
        ("flatten", None),
        ("dense", 1),
    ]


def test_a_rule_that_needs_a_network_says_so_where_there_is_none(call, own):
    own(config=CONFIG.replace(NETWORK, ""))
    done = call("compare", "c.toml", "--rules", "eqprop,own_parts:rule")
    said = "c.toml:network.layers: is missing; the rule 'own_parts:rule' needs a network"
    assert (done.code, done.err) == (2, [f"bpeq: {said}"])


def test_a_rule_without_a_reference_is_a_note_of_fidelity_beside_the_others(call, own):
    own()
    argv = ["fidelity", "c.toml", "--rules", "backprop,own_parts:rule", "--out", "out"]
    done = call(*argv)
    assert done.code == 0
    note = "own_parts:rule: own has no exact reference to compare with"
    assert note in " ".join(done.out.split())
    assert note.partition(": ")[2] in Path("out/report.html").read_text()
    made = json.loads(Path("out/fidelity.json").read_text())["rules"]
    assert made["own_parts:rule"] == {"note": "own has no exact reference to compare with"}
    assert made["backprop"]["relative_error"] < 1e-6


def test_a_rule_without_a_reference_alone_has_a_report_that_says_so(call, own):
    own()
    argv = ["--set", "rule.name=own_parts:rule", "--set", "fidelity.examples=2"]
    for command, folder in (("fidelity", "seen"), ("run", "trained")):
        assert call(command, "c.toml", *argv, "--out", folder).code == 0
        page = Path(folder, "report.html").read_text()
        assert "own has no exact reference to compare with" in page


def test_a_rule_with_a_reference_is_measured_against_it(call, own):
    own(('"own")', '"own")._replace(info=RuleInfo(autodiff(network, cost)))'))
    argv = ["--set", "rule.name=own_parts:rule", "--set", "rule.gain=3.0", "--out", "out"]
    assert call("fidelity", "c.toml", *argv).code == 0
    row = json.loads(Path("out/fidelity.json").read_text())["rules"]["own_parts:rule"]
    assert (row["norm_ratio"], row["cosine"]) == pytest.approx((3, 1), rel=1e-5)
    assert row["relative_error"] == pytest.approx(2, rel=1e-5)


def test_an_energy_that_is_real_for_complex_states_is_refused_for_holomorphic_nudging(call, own):
    own(
        ("return gain * norms / 2 - ", "return jnp.real(norms) / 2 - jnp.real("),
        ("@ h)\n", "@ h))\n"),
    )
    done = call("run", "c.toml", "--set", "rule.nudging=holomorphic")
    said = "from_energy: energy is real at a complex state: it is not holomorphic"
    assert (done.code, done.err) == (2, [f"bpeq: {SYSTEM}{said}"])


def test_sections_of_an_own_rule_stand_under_its_quoted_name(call, own):
    text = '\n[rules."own_parts:rule"]\ngain = {}\noptimizer.learning_rate = 0.5\n'
    own(config=CONFIG + text.format(2))
    tree = load_config("c.toml", ["rule.name=own_parts:rule"]).as_dict()
    assert (tree["rule"]["gain"], tree["optimizer"]["learning_rate"]) == (2.0, 0.5)
    assert load_config("c.toml").as_dict()["optimizer"]["learning_rate"] == 0.01
    own(config=CONFIG + text.format(-2))
    said = "c.toml:rules.own_parts:rule.gain = -2: must be a number > 0"
    assert call("run", "c.toml").err == [f"bpeq: {said}"]
