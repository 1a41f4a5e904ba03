"""What a config means: whose settings apply, what an override reaches, and that it can be kept."""

from __future__ import annotations

import copy
import string
import tomllib
from pathlib import Path
from typing import Annotated, Any

import pytest
import tomli_w
from annotated_types import Ge
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from bpeq.config import registry
from bpeq.config.loading import Config, ConfigError, load_config
from bpeq.config.overrides import merge, put, read_pair
from bpeq.config.parts import parse_layer, read_part
from bpeq.config.schema import phrase, validate
from bpeq.settings import Count, NonNegative, SettingError, complaint

REST = {"evaluate_train": False, "unsettled": "record"}  # of [training], by default
SHIPPED = sorted((Path(__file__).parents[2] / "configs").glob("*.toml"))
CONFIG = """\
seeds = 3

[data]
name = "digits"

[network]
layers = ["flatten", "dense(16, scale=2)", "tanh", "dense(10)"]

[rule]
name = "eqprop"
beta = 0.3

[rules.eqprop]
beta = 0.2
nudging = "one-sided"
optimizer.learning_rate = 0.5

[rules.backprop]
optimizer = { name = "sgd", learning_rate = 0.25 }
training.epochs = 7

[controls]
cost.name = "softmax_cross_entropy"
optimizer.learning_rate = 0.125

[solvers.free]
name = "fixed_steps"
steps = 4

[optimizer]
name = "adam"
learning_rate = 0.01
b1 = 0.5

[training]
epochs = 2
batch_size = 8
"""


@pytest.fixture
def path(tmp_path) -> Path:
    path = tmp_path / "c.toml"
    path.write_text(CONFIG)
    return path


# --- rules, controls and overrides -------------------------------------------------------------


def test_rule_wins_over_rules_name_and_what_it_leaves_open_comes_from_there(path):
    tree = load_config(path).as_dict()
    rest = {"points": 4, "turns": 2, "start": "own", "relaxation": "same"}
    assert tree["rule"] == {"name": "eqprop", "beta": 0.3, "nudging": "one-sided", **rest}


def test_sections_of_rules_name_are_merged_into_the_configs(path):
    tree = load_config(path).as_dict()
    assert tree["optimizer"] == {
        "name": "adam",
        "learning_rate": 0.5,
        "b1": 0.5,
        "b2": 0.999,
        "eps": 1e-8,
    }
    assert tree["training"] == {"epochs": 2, "batch_size": 8, "evaluate_every": 1, **REST}


def test_settings_of_rule_stay_behind_when_another_rule_is_named(path):
    tree = load_config(path, ["rule.name=recurrent_backprop"]).as_dict()
    own = {"method": "fixed-point", "tolerance": 1e-6, "terms": 1000}
    own |= {"start": "own", "relaxation": "same"}
    assert tree["rule"] == {"name": "recurrent_backprop", **own}
    assert tree["optimizer"]["learning_rate"] == 0.01


def test_another_optimizer_replaces_the_section_and_other_sections_are_merged(path):
    tree = load_config(path, ["rule.name=backprop"]).as_dict()
    assert tree["rule"] == {"name": "backprop"}
    assert tree["optimizer"] == {"name": "sgd", "learning_rate": 0.25}  # adam's b1 is gone
    assert tree["training"] == {"epochs": 7, "batch_size": 8, "evaluate_every": 1, **REST}


PHASES = """\
[data]
name = "xor"

[network]
layers = ["dense(3)", "tanh", "dense(1)"]

[system]
name = "hopfield"
skips = { "0-2" = "dense(1, scale=0.5)" }

[solvers.free]
name = "fixed_steps"
steps = 9

[solvers.nudged]
name = "fixed_steps"
steps = 5
damping = 0.5

[rules.eqprop]
solvers.free = { name = "fixed_point", tolerance = 1e-3 }
solvers.nudged.steps = 7
system.skips."0-2" = { name = "repeat", layer = "linear", n = 2 }

[training]
epochs = 1
batch_size = 4
"""


