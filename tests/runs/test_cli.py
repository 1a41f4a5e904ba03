"""What a user gets wrong: an exit code, one line that says what is allowed, and nothing written."""

from __future__ import annotations

import gzip
import re
import struct
import textwrap
from pathlib import Path

import numpy as np
import pytest

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
TOP = "seed, seeds, precision, experiment, folder"
SECTIONS = (
    "data, cost, system, rule, optimizer, schedule, network, solvers, training, rules, controls"
)
RULES = "backprop, autodiff, eqprop, recurrent_backprop"
OWN = "cost, system, optimizer, schedule, network, solvers, training"
DATA = "xor, digits, diabetes, mnist, fashion_mnist, npz, csv"
INITS = (
    "'zeros' | 'normal' | 'uniform' | 'fan_in_uniform' | 'glorot_uniform' | 'glorot_normal' | "
    "'he_uniform' | 'he_normal' | 'lecun_normal' | 'orthogonal'"
)
WHOLE, POSITIVE, RATE = "must be a whole number >= 1", "must be a number > 0", "must be a number"
INT32 = f"{WHOLE} and < 2147483648"
SEED = "must be a whole number >= 0 and < 4294967296"
FRACTION = "must be a number >= 0 and < 1"
RATES = "must be a list, each entry a number >= 0"
FOLDS = "must be a section"
CALL = 'must be a call such as "dense(128)"'
PHASES = "adjoint, free, nudged"
NO_LITERAL = "is not a literal that a config can hold"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """Runs without --out would be written below the working directory."""
    monkeypatch.chdir(tmp_path)


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


def below(section: str, line: str) -> str:
    """The config with a line put into a section, which is added where it is missing."""
    header = f"[{section}]\n"
    return (
        edited(header, f"{header}{line}\n")
        if header in CONFIG
        else f"{CONFIG}\n{header}{line}\n"
    )


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
    ('name = "xor"', 'name = "xor"\nrows = 3', "data.rows = 3", "unknown key; allowed: none here"),
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
        "unknown key; allowed: beta, nudging; did you mean 'beta'?",
    ),
    (
        "beta = 0.2",
        "bta = 0.2",
        "rules.eqprop.bta = 0.2",
        f"unknown key; allowed: beta, nudging, {OWN}; did you mean 'beta'?",
    ),
    (
        "steps = 4",
        "step = 4",
        "solvers.free.step = 4",
        "unknown key; allowed: steps, tolerance, damping, record; did you mean 'steps'?",
    ),
    (
        "steps = 2",
        "steps = 2\nmax_steps = 9",
        "solvers.nudged.max_steps = 9",
        "unknown key; allowed: steps, tolerance, damping, record; did you mean 'steps'?",
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
        "unknown key; allowed: learning_rate, b1, b2, eps",
    ),
    (
        "epochs = 2",
        "epoch = 2",
        "training.epoch = 2",
        "unknown key; allowed: epochs, batch_size, evaluate_every; did you mean 'epochs'?",
    ),
    (
        "[training]",
        '[cost]\nname = "squared_error"\nhalf = true\n[training]',
        "cost.half = true",
        "unknown key; allowed: none here",
    ),
    (
        "[training]",
        '[system]\nname = "hopfield"\noutputs = "state"\n[training]',
        "system.outputs = 'state'",
        "unknown key; allowed: output, schedule; did you mean 'output'?",
    ),
    (
        "[training]",
        '[schedule]\nname = "cosine"\nwarm = 0.1\n[training]',
        "schedule.warm = 0.1",
        "unknown key; allowed: warmup, final; did you mean 'warmup'?",
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
        "allowed: sgd, momentum, rmsprop, adam, adamw; did you mean 'adam'?",
    ),
    (
        'name = "fixed_steps"\nsteps = 4',
        'name = "fixed_step"\nsteps = 4',
        "solvers.free.name = 'fixed_step'",
        "allowed: fixed_steps, fixed_point; did you mean 'fixed_steps'?",
    ),
    (
        "[training]",
        '[system]\nname = "hopfeild"\n[training]',
        "system.name = 'hopfeild'",
        "allowed: hopfield; did you mean 'hopfield'?",
    ),
    (
        "[training]",
        '[cost]\nname = "square_error"\n[training]',
        "cost.name = 'square_error'",
        "allowed: squared_error, softmax_cross_entropy; did you mean 'squared_error'?",
    ),
    (
        "[training]",
        '[schedule]\nname = "cosin"\n[training]',
        "schedule.name = 'cosin'",
        "allowed: constant, cosine, linear_decay, exponential; did you mean 'cosine'?",
    ),
    # wrong types and values out of range, where the file has them
    ("seed = 0", "seed = 0.0", "seed = 0.0", SEED),
    ("seed = 0", "seed = 1979-05-27", "seed = datetime.date(1979, 5, 27)", SEED),
    ("seed = 0", "training = 3\nseed = 0", None, None),  # a second [training]: malformed
    ("beta = 0.2", "beta = 0", "rules.eqprop.beta = 0", POSITIVE),
    ("beta = 0.2", "beta = nan", "rules.eqprop.beta = nan", "must be a finite number > 0"),
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
        f"unknown key; allowed: beta, nudging, {OWN}",
    ),
    ('name = "eqprop"', 'name = ["eqprop"]', "rule.name = ['eqprop']", f"allowed: {RULES}"),
    ('name = "xor"', "name = {a = 1}", "data.name = {'a': 1}", f"allowed: {DATA}"),
    ('[rule]\nname = "eqprop"', "[[rule]]", "rule = [{}]", FOLDS),
    ("[solvers.free]", "[[solvers.free]]", None, None),
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
        "allowed: sgd, momentum, rmsprop, adam, adamw; did you mean 'adam'?",
    ),
    ("[training]", "[controls]\ncost = 3\n[training]", "controls.cost = 3", FOLDS),
]


@pytest.mark.parametrize(
    ("old", "new", "place", "remedy"),
    [row for row in IN_FILE if row[2]],
    ids=[row[2] for row in IN_FILE if row[2]],
)
def test_a_wrong_entry_is_named_with_its_file(call, tmp_path, old, new, place, remedy):
    path = write(tmp_path, edited(old, new))
    line = f"bpeq: {path}:{place}: {remedy}"
    assert refused(call, tmp_path, "run", path) == (2, line)
