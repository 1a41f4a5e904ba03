"""What a user gets wrong: an exit code, one line that says what is allowed, and nothing written."""

from __future__ import annotations

import gzip
import inspect
import os
import platform
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import optax
import platformdirs
import pytest

from bpeq.cli import entry
from bpeq.config import registry
from bpeq.config.loading import load_config
from bpeq.config.registry import KINDS

CONFIG = """\
seed = 0

[data]
name = "xor"

[network]
layers = ["dense(4)", "tanh", "dense(1)"]

[rule]
name = "eqprop"

[rules.eqprop]
beta = 0.2

[solvers.free]
name = "fixed_steps"
steps = 4

[solvers.nudged]
name = "fixed_steps"
steps = 2

[optimizer]
name = "adam"
learning_rate = 0.01

[training]
epochs = 2
batch_size = 4
"""
NETWORK = 'layers = ["dense(4)", "tanh", "dense(1)"]'
DIGITS = CONFIG.replace('"xor"', '"digits"').replace("batch_size = 4", "batch_size = 64")
TOP = "seed, seeds, precision, experiment, checkpoint_share, devices, folder"
SECTIONS = (
    "data, cost, system, imperfections, rule, optimizer, schedule, network, networks, solvers, "
    "training, fidelity, rules, controls, study"
)
RULES, DATA, LAYERS, SYSTEMS = (
    ", ".join(KINDS[kind]) for kind in ("rules", "data", "layers", "systems")
)
COSTS, OPTIMIZERS, SCHEDULES, SOLVERS = (
    ", ".join(KINDS[kind]) for kind in ("costs", "optimizers", "schedules", "solvers")
)
EQPROP = "beta, nudging, points, turns, start, relaxation"
OWN = "cost, system, imperfections, optimizer, schedule, network, solvers, training"
INITS = (
    "'zeros' | 'normal' | 'uniform' | 'fan_in_uniform' | 'glorot_uniform' | 'glorot_normal' | "
    "'he_uniform' | 'he_normal' | 'lecun_normal' | 'orthogonal'"
)
BETA = "number > 0 or 'auto'"
NUDGINGS = "'one-sided' | 'centered' | 'random-sign' | 'holomorphic' | 'online'"
WHOLE, POSITIVE, RATE = "must be a whole number >= 1", "must be a number > 0", "must be a number"
INT32 = f"{WHOLE} and < 2147483648"
SEED = "must be a whole number >= 0 and < 4294967296"
FRACTION = "must be a number >= 0 and < 1"
RATES = "must be a list, each entry a number >= 0"
FOLDS = "must be a section"
CALL = 'must be a call such as "dense(128)"'
PHASES = "adjoint, clamped, evaluation, free, nudged"
NO_LITERAL = "is not a literal that a config can hold"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Runs without --out would be written below the working directory.

    The modules of a test's own are forgotten after it.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield
    for name in ("cli_parts", "cli_broken", "cli_layer"):
        sys.modules.pop(name, None)


@pytest.fixture
def config(tmp_path) -> Path:
    return write(tmp_path, CONFIG)


def write(folder: Path, text: str | bytes, name: str = "c.toml") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def edited(old: str, new: str, text: str = CONFIG) -> str:
    assert text.count(old) == 1, old
    return text.replace(old, new)


def network(layers: str) -> str:
    return edited(NETWORK, f"layers = {layers}")


def refused(call, folder: Path, *argv: object) -> tuple[int, str]:
    """Exit code and the one line on stderr; no file or folder may have come, gone or changed."""
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    folders = {path for path in folder.rglob("*") if path.is_dir()}
    said = call(*argv)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
    assert {path for path in folder.rglob("*") if path.is_dir()} == folders
    assert len(said.err) == 1
    assert not said.bar
    assert said.out == ""
    return said.code, said.err[0]


# --- what stands in the file -------------------------------------------------------------------