def test_another_solver_or_layer_inside_a_section_replaces_the_old_one_wholly(tmp_path):
    """The settings of one factory mean nothing to another: `steps` is none of fixed_point's."""
    path = tmp_path / "c.toml"
    path.write_text(PHASES)
    tree = load_config(path, ["rule.name=eqprop"]).as_dict()
    free, nudged = tree["solvers"]["free"], tree["solvers"]["nudged"]
    assert free == {"name": "fixed_point", "tolerance": 1e-3, "max_steps": 1000, "damping": 0.0}
    assert (nudged["name"], nudged["steps"], nudged["damping"]) == ("fixed_steps", 7, 0.5)
    skip = tree["system"]["skips"]["0-2"]
    assert skip == {"name": "repeat", "layer": {"name": "linear"}, "n": 2}
    assert load_config(path, ["rule.name=bptt"]).as_dict()["solvers"]["free"]["steps"] == 9


X, Y = {"name": "x", "k": 1}, {"name": "y"}


@pytest.mark.parametrize(
    ("base", "over", "merged"),
    [
        (X, Y, Y),
        ({"a": {"b": X}}, {"a": {"b": Y}}, {"a": {"b": Y}}),
        (X, {"name": "x", "j": 2}, {"name": "x", "k": 1, "j": 2}),
        (X, {"k": 2}, {"name": "x", "k": 2}),
        ({"k": 1}, Y, Y),
        ({"a": [1, 2]}, {"a": [3]}, {"a": [3]}),
    ],
)
def test_merge_is_key_by_key_except_below_another_name(base, over, merged):
    assert merge(base, over) == merged


def test_rules_named_in_the_file_apply_without_an_override(tmp_path):
    path = tmp_path / "c.toml"
    path.write_text(CONFIG.replace('name = "eqprop"\nbeta = 0.3', 'name = "backprop"'))
    assert load_config(path).as_dict() == load_config(path, ["rule.name=backprop"]).as_dict()
    assert load_config(path).as_dict()["training"]["epochs"] == 7


def test_a_rule_name_given_twice_is_the_last_one(path):
    tree = load_config(path, ["rule.name=autodiff", "rule.name=backprop"]).as_dict()
    assert tree["rule"]["name"] == "backprop"
    assert tree["training"]["epochs"] == 7


@pytest.mark.parametrize("order", [1, -1])
def test_set_wins_over_everything(path, order):
    overrides = [
        "rule.name=backprop",
        "optimizer.learning_rate=2",
        "rules.backprop.optimizer.learning_rate=3",
        "training.epochs=9",
        "seeds=4",
    ]
    tree = load_config(path, overrides[::order]).as_dict()
    assert tree["optimizer"] == {"name": "sgd", "learning_rate": 2.0}
    assert (tree["training"]["epochs"], tree["seeds"]) == (9, 4)


def test_set_of_a_rules_own_section_counts_as_the_files(path):
    overrides = ["rule.name=backprop", "rules.backprop.optimizer.learning_rate=3"]
    assert load_config(path, overrides).as_dict()["optimizer"] == {
        "name": "sgd",
        "learning_rate": 3.0,
    }
    added = load_config(path, ["rule.name=autodiff", "rules.autodiff.optimizer.b2=0.5"]).as_dict()
    assert added["optimizer"]["b2"] == 0.5


def test_the_last_of_two_overrides_counts(path):
    assert load_config(path, ["seeds=5", "seeds=6"]).as_dict()["seeds"] == 6


def test_an_override_reaches_inside_a_layers_call(path):
    tree = load_config(path, ["network.layers.1.features=32", "network.layers.2=relu"]).as_dict()
    assert tree["network"]["layers"] == [
        {"name": "flatten"},
        {
            "name": "dense",
            "features": 32,
            "init": "glorot_uniform",
            "scale": 2.0,
            "bias": True,
            "bias_init": "zeros",
        },
        {"name": "relu"},
        {
            "name": "dense",
            "features": 10,
            "init": "glorot_uniform",
            "scale": 1.0,
            "bias": True,
            "bias_init": "zeros",
        },
    ]


def test_an_override_may_replace_a_whole_section_or_list(path):
    tree = load_config(path, ['optimizer={name = "sgd", learning_rate = 1}']).as_dict()
    assert tree["optimizer"] == {"name": "sgd", "learning_rate": 1.0}
    layers = load_config(path, ['network.layers=["flatten", "dense(10)"]']).as_dict()["network"][
        "layers"
    ]
    assert [layer["name"] for layer in layers] == ["flatten", "dense"]


