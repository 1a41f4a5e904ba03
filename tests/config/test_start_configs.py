"""`start` and [solvers.evaluation] in a config: wired, recorded, refused where they cannot be."""

import json

import pytest

from bpeq.config.loading import ConfigError, load_config
from bpeq.config.problem import build

DIGITS = """\
seeds = 2

[data]
name = "digits"
validation = 0.9

[network]
layers = ["flatten", "dense(8)", "shifted_sigmoid", "dense(10)"]

[solvers.free]
name = "fixed_point"
tolerance = 1e-5
max_steps = 100

[solvers.nudged]
name = "fixed_steps"
steps = 3

[solvers.evaluation]
name = "fixed_steps"
steps = 30

[rule]
name = "eqprop"
start = "kept"

[rules.bptt]
sweeps = 3

[optimizer]
name = "adam"
learning_rate = 0.001

[training]
epochs = 3
batch_size = 16
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "c.toml").write_text(DIGITS)
    return tmp_path / "c.toml"


def test_a_run_with_kept_states_takes_fewer_sweeps_each_epoch(call, path, tmp_path):
    swept = {}
    for start in ("own", "kept"):
        out = tmp_path / start
        said = call("run", path, "--set", f"rule.start={start}", "--out", out)
        assert (said.code, said.err) == (0, [])
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        swept[start] = [row["sweeps_free"] for row in rows]
        assert json.loads((out / "summary.json").read_text())["config"]["rule"]["start"] == start
    assert abs(swept["kept"][0] - swept["own"][0]) < 0.05 * swept["own"][0]
    assert swept["kept"][2] < 0.95 * swept["own"][2]


def test_the_evaluation_solver_is_wired_for_every_rule_that_relaxes(path):
    assert set(build(load_config(path)).solvers) == {"free", "nudged", "evaluation"}
    assert set(build(load_config(path, ["rule.name=bptt"])).solvers) == {"evaluation"}
    assert build(load_config(path, ["rule.name=backprop"])).solvers == {}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["rule.start=last"], "--set rule.start = 'last': must be 'own' | 'zeros' | 'feedforward'"),
        (
            ["rule.name=bptt", "rule.start=kept"],
            "--set rule.start = 'kept': the rule runs no free phase of its own; allowed here",
        ),
        (["rule.name=backprop", "rule.start=kept"], "--set rule.start = 'kept': unknown key"),
    ],
)
def test_a_start_that_cannot_be_is_one_line_that_says_so(path, overrides, message):
    with pytest.raises(ConfigError) as error:
        build(load_config(path, overrides))
    assert message in str(error.value)