IN_FILE = [
    # unknown keys, at the top and in each section
    ("seed = 0", "epoch = 3", "epoch = 3", f"unknown key; allowed: {TOP}, {SECTIONS}"),
    (
        "seed = 0",
        "sed = 0",
        "sed = 0",
        f"unknown key; allowed: {TOP}, {SECTIONS}; did you mean 'seed'?",
    ),
    (
        "[training]",
        "[trainning]",
        "trainning = {'epochs': 2, 'batch_size': 4}",
        f"unknown key; allowed: {TOP}, {SECTIONS}; did you mean 'training'?",
    ),
    (
        "learning_rate = 0.01",
        "layer_rate = [0.1, 0.1]",
        "optimizer.layer_rate = [0.1, 0.1]",
        "unknown key; allowed: learning_rate, b1, b2, eps, layer_rates, clip_norm, name; "
        "did you mean 'layer_rates'?",
    ),
    (
        "learning_rate = 0.01",
        "lr = 0.01",
        "optimizer.lr = 0.01",
        "unknown key; allowed: learning_rate, b1, b2, eps, layer_rates, clip_norm, name; "
        "did you mean 'learning_rate'?",
    ),
    (
        NETWORK,
        'layer = ["dense(1)"]',
        "network.layer = ['dense(1)']",
        "unknown key; allowed: layers; did you mean 'layers'?",
    ),
    (
        'name = "eqprop"',
        'name = "backprop"\nbeta = 0.1',
        "rule.beta = 0.1",
        "unknown key; allowed: name",
    ),
    (
        "[training]",
        "[schedule]\nname = 'constant'\nwarmup = 0.1\n[training]",
        "schedule.warmup = 0.1",
        "unknown key; allowed: name",
    ),
    ('name = "xor"', 'name = "xor"\nrows = 3', "data.rows = 3", "unknown key; allowed: name"),
    (
        NETWORK,
        f"{NETWORK}\nlayer = 3",
        "network.layer = 3",
        "unknown key; allowed: layers; did you mean 'layers'?",
    ),
    (
        'name = "eqprop"',
        'name = "eqprop"\nbta = 0.1',
        "rule.bta = 0.1",
        f"unknown key; allowed: {EQPROP}, name; did you mean 'beta'?",
    ),
    (
        "beta = 0.2",
        "bta = 0.2",
        "rules.eqprop.bta = 0.2",
        f"unknown key; allowed: {EQPROP}, {OWN}; did you mean 'beta'?",
    ),
    (
        "steps = 4",
        "step = 4",
        "solvers.free.step = 4",
        "unknown key; allowed: steps, tolerance, damping, record, name; did you mean 'steps'?",
    ),
    (
        "steps = 2",
        "steps = 2\nmax_steps = 9",
        "solvers.nudged.max_steps = 9",
        "unknown key; allowed: steps, tolerance, damping, record, name; did you mean 'steps'?",
    ),
    (
        "[solvers.free]",
        "[solvers.fre]",
        "solvers.fre = {'name': 'fixed_steps', 'steps': 4}",
        f"unknown phase; allowed: {PHASES}; did you mean 'free'?",
    ),
    (
        "learning_rate = 0.01",
        "learning_rate = 0.01\nmomentum = 0.9",
        "optimizer.momentum = 0.9",
        "unknown key; allowed: learning_rate, b1, b2, eps, layer_rates, clip_norm, name",
    ),
    (
        "epochs = 2",
        "epoch = 2",
        "training.epoch = 2",
        "unknown key; allowed: epochs, batch_size, evaluate_every, evaluate_train, unsettled; "
        "did you mean 'epochs'?",
    ),
    (
        "[training]",
        '[cost]\nname = "squared_error"\nhalf = true\n[training]',
        "cost.half = true",
        "unknown key; allowed: name",
    ),
    (
        "[training]",
        '[system]\nname = "hopfield"\noutputs = "state"\n[training]',
        "system.outputs = 'state'",
        "unknown key; allowed: output, schedule, skips, feedback, angle, nudge, gain, name; "
        "did you mean 'output'?",
    ),
    (
        "[training]",
        '[schedule]\nname = "cosine"\nwarm = 0.1\n[training]',
        "schedule.warm = 0.1",
        "unknown key; allowed: warmup, final, name; did you mean 'warmup'?",
    ),
    (
        "[training]",
        "[controls]\noptimiser.learning_rate = 0.1\n[training]",
        "controls.optimiser = {'learning_rate': 0.1}",
        f"unknown key; allowed: {OWN}; did you mean 'optimizer'?",
    ),
    (
        "[rules.eqprop]",
        "[rules.eqpropp]",
        "rules.eqpropp",
        f"allowed: {RULES}; did you mean 'eqprop'?",
    ),
    # misspelt names
    (
        'name = "eqprop"',
        'name = "backpropp"',
        "rule.name = 'backpropp'",
        f"allowed: {RULES}; did you mean 'backprop'?",
    ),
    ('name = "xor"', 'name = "xr"', "data.name = 'xr'", f"allowed: {DATA}; did you mean 'xor'?"),
    (
        'name = "adam"',
        'name = "adm"',
        "optimizer.name = 'adm'",
        f"allowed: {OPTIMIZERS}; did you mean 'adam'?",
    ),
    (
        'name = "fixed_steps"\nsteps = 4',
        'name = "fixed_step"\nsteps = 4',
        "solvers.free.name = 'fixed_step'",
        f"allowed: {SOLVERS}; did you mean 'fixed_steps'?",
    ),
    (
        "[training]",
        '[system]\nname = "hopfeild"\n[training]',
        "system.name = 'hopfeild'",
        f"allowed: {SYSTEMS}; did you mean 'hopfield'?",
    ),
    (
        "[training]",
        '[cost]\nname = "square_error"\n[training]',
        "cost.name = 'square_error'",
        f"allowed: {COSTS}; did you mean 'squared_error'?",
    ),
    (
        "[training]",
        '[schedule]\nname = "cosin"\n[training]',
        "schedule.name = 'cosin'",
        f"allowed: {SCHEDULES}; did you mean 'cosine'?",
    ),
    # wrong types and values out of range, where the file has them
    ("seed = 0", "seed = 0.0", "seed = 0.0", SEED),
    ("seed = 0", "devices = 0", "devices = 0", f"{WHOLE} or 'all'"),
    (
        "seed = 0",
        "devices = 2",
        "devices = 2",
        "must be 1 to 1, the cpu devices there are, or 'all'",
    ),
    ("seed = 0", "seed = 1979-05-27", "seed = datetime.date(1979, 5, 27)", SEED),
    ("beta = 0.2", "beta = 0", "rules.eqprop.beta = 0", f"must be a {BETA}"),
    ("beta = 0.2", "beta = nan", "rules.eqprop.beta = nan", f"must be a finite {BETA}"),
    ("beta = 0.2", "optimizer = 5", "rules.eqprop.optimizer = 5", FOLDS),
    (
        "beta = 0.2",
        "optimizer.learning_rate = -1",
        "rules.eqprop.optimizer.learning_rate = -1",
        POSITIVE,
    ),
    (
        "beta = 0.2",
        'data.name = "digits"',
        "rules.eqprop.data = {'name': 'digits'}",
        f"unknown key; allowed: {EQPROP}, {OWN}",
    ),
    ('name = "eqprop"', 'name = ["eqprop"]', "rule.name = ['eqprop']", f"allowed: {RULES}"),
    ('name = "xor"', "name = {a = 1}", "data.name = {'a': 1}", f"allowed: {DATA}"),
    ('[rule]\nname = "eqprop"', "[[rule]]", "rule = [{}]", FOLDS),
    # missing settings
    ('[data]\nname = "xor"\n', "", "data.name", f"is missing; allowed: {DATA}"),
    ('name = "xor"\n', "", "data.name", f"is missing; allowed: {DATA}"),
    ("epochs = 2\n", "", "training.epochs", f"is missing; {WHOLE}"),
    ("[training]\nepochs = 2\nbatch_size = 4\n", "", "training.epochs", f"is missing; {WHOLE}"),
    ("learning_rate = 0.01\n", "", "optimizer.learning_rate", f"is missing; {POSITIVE}"),
    ("steps = 4\n", "", "solvers.free.steps", f"is missing; {WHOLE}"),
    (
        "beta = 0.2",
        'optimizer.name = "sgd"',
        "rules.eqprop.optimizer.learning_rate",
        f"is missing; {POSITIVE}",
    ),
    # settings of rules and controls that do not run now
    (
        "[rules.eqprop]",
        "[rules.backprop]\noptimizer.learning_rate = -1\n[rules.eqprop]",
        "rules.backprop.optimizer.learning_rate = -1",
        POSITIVE,
    ),
    (
        "[training]",
        '[controls]\noptimizer.name = "adm"\n[training]',
        "controls.optimizer.name = 'adm'",
        f"allowed: {OPTIMIZERS}; did you mean 'adam'?",
    ),
    ("[training]", "[controls]\ncost = 3\n[training]", "controls.cost = 3", FOLDS),
]


@pytest.mark.parametrize(
    ("old", "new", "place", "remedy"), IN_FILE, ids=[f"{row[2]}<{row[1]!r}" for row in IN_FILE]
)
def test_a_wrong_entry_is_named_with_its_file(call, tmp_path, old, new, place, remedy):
    path = write(tmp_path, edited(old, new))
    line = f"bpeq: {path}:{place}: {remedy}"
    assert refused(call, tmp_path, "run", path) == (2, line)


FILES = {
    "two equals signs": (b"seed = = 1\n", "malformed TOML: Invalid value (at line 1, column 8)"),
    "a key twice": (b"seed = 0\nseed = 1\n", "malformed TOML: Cannot overwrite a value (at line 2"),
    "a section twice": (CONFIG.encode() + b"[training]\n", "malformed TOML: Cannot declare"),
    "an open list": (b"seed = [1,", "malformed TOML: Invalid value (at end of document)"),
    "a NUL": (b'name = "\0"\n', "malformed TOML: Illegal character '\\x00' (at line 1, column 9)"),
    "bytes of a picture": (b"\x89PNG\r\n\x1a\n", "is not text: invalid start byte at byte 0"),
    "UTF-16": (CONFIG.encode("utf-16"), "is not text: invalid start byte at byte 0"),
    "a number of 5000 digits": (b"seed = " + b"9" * 5000, "malformed TOML: a number too long, or"),
    "5000 brackets": (b"seed = " + b"[" * 5000, "malformed TOML: a number too long, or lists nest"),
}