@pytest.mark.parametrize(
    ("text", "value"),
    [("one-sided", "one-sided"), ("'one-sided'", "one-sided"), (' "one-sided" # so', "one-sided")],
)
def test_an_override_is_toml_or_else_plain_text(path, text, value):
    assert load_config(path, [f"rule.nudging={text}"]).as_dict()["rule"]["nudging"] == value


def test_a_second_line_in_an_override_is_not_dropped_in_silence(path):
    with pytest.raises(ConfigError, match=r"--set seed = '4\\nseeds = 9': must be a whole number"):
        load_config(path, ["seed=4\nseeds = 9"])


def test_with_rule_is_an_override_that_leaves_the_others_alone(path):
    config = load_config(path, ["training.epochs=9", "rule.beta=0.7"])
    backprop = config.with_rule("backprop")
    assert (
        backprop.as_dict()
        == load_config(path, ["rule.name=backprop", "training.epochs=9"]).as_dict()
    )
    assert config.with_rule("eqprop").as_dict() == config.as_dict()
    assert backprop.with_rule("eqprop").as_dict()["rule"]["beta"] == 0.3  # beta had stayed behind


def test_for_controls_is_backprop_with_the_controls_sections_on_top(path):
    config = load_config(path, ["rule.beta=0.7", "training.batch_size=4"])
    tree = config.for_controls().as_dict()
    assert tree["rule"] == {"name": "backprop"}
    assert tree["cost"] == {"name": "softmax_cross_entropy"}
    assert tree["optimizer"] == {"name": "sgd", "learning_rate": 0.125}
    assert tree["training"] == {"epochs": 7, "batch_size": 4, "evaluate_every": 1, **REST}
    assert config.as_dict()["cost"] == {"name": "squared_error"}


def test_loading_touches_neither_the_file_nor_a_loaded_config(path):
    config = load_config(path)
    kept = copy.deepcopy(config.as_dict())
    load_config(path, ["network.layers.1.features=99", "rules.eqprop.optimizer.learning_rate=9"])
    config.with_rule("backprop").changed(training={"epochs": 1})
    assert config.as_dict() == kept
    assert path.read_text() == CONFIG


def test_defaults_stand_where_a_section_is_absent(tmp_path):
    path = tmp_path / "small.toml"
    path.write_text('[data]\nname = "xor"\n[training]\nepochs = 1\nbatch_size = 4\n')
    assert load_config(path).as_dict() == {
        "seed": 0,
        "seeds": 1,
        "precision": "float32",
        "checkpoint_share": 0.03,
        "data": {"name": "xor"},
        "cost": {"name": "squared_error"},
        "system": {
            "name": "hopfield",
            "output": "state",
            "schedule": "alternating",
            "feedback": "tied",
            "angle": 90.0,
            "nudge": "inside",
            "gain": 1.0,
        },
        "rule": {"name": "backprop"},
        "optimizer": {
            "name": "adam",
            "learning_rate": 1e-3,
            "b1": 0.9,
            "b2": 0.999,
            "eps": 1e-8,
        },
        "schedule": {"name": "constant"},
        "training": {"epochs": 1, "batch_size": 4, "evaluate_every": 1, **REST},
        "solvers": {},
    }


# --- the resolved config -----------------------------------------------------------------------

VARIANTS = [
    [],
    ["rule.name=backprop"],
    [
        "rule.name=eqprop",
        "system={name='hopfield', output='readout'}",
        "cost.name=softmax_cross_entropy",
    ],
    ["optimizer.layer_rates=[0.1, 0]", "optimizer.clip_norm=1", "schedule.name=cosine"],
    ["precision=float64", "seed=4294967295", "network.layers.1=dense(3, bias=False)"],
]


@pytest.mark.parametrize("overrides", VARIANTS, ids=" ".join)
@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_a_resolved_config_resolves_to_itself(tmp_path, path, overrides):
    if "network" not in load_config(path).as_dict():  # a study's, which reads no more than it has
        overrides = [o for o in overrides if o.startswith(("precision", "seed"))]
    tree = load_config(path, overrides).as_dict()
    again = tmp_path / "config.toml"
    again.write_text(tomli_w.dumps(tree))
    assert load_config(again).as_dict() == tree


def test_show_config_prints_the_resolved_config(call, path):
    said = call("show", "config", path, "--set", "rule.name=backprop")
    assert (said.code, said.err) == (0, [])
    assert tomllib.loads(said.out) == load_config(path, ["rule.name=backprop"]).as_dict()


