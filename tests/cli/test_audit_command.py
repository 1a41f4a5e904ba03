"""`bpeq audit`: the locality table of every rule that a config serves, by one command."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from bpeq.config.registry import KINDS

CONFIG = """\
[data]
name = "xor"

[network]
layers = ["dense(4)", "tanh", "dense(1)"]

[rule]
name = "eqprop"

[rules.vector_field_eqprop]
system.feedback = "untied"

[rules.continual_eqprop]
optimizer = { name = "sgd", learning_rate = 0.1 }

[training]
epochs = 1
batch_size = 4
"""


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    return path


def test_one_command_makes_the_table_of_all_rules(call, config):
    said = call("audit", config, "--markdown")
    assert (said.code, said.err) == (0, [])
    parts = said.out.strip().split("\n\n")
    assert len(parts) == 2  # and no third one, about what was not followed
    rules, weights = (
        [
            [cell.strip() for cell in line.split("|")[1:-1]]
            for line in part.splitlines()[2:]
            if line.startswith("|")
        ]
        for part in parts
    )
    left_out = [line.split()[0] for line in parts[1].splitlines() if "is left out" in line]
    assert {*(row[0] for row in rules), *left_out} == set(KINDS["rules"])
    assert not {"continual_eqprop", "bptt", "recurrent_backprop"} & set(left_out)
    table = {row[0]: row[2:5] for row in rules}
    assert table["backprop"] == table["autodiff"] == ["error", "forward", "yes"]
    assert table["eqprop"] == ["coupling", "no", "no"]
    assert table["vector_field_eqprop"] == ["no", "free", "no"]
    own = [row[1] for row in weights if row[0] == "vector_field_eqprop"]
    names = ["dense_1.b", "dense_1.w", "dense_2.b", "dense_2.w"]
    assert own == [*names, "feedback.dense_2.b", "feedback.dense_2.w"]


def test_the_terminal_shows_a_table_a_rule(call, config):
    said = call("audit", config, "--rules", "backprop,eqprop")
    assert said.code == 0
    lines = [line.strip() for line in said.out.splitlines()]
    titles = [
        line for line, below in itertools.pairwise(lines) if below.startswith(("rule ", "weight "))
    ]
    assert titles == ["what the updates take", "backprop", "eqprop"]


def test_a_rule_that_does_not_fit_the_config_is_left_out_or_refused(call, config):
    """dropout has no energy: rules that settle cannot take it."""
    layers = 'network.layers=["dense(4)", "dropout(0.5)", "tanh", "dense(1)"]'
    said = call("audit", config, "--markdown", "--set", layers)
    assert said.code == 0
    why = "layer 1 ('dropout') draws a new mask at every pass"
    left_out = [line.split()[0] for line in said.out.splitlines() if why in line]
    assert {"eqprop", "bptt"} <= set(left_out)
    assert not {"backprop", "autodiff"} & set(left_out)
    said = call("audit", config, "--rules", "eqprop", "--set", layers)
    assert said.code == 2
    assert len(said.err) == 1
    assert why in said.err[0]