@pytest.mark.parametrize(("content", "problem"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_toml_is_told_where(call, tmp_path, content, problem):
    path = write(tmp_path, content)
    code, line = refused(call, tmp_path, "run", path)
    assert code == 2
    assert line.startswith(f"bpeq: {path}: {problem}")


def test_an_empty_file_lacks_its_data(call, tmp_path):
    path = write(tmp_path, "")
    line = f"bpeq: {path}:data.name: is missing; allowed: {DATA}"
    assert refused(call, tmp_path, "run", path) == (2, line)


def test_a_byte_order_mark_is_no_error(call, tmp_path):
    path = write(tmp_path, b"\xef\xbb\xbf" + CONFIG.encode())
    assert call("show", "config", path).code == 0


def test_a_missing_config_and_a_folder_are_told_apart(call, tmp_path):
    missing = f"bpeq: {tmp_path}/no.toml: cannot read the config: No such file or directory"
    assert refused(call, tmp_path, "run", tmp_path / "no.toml") == (2, missing)
    folder = f"bpeq: {tmp_path}: cannot read the config: Is a directory"
    assert refused(call, tmp_path, "run", tmp_path) == (2, folder)


# --- networks ----------------------------------------------------------------------------------

NO_LIST = 'must be a list of layers such as ["dense(128)"]'
EVIL = "dense(__import__('os').system('touch hacked'))"

NETWORKS = [
    ('"dense(1)"', "network.layers = 'dense(1)'", NO_LIST),
    ("[]", "network.layers = []", NO_LIST),
    ("{a = 1}", "network.layers = {'a': 1}", NO_LIST),
    ("[1]", "network.layers.0 = 1", CALL),
    ('[["dense(1)"]]', "network.layers.0 = ['dense(1)']", CALL),
    ('["two words"]', "network.layers.0 = 'two words'", CALL),
    ('[""]', "network.layers.0 = ''", CALL),
    ('["dense(1"]', "network.layers.0 = 'dense(1'", CALL),
    ('["dense(1).x"]', "network.layers.0 = 'dense(1).x'", CALL),
    ('["dense(1); x"]', "network.layers.0 = 'dense(1); x'", CALL),
    ('["dense(1))"]', "network.layers.0 = 'dense(1))'", "cannot be read as a call: unmatched ')'"),
    (
        '["dense(\\u0000)"]',
        "network.layers.0 = 'dense(\\x00)'",
        "cannot be read as a call: source code string cannot contain null bytes",
    ),
    ('["dense(1, 2)"]', "network.layers.0 = 'dense(1, 2)'", "too many arguments without a name"),
    ('["tanh(1)"]', "network.layers.0 = 'tanh(1)'", "too many arguments without a name for tanh"),
    (
        '["dense(1, features=2)"]',
        "network.layers.0 = 'dense(1, features=2)'",
        "the argument features of dense is given twice",
    ),
    (
        '["dense(features=1, features=2)"]',
        "network.layers.0 = 'dense(features=1, features=2)'",
        "the argument features of dense is given twice",
    ),
    (
        "[\"dense(**{'features': 1})\"]",
        "network.layers.0 = \"dense(**{'features': 1})\"",
        "the arguments of dense are named one by one, not by **",
    ),
    (f'["{EVIL}"]', f'network.layers.0 = "{EVIL}"', f"{EVIL[6:-1]} {NO_LITERAL}"),
    ('["dense(1 + 1)"]', "network.layers.0 = 'dense(1 + 1)'", f"1 + 1 {NO_LITERAL}"),
    ('["dense(lambda: 1)"]', "network.layers.0 = 'dense(lambda: 1)'", f"lambda: 1 {NO_LITERAL}"),
    ('["dense(None)"]', "network.layers.0 = 'dense(None)'", f"None {NO_LITERAL}"),
    ("[\"dense(b'1')\"]", "network.layers.0 = \"dense(b'1')\"", f"b'1' {NO_LITERAL}"),
    ('["dense(*[1])"]', "network.layers.0 = 'dense(*[1])'", f"*[1] {NO_LITERAL}"),
    (
        '["densee(1)"]',
        "network.layers.0 = 'densee(1)'",
        f"allowed: {LAYERS}; did you mean 'dense'?",
    ),
    (
        "[{features = 1}]",
        "network.layers.0 = {'features': 1}",
        'must have a name, as in {name = "dense", features = 128}',
    ),
    (
        "[\"os:system('touch hacked')\"]",
        "network.layers.0 = \"os:system('touch hacked')\"",
        "'os' is Python's own module, which holds no factories",
    ),
    ('["dense()"]', "network.layers.0.features", f"is missing; {WHOLE}"),
    ('["dense"]', "network.layers.0.features", f"is missing; {WHOLE}"),
    ('[{name = "dense"}]', "network.layers.0.features", f"is missing; {WHOLE}"),
    ('["tanh", "dense(0)"]', "network.layers.1.features = 0", WHOLE),
    ('["dense(-3)"]', "network.layers.0.features = -3", WHOLE),
    ('["dense(1.0)"]', "network.layers.0.features = 1.0", WHOLE),
    ('["dense(True)"]', "network.layers.0.features = true", WHOLE),
    ("[\"dense('1')\"]", "network.layers.0.features = '1'", WHOLE),
    ('["dense([1])"]', "network.layers.0.features = [1]", WHOLE),
    ('["dense(2147483648)"]', "network.layers.0.features = 2147483648", INT32),
    ('["dense(1, scale=0)"]', "network.layers.0.scale = 0", POSITIVE),
    ('["dense(1, bias=0)"]', "network.layers.0.bias = 0", "must be true or false"),
    (
        "[\"dense(1, init='glorot')\"]",
        "network.layers.0.init = 'glorot'",
        f"must be {INITS}; did you mean 'glorot_normal'?",
    ),
    (
        '["dense(1, featurs=2)"]',
        "network.layers.0.featurs = 2",
        "unknown key; allowed: features, init, scale, bias, bias_init; did you mean 'features'?",
    ),
    ('["tanh(gain=2)"]', "network.layers.0.gain = 2", "unknown key; allowed: none here"),
    # what fits neither the data nor the rule
    (
        '["dense(4)", "tanh", "dense(3)"]',
        "network.layers.2",
        "one example of xor (2) gives outputs of shape (3,); it must be (1,)",
    ),
    (
        '["dense(4)", "gelu", "dense(1)"]',
        "system.name = 'hopfield'",
        "hopfield: layer 1 ('gelu') is not monotone, so it has no potential and no energy; allowed",
    ),
    (
        '["dense(4)", "tanh", "relu", "dense(1)"]',
        "system.name = 'hopfield'",
        "layer 2 ('relu'): an activation with no connection before it",
    ),
    (
        '["tanh", "dense(1)"]',
        "system.name = 'hopfield'",
        "layer 0 ('tanh'): an activation with no connection before it",
    ),
]


@pytest.mark.parametrize(("layers", "place", "remedy"), NETWORKS, ids=[row[0] for row in NETWORKS])
def test_a_wrong_network_is_named_by_its_layer(call, tmp_path, layers, place, remedy):
    path = write(tmp_path, network(layers))
    code, line = refused(call, tmp_path, "run", path)
    assert code == 2
    assert line.startswith(f"bpeq: {path}:{place}: {remedy}")


def test_a_missing_flatten_is_suggested(call, tmp_path):
    path = write(tmp_path, DIGITS.replace("dense(1)", "dense(10)"))
    line = (
        f"bpeq: {path}:network.layers.2: one example of digits (8×8×1) gives outputs of shape "
        '(8, 8, 10); it must be (10,); is a "flatten" missing?'
    )
    assert refused(call, tmp_path, "run", path) == (2, line)


def test_no_network_is_told_which_rule_needs_one(call, tmp_path):
    path = write(tmp_path, edited(f"[network]\n{NETWORK}\n", ""))
    line = f"bpeq: {path}:network.layers: is missing; the rule 'eqprop' needs a network"
    assert refused(call, tmp_path, "run", path) == (2, line)


def test_cross_entropy_on_a_regression_is_refused(call, tmp_path):
    text = CONFIG.replace('"xor"', '"diabetes"') + '[cost]\nname = "softmax_cross_entropy"\n'
    path = write(tmp_path, text)
    line = (
        f"bpeq: {path}:cost.name = 'softmax_cross_entropy': diabetes is a regression; "
        "use squared_error"
    )
    assert refused(call, tmp_path, "run", path) == (2, line)


def test_cross_entropy_on_a_single_binary_output_is_refused(call, tmp_path):
    path = write(tmp_path, CONFIG + '[cost]\nname = "softmax_cross_entropy"\n')
    code, line = refused(call, tmp_path, "run", path, "--set", "training.epochs=1")
    assert code == 2
    assert line.startswith(f"bpeq: {path}:cost.name = 'softmax_cross_entropy': ")


# --- what --set says ---------------------------------------------------------------------------

SETS = [
    ("rule.beta", "0", "0", f"must be a {BETA}"),
    ("rule.beta", "-0.1", "-0.1", f"must be a {BETA}"),
    ("rule.beta", "nan", "nan", f"must be a finite {BETA}"),
    ("rule.beta", "inf", "inf", f"must be a finite {BETA}"),
    ("rule.beta", "true", "true", f"must be a {BETA}"),
    ("rule.beta", "much", "'much'", f"must be a {BETA}"),
    ("rule.beta", "", "''", f"must be a {BETA}"),
    ("rule.beta", "[0.1]", "[0.1]", f"must be a {BETA}"),
    ("rule.beta", "{a = 1}", "{'a': 1}", f"must be a {BETA}"),
    ("rule.nudging", "both", "'both'", f"must be {NUDGINGS}"),
    (
        "rule.nudging",
        "centred",
        "'centred'",
        f"must be {NUDGINGS}; did you mean 'centered'?",
    ),
    ("rule.name", "3", "3", f"allowed: {RULES}"),
    ("rule.name", "eqprp", "'eqprp'", f"allowed: {RULES}; did you mean 'eqprop'?"),
    ("rule", "eqprop", "'eqprop'", "must be a section; did you mean rule.name?"),
    ("rules", "1", "1", FOLDS),
    ("rules.eqprop", "[]", "[]", FOLDS),
    ("rules.eqprop.beta", "-1", "-1", f"must be a {BETA}"),
    ("rules.backprop.training.epochs", "0", "0", WHOLE),
    ("controls.optimizer.learning_rate", "-1", "-1", POSITIVE),
    ("controls", "3", "3", FOLDS),
    ("data", "xor", "'xor'", "must be a section; did you mean data.name?"),
    ("network", "[]", "[]", FOLDS),
    ("network.layers", "dense(1)", "'dense(1)'", NO_LIST),
    ("network.layers.0", "7", "7", CALL),
    ("network.layers.0.features", "0", "0", WHOLE),
    (
        "network.layers.0.featurs",
        "5",
        "5",
        "unknown key; allowed: features, init, scale, bias, bias_init; did you mean 'features'?",
    ),
    (
        "network.layers.9.features",
        "5",
        "5",
        "no such entry of network.layers; allowed: 0 to 2",
    ),
    ("network.layers.3", "tanh", "'tanh'", "no such entry of network.layers; allowed: 0 to 2"),
    (
        "network.layers.-1.features",
        "5",
        "5",
        "no such entry of network.layers; allowed: 0 to 2",
    ),
    ("network.layers.first", "5", "5", "no such entry of network.layers; allowed: 0 to 2"),
    (
        "network.layers.0.features.x",
        "5",
        "5",
        "network.layers.0.features is a single value and has no keys",
    ),
    ("optimizer.name.x", "5", "5", "optimizer.name is a single value and has no keys"),
    ("optimizer.learning_rate", "0", "0", POSITIVE),
    ("optimizer.learning_rate", "-1", "-1", POSITIVE),
    ("optimizer.learning_rate", "1e400", "inf", "must be a finite number > 0"),
    ("optimizer.learning_rate", "[0.1]", "[0.1]", POSITIVE),
    ("optimizer.b1", "1.0", "1.0", FRACTION),
    ("optimizer.layer_rates", "0.1", "0.1", RATES),
    ("optimizer.layer_rates", "[-0.1, 0.1]", "[-0.1, 0.1]", RATES),
    ("optimizer.layer_rates", '["a"]', "['a']", RATES),
    ("optimizer.clip_norm", "-1", "-1", "must be a number > 0"),
    ("optimizer.clip_norm", "0", "0", "must be a number > 0"),
    ("training", "3", "3", FOLDS),
    ("training.epochs", "0", "0", WHOLE),
    ("training.epochs", "-1", "-1", WHOLE),
    ("training.epochs", "1.5", "1.5", WHOLE),
    ("training.epochs", "true", "true", WHOLE),
    ("training.epochs", '"3"', "'3'", WHOLE),
    ("training.epochs", "99999999999999999999", "99999999999999999999", INT32),
    ("training.batch_size", "0", "0", WHOLE),
    ("training.evaluate_every", "0", "0", WHOLE),
    ("seeds", "0", "0", WHOLE),
    ("seeds", "2.0", "2.0", WHOLE),
    ("seed", "-1", "-1", SEED),
    ("seed", "4294967296", "4294967296", SEED),
    ("precision", "float16", "'float16'", "must be 'float32' | 'float64'; did you mean 'float64'?"),
    ("precision", "64", "64", "must be 'float32' | 'float64'"),
    ("solvers", "5", "5", FOLDS),
    ("solvers.free", "5", "5", FOLDS),
    ("solvers.free.damping", "1", "1", FRACTION),
    ("solvers.free.damping", "-0.5", "-0.5", FRACTION),
    ("solvers.free.steps", "0", "0", WHOLE),
    ("solvers.free.record", "1", "1", "must be true or false"),
    (
        "system.output",
        "stat",
        "'stat'",
        "must be 'state' | 'readout'; did you mean 'state'?",
    ),
    ("experiment", "3", "3", "must be a text"),
    ("experiment", "no.py", "'no.py'", "no such study file beside the config or here"),
    ("nope", "1", "1", f"unknown key; allowed: {TOP}, {SECTIONS}"),
    # known only once the data are there
    ("training.batch_size", "5", "5", "must be 1 to 4, the training set"),
    (
        "optimizer.layer_rates",
        "[0.1]",
        "[0.1]",
        "layer_rates: 1 rates, the network has 2 blocks: dense_1, dense_2",
    ),
]


@pytest.mark.parametrize(
    ("key", "value", "shown", "remedy"), SETS, ids=[f"{row[0]}={row[1]}" for row in SETS]
)
def test_a_wrong_override_is_named_with_set(call, tmp_path, config, key, value, shown, remedy):
    line = f"bpeq: --set {key} = {shown}: {remedy}"
    assert refused(call, tmp_path, "run", config, "--set", f"{key}={value}") == (2, line)


def test_an_override_of_a_misspelt_section_names_the_section(call, tmp_path, config):
    line = (
        f"bpeq: --set trainning = {{'epochs': 3}}: unknown key; allowed: {TOP}, {SECTIONS}; "
        "did you mean 'training'?"
    )
    assert refused(call, tmp_path, "run", config, "--set", "trainning.epochs=3") == (2, line)


def test_an_override_with_a_whole_call_names_the_argument(call, tmp_path, config):
    line = f"bpeq: --set network.layers.0.features = 0: {WHOLE}"
    assert refused(call, tmp_path, "run", config, "--set", "network.layers.0=dense(0)") == (2, line)


@pytest.mark.parametrize("text", ["rule.beta", "=1", "", "rule.=1", ".rule=1", "a..b=1", "  = 2"])
def test_an_override_without_key_and_value_is_refused(call, tmp_path, config, text):
    given = " ".join(["--set", *text.split()])
    line = f"bpeq: {given}: must be key=value, such as rule.beta=0.1"
    assert refused(call, tmp_path, "run", config, "--set", text) == (2, line)


@pytest.mark.parametrize("text", ["[" * 5000, "9" * 5000], ids=["brackets", "digits"])
def test_an_override_beyond_toml_is_taken_as_text(call, tmp_path, config, text):
    argv = ["run", config, "--set", f"optimizer.learning_rate={text}"]
    shown = f"'{text[:56]}..."
    line = f"bpeq: --set optimizer.learning_rate = {shown}: {POSITIVE}"
    assert refused(call, tmp_path, *argv) == (2, line)


# --- the command line itself -------------------------------------------------------------------

COMMANDS = [
    (["run"], "Missing argument 'CONFIG'."),
    (["rnu", "c.toml"], "No such command 'rnu'. Did you mean 'run'?"),
    (["run", "c.toml", "--epochs", "3"], "No such option: --epochs"),
    (["run", "c.toml", "more"], "Got unexpected extra argument(s) (more)"),
    (["run", "c.toml", "--set"], "Option '--set' requires an argument."),
    (["run", "c.toml", "--seeds", "x"], "Invalid value for '--seeds': "),
    (["run", "c.toml", "--seeds", "1.5"], "Invalid value for '--seeds': "),
    (["compare", "c.toml"], "Missing option '--rules'."),
    (["compare", "c.toml", "--rules", ""], "--rules = '': must be different rules, such as"),
    (["compare", "c.toml", "--rules", ","], "--rules = ',': must be different rules, such as"),
    (
        ["compare", "c.toml", "--rules", "eqprop,eqprop"],
        "--rules = 'eqprop,eqprop': must be different rules, such as backprop,eqprop",
    ),
    (
        ["compare", "c.toml", "--rules", "backprop,eqprp"],
        f"--rules = 'eqprp': allowed: {RULES}; did you mean 'eqprop'?",
    ),
    (
        ["compare", "c.toml", "--rules", "backprop,nowhere:rule"],
        "--rules = 'nowhere:rule': cannot import 'nowhere': No module named 'nowhere'",
    ),
    (
        ["compare", "c.toml", "--rules", "backprop", "--set", "rule.bta=1"],
        f"--set rule.bta = 1: unknown key; allowed: {EQPROP}, name; did you mean 'beta'?",
    ),
    (["check"], "Missing argument 'CONFIG'."),
    (["check", "no.toml"], "no.toml: cannot read the config: No such file or directory"),
    (["show"], "Missing argument 'what'."),
    (["show", "ruls"], "show ruls: allowed: layers, costs, systems, imperfections, solvers, "),
    (
        ["show", "rule", "eqprp"],
        f"show rule eqprp: allowed: {RULES}; did you mean 'eqprop'?",
    ),
    (["show", "config"], "show config: needs a file, such as bpeq show config configs/xor.toml"),
    (["show", "config", "no.toml"], "no.toml: cannot read the config: No such file or directory"),
    (["report", "nowhere"], "nowhere: "),
]


@pytest.mark.parametrize(("argv", "line"), COMMANDS, ids=[" ".join(row[0]) for row in COMMANDS])
def test_a_wrong_command_is_refused(call, tmp_path, config, argv, line):
    code, said = refused(call, tmp_path, *argv)
    assert code == 2
    assert said.startswith(f"bpeq: {line}")


def test_zero_seeds_are_refused(call, tmp_path, config):
    code, line = refused(call, tmp_path, "run", config, "--seeds", "0")
    assert code == 2
    assert "seeds" in line
    assert "0" in line
    assert ">= 1" in line or "x>=1" in line


def test_a_beta_below_the_floor_is_one_line_beside_a_run_that_is_done(call, tmp_path, config):
    with warnings.catch_warnings(action="default"):  # as a user's process has it
        said = call("run", config, "--set", "rule.beta=1e-6", "--out", "out", "--seeds", 2)
    floor = "is below 0.0001, where round-off in float32 buries the contrast"
    assert (said.code, said.err) == (0, [f"bpeq: eqprop: beta = 1e-06 {floor}"])


# --- where results go --------------------------------------------------------------------------


@pytest.mark.parametrize(
    "mark", ["config.toml", "summary.json", "metrics.jsonl", "comparison.json"]
)
@pytest.mark.parametrize(
    "command", [["run"], ["compare", "--rules", "backprop"]], ids=lambda c: c[0]
)
def test_a_folder_that_holds_a_run_stays_byte_for_byte(call, tmp_path, config, command, mark):
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / mark).write_bytes(b"\x00 kept")
    argv = [command[0], config, *command[1:], "--out", "old"]
    code, line = refused(call, tmp_path, *argv)
    assert (code, line.count("\n")) == (2, 0)
    assert line.startswith("bpeq: the folder old already holds a run; name a new one")
    # Only what a run or a comparison can continue from names the way to do so.
    assert ("--resume" in line) == (mark in ("config.toml", "comparison.json"))


def test_a_folder_with_other_files_stays_as_it_is(call, tmp_path, config):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("kept")
    line = "bpeq: the folder mine is not empty; name a new one"
    assert refused(call, tmp_path, "run", config, "--out", "mine") == (2, line)


def test_a_file_as_the_output_folder_is_refused(call, tmp_path, config):
    (tmp_path / "results").write_text("kept")
    line = "bpeq: results is a file, not a folder"
    assert refused(call, tmp_path, "run", config, "--out", "results") == (2, line)


def test_a_folder_below_a_file_is_the_disks_fault(call, tmp_path, config):
    (tmp_path / "results").write_text("kept")
    line = "bpeq: results/one: cannot write there: Not a directory"
    assert refused(call, tmp_path, "run", config, "--out", "results/one") == (3, line)


# --- data --------------------------------------------------------------------------------------


def of_data(tmp_path: Path, settings: str) -> Path:
    return write(tmp_path, edited('name = "xor"', settings))


@pytest.fixture
def offline(tmp_path, monkeypatch) -> Path:
    """$BPEQ_DATA, an empty cache, and no net."""
    import pooch

    def retrieve(*args, **kwargs):
        raise ConnectionError

    monkeypatch.setattr(pooch, "retrieve", retrieve)
    monkeypatch.setattr(pooch, "os_cache", lambda name: tmp_path / "cache")
    monkeypatch.setenv("BPEQ_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def test_absent_mnist_says_where_it_was_looked_for(call, tmp_path, offline):
    path = of_data(tmp_path, 'name = "mnist"')
    code, line = refused(call, tmp_path, "run", path)
    name = "mnist/train-images-idx3-ubyte.gz"
    assert code == 3
    assert line == (
        f"bpeq: train-images-idx3-ubyte.gz is missing: looked for {tmp_path}/data/{name} and "
        f"{tmp_path}/cache/{name}, download from https://ossci-datasets.s3.amazonaws.com/mnist/ "
        f"failed (ConnectionError); set BPEQ_DATA to the folder that holds {name}"
    )


def idx(shape: tuple[int, ...], magic: int = 0x0800) -> bytes:
    header = struct.pack(f">{1 + len(shape)}I", magic + len(shape), *shape)
    return header + bytes(int(np.prod(shape)))


IDX = {
    "truncated": (gzip.compress(idx((2, 28, 28))[:-1]), "the header says 2 × 28 × 28 = 1568"),
    "cut gzip": (gzip.compress(idx((2, 28, 28)))[:-9], "the gzip stream is truncated"),
    "wrong magic": (gzip.compress(b"\x01" + idx((2, 28, 28))), "magic 0x01000008, expected 0x0000"),
    "other type": (gzip.compress(idx((2, 28, 28), 0x1800)), "type code 0x18, expected 0x08"),
    "labels for images": (gzip.compress(idx((2,))), "magic 0x00000801, expected 0x00000803"),
    "empty": (b"", "the header is truncated: 0 bytes of its first 4"),
    "no gzip": (b"hello", "not gzip, or a damaged one"),
    "other images": (gzip.compress(idx((2, 28, 28))), "md5 of the uncompressed bytes is "),
}


@pytest.mark.parametrize(("content", "problem"), IDX.values(), ids=IDX)
def test_a_damaged_idx_file_is_the_datas_fault(call, tmp_path, offline, content, problem):
    (offline / "mnist").mkdir()
    for name in ("train-images-idx3", "train-labels-idx1", "t10k-images-idx3", "t10k-labels-idx1"):
        (offline / "mnist" / f"{name}-ubyte.gz").write_bytes(content)
    code, line = refused(call, tmp_path, "run", of_data(tmp_path, 'name = "mnist"'))
    assert code == 3
    assert line.startswith(f"bpeq: {offline}/mnist/train-images-idx3-ubyte.gz: {problem}")


NPZ = {
    "negative": ([0, 1] * 9 + [0, -1], "", "y[19] is -1, negative: labels are 0, 1, 2, …"),
    "too high": (
        [0, 1] * 9 + [0, 5],
        "classes = 2",
        "y[19] is 5, not below 2, the number of classes",
    ),
    "a gap": ([0, 3] * 10, "", "labels: class 1 has no examples though labels run up to 3; set"),
}


@pytest.mark.parametrize(("labels", "settings", "problem"), NPZ.values(), ids=NPZ)
def test_labels_out_of_range_are_the_datas_fault(call, tmp_path, labels, settings, problem):
    np.savez(tmp_path / "mine.npz", x=np.ones((20, 2)), y=np.array(labels))
    path = of_data(tmp_path, f'name = "npz"\npath = "mine.npz"\n{settings}')
    code, line = refused(call, tmp_path, "run", path)
    assert code == 3
    assert line.startswith(f"bpeq: {tmp_path}/mine.npz: {problem}")


def test_an_absent_npz_is_the_datas_fault(call, tmp_path):
    path = of_data(tmp_path, 'name = "npz"\npath = "mine.npz"')
    assert refused(call, tmp_path, "run", path) == (3, "bpeq: mine.npz: no such file")


def test_a_path_that_is_no_files_is_the_datas_fault(call, tmp_path):
    path = of_data(tmp_path, 'name = "npz"\npath = "."')
    line = f"bpeq: {tmp_path}: cannot be read: Is a directory"
    assert refused(call, tmp_path, "run", path) == (3, line)
    long = "n" * 5000
    path = of_data(tmp_path, f'name = "npz"\npath = "{long}"')
    line = f"bpeq: {long}: cannot be read: File name too long"
    assert refused(call, tmp_path, "run", path) == (3, line)


def test_a_data_file_beside_the_config_is_found_from_elsewhere(call, tmp_path, monkeypatch):
    np.savez(tmp_path / "mine.npz", x=np.ones((20, 2)), y=np.array([0, 3] * 10))
    path = of_data(tmp_path, 'name = "npz"\npath = "mine.npz"')
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, line = refused(call, tmp_path, "run", path)
    assert code == 3
    assert line.startswith(f"bpeq: {tmp_path}/mine.npz: labels: class 1 has no examples")


def test_a_csv_without_the_target_column_is_the_configs_fault(call, tmp_path):
    write(tmp_path, "a,b\n1,0\n2,1\n", "t.csv")
    path = of_data(tmp_path, 'name = "csv"\npath = "t.csv"\ntarget = "c"')
    line = f"bpeq: {path}:data.target = 'c': the columns of {tmp_path}/t.csv are 'a', 'b'"
    assert refused(call, tmp_path, "run", path) == (2, line)


def test_images_held_out_must_leave_some_to_train_on(call, tmp_path, offline):
    path = of_data(tmp_path, 'name = "mnist"\nvalidation = 60000')
    line = f"bpeq: {path}:data.validation = 60000: must be a whole number >= 0 and < 60000"
    assert refused(call, tmp_path, "run", path) == (2, line)


# --- dotted paths ------------------------------------------------------------------------------

MODULE = """\
from bpeq.data import Dataset
from bpeq.layers import dense
from bpeq.types import Layer, Schedule

number = 3

def nothing() -> Layer:
    return None

def no_data() -> Dataset:
    return None

def needs(cost_: Layer) -> Layer:
    return cost_

def follows(cost_: Layer) -> Schedule:
    return cost_

def unreadable(gain: Missing) -> Layer:
    return dense(1)

def unreadable_result(gain: float = 1.0) -> Missing:
    return dense(1)

def perhaps() -> Layer | None:
    return dense(1)
"""
MODULE = "from __future__ import annotations\n" + MODULE

PATHS = [
    ("rule.name", "nowhere:rule", "cannot import 'nowhere': No module named 'nowhere'"),
    ("system.name", "cli_parts:absent", "the module 'cli_parts' has no factory 'absent'"),
    ("rule.name", "cli_parts:number", "the module 'cli_parts' has no factory 'number'"),
    ("rule.name", "cli_parts:", "'cli_parts:' is no dotted path such as 'package.module:factory'"),
    ("rule.name", ":rule", "':rule' is no dotted path such as 'package.module:factory'"),
    ("rule.name", "..a:rule", "'..a:rule' is no dotted path such as 'package.module:factory'"),
    ("data.name", "builtins:exec", "'builtins' is Python's own module, which holds no factories"),
    ("schedule.name", "cli_parts:follows", "missing a required argument: 'cost_'"),
    ("data.name", "cli_parts:no_data", "gives a NoneType; it must give a Dataset"),
    ("network.layers.1", "cli_parts:nothing", "gives a NoneType; it must give a Layer"),
    (
        "network.layers.1",
        "cli_parts:needs",
        "missing a required argument: 'cost_'",
    ),
]


@pytest.mark.parametrize(("key", "name", "remedy"), PATHS, ids=[" ".join(row[:2]) for row in PATHS])
def test_a_dotted_path_that_gives_no_such_part_is_refused(
    call, tmp_path, config, monkeypatch, key, name, remedy
):
    write(tmp_path, MODULE, "cli_parts.py")
    line = f"bpeq: --set {key} = {name!r}: {remedy}"
    assert refused(call, tmp_path, "run", config, "--set", f"{key}={name}") == (2, line)


UNDECLARED = [
    ("layers", "numpy:savetxt", "declares no result"),
    ("layers", "pip._internal.cli.main:main", "declares the result int"),
    ("optimizers", "bpeq.layers:flatten", "declares the result Layer"),
    ("optimizers", "optax:cosine_decay_schedule", "from optax"),
    ("rules", "bpeq.layers:tanh", "def tanh(...) -> LearningRule, from bpeq.types"),
    ("systems", "bpeq.layers:tanh", "-> System, from bpeq.types"),
    ("costs", "bpeq.layers:tanh", "-> Cost, from bpeq.types"),
    ("data", "bpeq.layers:tanh", "-> Dataset, from bpeq.data"),
    ("solvers", "bpeq.layers:tanh", "-> Solver, from bpeq.types"),
    ("schedules", "bpeq.layers:tanh", "-> Schedule, from bpeq.types"),
    ("imperfections", "bpeq.layers:tanh", "-> System | LearningRule, from bpeq.types"),
    ("layers", "bpeq.types:Layer", "declares no result"),
    ("layers", "cli_parts:perhaps", "def perhaps(...) -> Layer, from"),
    ("layers", "cli_parts:unreadable_result", "cannot be read (name 'Missing' is not defined)"),
]


@pytest.mark.parametrize(("kind", "name", "reason"), UNDECLARED, ids=[r[1] for r in UNDECLARED])
def test_a_factory_that_does_not_declare_its_result_is_not_a_factory(
    tmp_path, monkeypatch, kind, name, reason
):
    write(tmp_path, MODULE, "cli_parts.py")
    with pytest.raises(ValueError, match=re.escape(reason)):
        registry.resolve(kind, name, tmp_path)


def test_every_registered_factory_and_optaxs_own_declare_their_result():
    for kind, table in registry.KINDS.items():
        for name, factory in table.items():
            path = f"{inspect.unwrap(factory).__module__}:{name}"
            assert registry.resolve(kind, path) is factory
    for name in ("lion", "adamw", "adafactor", "chain"):
        assert registry.resolve("optimizers", f"optax:{name}") is getattr(optax, name)


def test_a_function_of_another_package_is_refused_before_it_is_called(call, tmp_path, config):
    for layer in ("numpy:savetxt('PWN', [1.0])", "numpy:savetxt(fname='PWN', X=[1.0])"):
        pair = f'network.layers=["{layer}", "dense(1)"]'
        code, line = refused(call, tmp_path, "run", config, "--set", pair)
        assert (code, "declares no result" in line) == (2, True)


def test_an_annotation_that_cannot_be_read_is_an_error_where_its_value_is_needed(
    call, tmp_path, config
):
    write(tmp_path, MODULE, "cli_parts.py")
    pair = 'network.layers=["cli_parts:unreadable"]'
    code, line = refused(call, tmp_path, "run", config, "--set", pair)
    assert line.endswith("its annotation cannot be read: name 'Missing' is not defined")
    assert (code, "network.layers.0.gain" in line) == (2, True)


def test_an_optimizer_of_optax_trains_from_a_config(call, tmp_path, config):
    """One of its annotations cannot be read, and the config need not set it."""
    hints = registry.read_annotations(optax.lion)
    assert isinstance(hints["mask"], registry.Unreadable)
    said = call("run", config, "--set", "optimizer.name=optax:lion", "--out", tmp_path / "out")
    assert (said.code, said.err) == (0, [])
    kept = load_config(tmp_path / "out" / "config.toml").optimizer.settings
    assert (kept["learning_rate"], kept["b1"], "mask" in kept) == (0.01, 0.9, False)


@pytest.mark.parametrize(
    ("code", "problem"),
    [
        ("x = = 1", "SyntaxError: invalid syntax (cli_broken.py, line 1)"),
        ("import nowhere", "No module named 'nowhere'"),
        ("\nx = 1 / 0", "cli_broken.py, line 2: ZeroDivisionError: division by zero"),
    ],
)
def test_a_users_module_that_fails_is_told_where(
    call, tmp_path, config, monkeypatch, code, problem
):
    write(tmp_path, code, "cli_broken.py")
    line = f"bpeq: --set rule.name = 'cli_broken:rule': cannot import 'cli_broken': {problem}"
    path = list(sys.path)
    said = refused(call, tmp_path, "run", config, "--set", "rule.name=cli_broken:rule")
    assert said == (2, line)
    assert sys.path == path


# --- what works --------------------------------------------------------------------------------


def test_help_names_the_commands(call):
    said = call("--help")
    assert said.code == 0
    assert said.err == []
    for command in ("run", "compare", "check", "report", "show"):
        assert f"\n  {command} " in said.out


def test_show_lists_every_rule_with_its_first_line(call):
    said = call("show", "rules")
    names = [line.split()[0] for line in said.out.splitlines()]
    assert (said.code, names) == (0, RULES.split(", "))


def test_show_rule_gives_ranges_defaults_and_docstring(call):
    said = call("show", "rule", "eqprop")
    lines = said.out.splitlines()
    assert lines[:8] == [
        "eqprop",
        "  beta           a number > 0 or 'auto', default 0.1",
        f"  nudging        {NUDGINGS}, default 'centered'",
        "  points         a whole number >= 2, default 4",
        "  turns          a whole number >= 2, default 2",
        "  start          'own' | 'zeros' | 'feedforward' | 'carried' | 'kept', default 'own'",
        "  relaxation     'same' | 'bfloat16' | 'float16', default 'same'",
        "  wired from the rest of the config: system (System), cost (Cost), free (Solver), "
        "nudged (Solver), evaluation (Solver)",
    ]
    assert "bridging the gap between energy-based" in said.out


def test_show_says_what_must_be_given(call):
    assert call("show", "layer", "dense").out.splitlines()[1] == (
        "  features       a whole number >= 1, required"
    )


CHECKED = """\
from bpeq.layers import dense
from bpeq.settings import Count, Positive
from bpeq.types import Layer


def scaled(features: Count, error: Positive = 1.0) -> Layer:
    made = dense(features)

    def backward(params, feedback, x, dy):
        dparams, dx = made.backward(params, feedback, x, dy)
        return dparams, error * dx

    return made._replace(name="scaled", backward=backward)
"""


@pytest.mark.parametrize("error", [1.0, 1.001])
def test_check_exits_4_where_a_backward_is_wrong_by_a_thousandth(
    call, tmp_path, config, monkeypatch, error
):
    write(tmp_path, CHECKED, "cli_layer.py")
    said = call("check", config, "--set", f'network.layers=["cli_layer:scaled(1, error={error})"]')
    rows = [re.split(r"\s{2,}", line.strip()) for line in said.out.splitlines() if "float" in line]
    passed = {row[0]: row[3] == "ok" for row in rows}
    right, rows = error == 1.0, ("0: scaled", "whole network")
    wrong = [f"{row} ({dtype})" for dtype in ("float64", "float32") for row in rows]
    line = f"bpeq: {config}: 4 of 6 rows are past tolerance: {', '.join(wrong)}"
    assert (said.code, said.err) == ((0, []) if right else (4, [line]))
    assert passed == {  # an error in dx spoils the layer and the whole, not the energy's ∂E/∂θ
        f"{name} ({dtype})": right or name == "energy ∂E/∂θ"
        for name in ("0: scaled", "whole network", "energy ∂E/∂θ")
        for dtype in ("float64", "float32")
    }


SPRING = """\
import jax.numpy as jnp
from bpeq.systems import from_energy
from bpeq.types import System


def spring(stiffness: float = 1.0) -> System:
    def energy(w, s, x):
        return 0.5 * stiffness * jnp.sum(s * s) - s @ (w @ x)

    start = lambda w, x: jnp.zeros(1, x.dtype)
    init = lambda key, shape: (jnp.ones((1, *shape)), (1,))
    return from_energy(energy, start, lambda w, s: s, init)
"""


@pytest.mark.parametrize("stiffness", [1.0, 0.15])
def test_check_energy_exits_4_where_the_rules_beta_is_beyond_the_curvature(
    call, tmp_path, stiffness
):
    """A spring's curvature is its stiffness, and the config's β is 0.2."""
    write(tmp_path, SPRING, "cli_layer.py")
    config = write(tmp_path, edited(f"[network]\n{NETWORK}\n", ""))
    system = ["--set", "system.name=cli_layer:spring", "--set", f"system.stiffness={stiffness}"]
    said = call("check", config, "--energy", *system)
    bounded = "ok" if stiffness > 0.2 else "FAILS"
    names = "gradient symmetric bounded unique holomorphic corners alone".split()  # noqa: SIM905
    rows = [line.split() for line in said.out.split("contract")[1].splitlines()]
    verdicts = {row[0]: row[1] for row in rows if row and row[0] in names}
    assert verdicts == {**dict.fromkeys(names, "ok"), "bounded": bounded}
    line = f"bpeq: {config}: the energy breaks its contract: bounded"
    assert (said.code, said.err) == ((0, []) if stiffness > 0.2 else (4, [line]))


def test_check_energy_of_a_rule_without_one_is_refused(call, tmp_path, config):
    line = "bpeq: --set rule.name = 'backprop': settles no system with an energy to check"
    said = refused(call, tmp_path, "check", config, "--energy", "--set", "rule.name=backprop")
    assert said == (2, line)


def test_two_modules_of_one_name_are_told_apart(tmp_path):
    """The second one would silently be the first: Python keeps one module of a name."""
    name = "one_name_for_two_modules"
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / f"{name}.py").write_text(
            "from bpeq.types import Layer\n\ndef make() -> Layer:\n    return None\n"
        )
    try:
        first = registry.resolve("layers", f"{name}:make", tmp_path / "a")
        assert registry.resolve("layers", f"{name}:make", tmp_path / "a") is first
        with pytest.raises(ValueError, match=r"already loaded from .*a/one_name.*not .*b/one_name"):
            registry.resolve("layers", f"{name}:make", tmp_path / "b")
    finally:
        sys.modules.pop(name, None)


def test_compiled_programs_are_kept_in_the_users_cache(tmp_path, monkeypatch):
    """Unless the environment names a place of its own."""
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    entry._keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path / "bpeq" / "programs")
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "mine")
    entry._keep_programs()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == "mine"
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    entry._keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