@pytest.mark.parametrize(("name", "widths"), [("digits", [128, 10]), ("mnist", [512, 10])])
def test_the_shipped_configs_are_the_nets_that_the_readme_names(name, widths):
    config = load_config(next(path for path in SHIPPED if path.stem == name))
    layers = config.as_dict()["network"]["layers"]
    assert [layer["features"] for layer in layers if layer["name"] == "dense"] == widths


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
@pytest.mark.parametrize("rule", ["backprop", "eqprop"])
def test_the_shipped_configs_run_under_both_rules(path, rule):
    assert load_config(path).with_rule(rule).as_dict()["rule"]["name"] == rule
    assert load_config(path).for_controls().as_dict()["rule"]["name"] == "backprop"


# --- calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("flatten", {"name": "flatten"}),
        (" flatten ( ) ", {"name": "flatten"}),
        ("dense(3)", {"name": "dense", "features": 3}),
        ("dense( features = 3 , )", {"name": "dense", "features": 3}),
        ("dense(3, scale=-1e-3)", {"name": "dense", "features": 3, "scale": -0.001}),
        ("dense(3, init='zeros')", {"name": "dense", "features": 3, "init": "zeros"}),
        ("dense(3, bias=False)", {"name": "dense", "features": 3, "bias": False}),
        ("dense((3, 4))", {"name": "dense", "features": [3, 4]}),
        ("dense({'a': (1,)})", {"name": "dense", "features": {"a": [1]}}),
        ("residual(dense(4), relu)", {"name": "residual", "layers": ["dense(4)", "relu"]}),
        (
            "residual(tanh, shortcut=dense(2))",
            {"name": "residual", "layers": ["tanh"], "shortcut": "dense(2)"},
        ),
        ("repeat(dense(4), 3)", {"name": "repeat", "layer": "dense(4)", "n": 3}),
        (
            "residual(residual(tanh), dense(2))",
            {"name": "residual", "layers": ["residual(tanh)", "dense(2)"]},
        ),
    ],
)
def test_a_call_is_parsed_to_its_arguments(text, spec):
    assert parse_layer(text, "layer") == spec
    assert parse_layer(spec, "layer") == spec


@pytest.mark.parametrize(
    "text",
    [
        "dense(3, scale=2.0)",
        "residual(dense(4), relu)",
        "residual(tanh, shortcut=dense(2))",
        "repeat(residual(tanh), 3)",
    ],
)
def test_a_checked_layer_is_written_and_read_as_itself_and_builds(path, text):
    part = read_part("layers", text, "layer")
    assert read_part("layers", tomllib.loads(tomli_w.dumps(part.as_dict())), "layer") == part
    assert load_config(path).build(part).name == text.partition("(")[0]


def test_a_wrong_setting_of_a_nested_layer_names_its_place():
    with pytest.raises(SettingError) as caught:
        read_part("layers", "residual(tanh, residual(dense(0)))", "layer")
    assert caught.value.setting == "layer.layers.1.layers.0.features"
    assert (caught.value.value, caught.value.remedy) == (0, "must be a whole number >= 1")


def test_one_layer_in_place_of_several_and_several_in_place_of_one(path):
    several = read_part("layers", {"name": "residual", "layers": "tanh"}, "layer")
    assert load_config(path).build(several).name == "residual"
    listed = {"name": "repeat", "layer": ["tanh", "relu"], "n": 2}
    with pytest.raises(SettingError, match="one layer, not a list of them") as caught:
        read_part("layers", listed, "layer")
    assert caught.value.setting == "layer.layer"


# --- settings ----------------------------------------------------------------------------------


def factory(a: Count, b: NonNegative | None = None, c: list[NonNegative] | None = None) -> None:
    """What the settings of a user's factory may look like."""


