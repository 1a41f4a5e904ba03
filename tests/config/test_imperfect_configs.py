"""[imperfections] in a config: what it is laid around, per rule and control, and its errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bpeq.config.loading import ConfigError, load_config
from bpeq.config.problem import build

XOR = """\
[data]
name = "xor"

[network]
layers = ["dense(4, init='normal', bias_init='normal')", "sigmoid", "dense(1)", "sigmoid"]

[rule]
name = "eqprop"

[solvers.free]
name = "fixed_steps"
steps = 4

[solvers.nudged]
name = "fixed_steps"
steps = 4

[imperfections]
noise = 0.01
weight_min = -0.5

[rules.backprop]
imperfections.noise = 0.0

[optimizer]
name = "sgd"
learning_rate = 0.1

[training]
epochs = 2
batch_size = 4
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "c.toml").write_text(XOR)
    return tmp_path / "c.toml"


def outputs(problem, key=None):
    params = jax.tree.map(lambda w: w - 1.0, problem.init(jax.random.key(0)))
    return problem.rule.apply(params, jnp.asarray(problem.data.x, jnp.result_type(float)), key)


def test_a_rule_on_a_system_gets_the_imperfect_system_and_one_on_a_network_is_wrapped(path):
    relaxing, direct = build(load_config(path)), build(load_config(path, ["rule.name=backprop"]))
    assert relaxing.system.traits.device.ideal.traits.device is None
    params = jax.tree.map(lambda w: w - 1.0, direct.init(jax.random.key(0)))
    clipped = jax.tree.map(lambda w: jnp.maximum(w, -0.5), params)
    x = jnp.asarray(direct.data.x, jnp.result_type(float))
    np.testing.assert_array_equal(outputs(direct), direct.network.forward(clipped, x)[0])
    for problem in (relaxing, direct):
        limited = problem.rule.absorb(params, {})
        assert min(float(w.min()) for w in jax.tree.leaves(limited)) == -0.5


def test_without_the_section_or_with_none_of_them_there_is_nothing_around_the_system(path):
    none = ["imperfections.noise=0.0", "imperfections={}"]
    assert build(load_config(path, none[1:])).system.traits.device is None
    path.write_text(XOR.replace("weight_min = -0.5\n", ""))
    assert build(load_config(path, none[:1])).system.traits.device is None
    path.write_text(XOR.split("[imperfections]")[0] + "[training]\nepochs = 1\nbatch_size = 4\n")
    assert "imperfections" not in load_config(path).as_dict()
    assert build(load_config(path)).system.traits.device is None


def test_null_controls_are_perfect_devices(path):
    assert "imperfections" not in load_config(path).for_controls().as_dict()
    path.write_text(XOR + "\n[controls]\nimperfections.weight_min = -0.5\n")
    assert load_config(path).for_controls().as_dict()["imperfections"]["noise"] == 0.0


def test_a_run_on_a_noisy_device_trains_and_says_that_nothing_settles(call, path, tmp_path):
    said = call("run", path, "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    assert '"unsettled": 1.0' in (tmp_path / "out" / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("imperfections.noise=-1.0", "--set imperfections.noise = -1.0: must be a number >= 0"),
        ("imperfections.bits=3", "--set imperfections.bits = 3: unknown key; allowed: noise, mism"),
        ("imperfections.state_bits=3", "--set imperfections.state_bits = 3: needs state_min and"),
        ("imperfections.name=perfect", "imperfections.name = 'perfect': allowed: imperfect"),
        (
            "imperfections.name=bpeq.costs:squared_error",
            "declares the result Cost, so it is not called",
        ),
    ],
)
def test_what_makes_no_device_is_one_line_that_says_so(path, override, message):
    path.write_text(XOR.replace("noise = 0.01\nweight_min = -0.5\n", ""))
    with pytest.raises(ConfigError) as error:
        build(load_config(path, [override]))
    assert message in str(error.value)


def test_imperfect_states_of_a_rule_on_a_network_name_the_setting(path):
    with pytest.raises(ConfigError) as caught:
        build(load_config(path, ["rule.name=backprop", "imperfections.noise=0.1"]))
    assert (caught.value.setting, caught.value.value) == ("imperfections.noise", 0.1)