MAPPED = """
import ctypes
from bpeq.cli import entry
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
class Info(ctypes.Structure):
    _fields_ = [(name, ctypes.c_size_t) for name in "arena ordblks smblks hblks hblkhd".split()]
    _fields_ += [(f"more{i}", ctypes.c_size_t) for i in range(5)]
library.mallinfo2.restype = Info
def mapped():
    before = library.mallinfo2().hblkhd
    assert library.malloc(100 << 20)
    return library.mallinfo2().hblkhd - before >= 100 << 20
first = mapped()
entry.keep_memory()
print(first, mapped())
"""


@pytest.mark.skipif(
    platform.libc_ver() < ("glibc", "2.36"), reason="others may refuse, or not tell"
)
@pytest.mark.parametrize(
    ("given", "mapped"),
    [
        ({}, False),
        ({"MALLOC_MMAP_THRESHOLD_": "1"}, True),
        ({"GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}, True),
    ],
)
def test_large_pieces_of_memory_are_not_mapped_anew(given, mapped):
    """Unless the environment has a setting of its own."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", MAPPED]
    done = subprocess.run(command, env=clean | given, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["True", str(mapped)]


def test_a_user_without_a_home_compiles_afresh(monkeypatch):
    def homeless(name):
        raise RuntimeError("could not determine the home directory")

    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setattr(platformdirs, "user_cache_path", homeless)
    entry._keep_programs()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


def test_a_half_written_program_in_the_cache_is_passed_over_in_silence(capfd):
    """JAX warns of it in every later run, compiles afresh, and leaves it there."""
    shown = []
    show = entry._one_line(lambda *args, **more: shown.append(str(args[0])))
    at = (UserWarning, "compiler.py", 1)
    show(UserWarning("Error reading persistent compilation cache entry for 'jit_f': x"), *at)
    show(UserWarning("another"), *at)
    assert shown == ["another"]
    assert capfd.readouterr().err == ""