@pytest.mark.parametrize(
    ("given", "key", "remedy"),
    [
        ({}, "a", "is missing; must be a whole number >= 1"),
        ({"a": 0}, "a", "must be a whole number >= 1"),
        ({"a": True}, "a", "must be a whole number >= 1"),
        ({"a": 2**31}, "a", "must be a whole number >= 1 and < 2147483648"),
        ({"a": 10**400}, "a", "must be a whole number >= 1 and < 2147483648"),
        ({"a": 1, "b": -1}, "b", "must be a number >= 0"),
        ({"a": 1, "b": float("nan")}, "b", "must be a finite number >= 0"),
        ({"a": 1, "b": 10**400}, "b", "must be a number >= 0"),
        ({"a": 1, "c": [0, -1]}, "c", "must be a list, each entry a number >= 0"),
        ({"a": 1, "c": (0,)}, "c", "must be a list, each entry a number >= 0"),
        ({"a": 1, "bb": 0}, "bb", "unknown key; allowed: a, b, c; did you mean 'b'?"),
    ],
)
def test_validate_says_what_a_setting_may_be(given, key, remedy):
    with pytest.raises(SettingError) as caught:
        validate(factory, given, "place")
    assert (caught.value.setting, caught.value.remedy) == (f"place.{key}", remedy)


@pytest.mark.parametrize(
    ("kind", "name", "meant"),
    [
        ("layers", "ReLU", "relu"),
        ("layers", "Linear", "dense"),
        ("layers", "Conv2d", "conv"),
        ("costs", "mse", "squared_error"),
        ("costs", "CrossEntropy", "softmax_cross_entropy"),
        ("rules", "BP", "backprop"),
        ("optimizers", "AdamW", "adamw"),
    ],
)
def test_a_name_of_another_library_suggests_ours(kind, name, meant):
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        registry.resolve(kind, name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".001", 0.001),
        ("-.5", -0.5),
        ("5.", 5.0),
        ("5.e-3", 0.005),
        ("[.1, 2., 0.3]", [0.1, 2.0, 0.3]),
        ("0.1", 0.1),
        ("3", 3),
        ("1e-3", 1e-3),
        ("./x.5", "./x.5"),
        ('".5"', ".5"),
        ("1.2.3", "1.2.3"),
        ("0.1..1", "0.1..1"),
    ],
)
def test_a_number_of_an_override_may_begin_or_end_with_its_point(text, value):
    key, read = read_pair(f"rule.beta={text}")
    assert (key, read, type(read)) == ("rule.beta", value, type(value))


def test_validate_fills_in_defaults_and_makes_numbers_floats():
    assert validate(factory, {"a": 1, "b": 2}, "") == {"a": 1, "b": 2.0}
    assert isinstance(validate(factory, {"a": 1, "b": 2}, "")["b"], float)


def test_a_whole_number_beyond_all_floats_is_out_of_range_in_python_too():
    assert complaint(Annotated[float, Ge(0)], 10**400) == "must be a number >= 0"
    assert complaint(Count, 2**31) == "must be a whole number >= 1 and < 2147483648"
    assert complaint(Count, 2**31 - 1) == ""


@pytest.mark.parametrize("value", [True, False])
def test_true_and_false_are_no_numbers_in_python_either(value):
    assert complaint(Count, value) == "must be a whole number >= 1"
    assert complaint(NonNegative, value) == "must be a number >= 0"


def test_none_is_not_offered_for_a_setting_that_may_be_left_out():
    assert phrase(NonNegative | None) == "must be a number >= 0"
    assert phrase(list[NonNegative] | None) == "must be a list, each entry a number >= 0"
    assert phrase(str | None) == "must be a text"


# --- nothing but a Config or a ConfigError -----------------------------------------------------


def outcome(path: Path, overrides: list[str]) -> str:
    """What `load_config` does: a config that can be written and resolves to itself, or one line."""
    try:
        config = load_config(path, overrides)
    except ConfigError as error:
        line = str(error)
        assert line.startswith((f"{path}:", "--set ", "--set:"))
        return "refused"
    assert isinstance(config, Config)
    assert tomllib.loads(tomli_w.dumps(config.as_dict())) == config.as_dict()
    return "loaded"


KEYS = """
seed seeds precision experiment folder nope rule data training solvers network rules cost . ..
rule.name rule.beta rule.nudging rules.eqprop rules.eqprop.beta rules.nope.beta rule. .rule
controls controls.cost controls.cost.name data.name data.validation data.path system.output
network.layers network.layers.0 network.layers.1.features network.layers.9 schedule.name
optimizer.learning_rate optimizer.layer_rates optimizer.name training.epochs training.epochs.x
solvers.free solvers.free.name solvers.free.steps solvers.x.steps training.batch_size
"""
VALUES = """
0 1 -1 0.5 nan inf -inf 1e999 true false '' "" [] {} [1] [[]] {a=1} {a={b=1}} \\ "\\ud800" #
xor eqprop backprop dense dense(3) dense( relu 1979-05-27 07:32:00 0x1F 1_0 '''
os:system a:b : :: ..:x bpeq.layers:dense bpeq.types:Layer {name='tanh'} ['tanh']
['dense(3)',{name='relu'}] {name='dense',features=2} 99999999999999999999
"""
SECTIONS = "data network rule rules solvers optimizer training controls seed x"
INSIDE = "name layers free beta steps x"
WORDS = """
dense relu residual repeat conv ( ) , = 3 -1 'a' features scale [ ] { } : * ** \\ " ' _ . ... @
lambda if else for in not None True 1e999 0x f'{1}' b'' (((((
"""
keys, values = st.sampled_from(KEYS.split()), st.sampled_from(VALUES.split())
marks = st.sampled_from([*"=[].,#'\" \n\n", "[[", "]]"])
quick = settings(
    max_examples=150,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
pairs = st.tuples(
    keys | st.text(max_size=8), st.sampled_from(["=", "=", "=", ""]), values | st.text(max_size=12)
).map("".join)


@quick
@given(overrides=st.lists(pairs, max_size=3))
@example(overrides=["rules=1"])
@example(overrides=["rule=5", "rule.name=eqprop"])
@example(overrides=["rule.name=[1]"])
@example(overrides=["a=1\nb=2"])
def test_any_overrides_give_a_config_or_one_line(path, overrides):
    assert outcome(path, overrides) in ("refused", "loaded")


@quick
@given(text=st.lists(keys | values | marks, max_size=25).map("".join))
def test_any_text_appended_gives_a_config_or_one_line(tmp_path, text):
    path = tmp_path / "c.toml"
    path.write_text(f"{CONFIG}\n{text}", "utf-8", errors="surrogatepass")
    assert outcome(path, []) in ("refused", "loaded")


toml = st.recursive(
    st.one_of(
        st.booleans(),
        st.integers(),
        st.floats(),
        st.text(st.characters(codec="utf-8"), max_size=5),
        st.sampled_from(["xor", "eqprop", "dense(3)", "relu", "fixed_steps", "os:system"]),
        st.dates(),
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.dictionaries(st.sampled_from(INSIDE.split()), inner, max_size=3),
    ),
    max_leaves=6,
)


@quick
@given(tree=st.dictionaries(st.sampled_from(SECTIONS.split()), toml, max_size=4))
def test_any_tree_laid_over_a_config_gives_a_config_or_one_line(tmp_path, tree):
    path = tmp_path / "c.toml"
    path.write_text(tomli_w.dumps(merge(tomllib.loads(CONFIG), tree)))
    assert outcome(path, []) in ("refused", "loaded")


@quick
@given(content=st.binary(max_size=40))
def test_any_bytes_give_one_line(tmp_path, content):
    path = tmp_path / "c.toml"
    path.write_bytes(content)
    assert outcome(path, []) == "refused"


calls = st.one_of(
    st.text(max_size=20),
    st.text(string.printable, max_size=20).map(lambda inside: f"dense({inside})"),
    st.lists(st.sampled_from([*WORDS.split(), " ", "\n"]), max_size=12).map("".join),
)


@quick
@given(text=calls)
@example(text="dense('\\d')")
@example(text="dense(1is 2)")
@example(text="dense({[]: 1})")
@example(text="dense(" + "(" * 300 + ")" * 300 + ")")
@example(text="dense(" + "-" * 5000 + "1)")
@example(text="dense(" + "9" * 5000 + ")")
@example(text="dense(dense(" * 80 + "))" * 80)
def test_any_text_is_a_layer_or_a_value_error(text):
    try:
        spec = parse_layer(text, "layer")
    except ValueError:
        return
    assert spec["name"] in registry.KINDS["layers"]
    tomli_w.dumps(spec)


@quick
@given(key=st.text("ab.01", min_size=1, max_size=8), value=st.integers())
def test_put_then_look_finds_the_value(key, value):
    tree: dict[str, Any] = {"a": {"b": 1}, "b": [1, 2]}
    try:
        put(tree, key, value)
    except SettingError as error:
        found = (error.setting, error.value)
    else:
        node: Any = tree
        for step in key.split("."):
            node = node[int(step)] if isinstance(node, list) else node[step]
        found = (key, node)
    assert found == (key, value)
