"""What is laid over a config: `key=value` from the command line, and [rules.NAME] of each rule."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bpeq.config import registry
from bpeq.config.schema import ConfigError, Fault, fields

Tree = dict[str, Any]
Pair = tuple[str, Any]

SECTIONS = {
    "data": ("data", None),
    "cost": ("costs", "squared_error"),
    "system": ("systems", "hopfield"),
    "imperfections": ("imperfections", "imperfect"),
    "rule": ("rules", "backprop"),
    "optimizer": ("optimizers", "adam"),
    "schedule": ("schedules", "constant"),
}
"""Section -> (kind of factory, the name taken where none is given)."""
LEFT_OUT = ("data", "imperfections")
"""Sections that stand for nothing where they are absent."""
TABLES = (
    *(*SECTIONS, "network", "networks", "solvers", "training", "fidelity"),
    *("rules", "controls", "study"),
)
_OWN = (
    *("cost", "system", "imperfections", "optimizer", "schedule", "network", "solvers"),
    "training",
)
"""The sections that a rule, or the null controls, may want different."""


class Source(NamedTuple):
    """Where settings were written, for errors to name the place.

    file: the tree as read, with `--set rules.…` and `--set controls.…` in it. keys: all of --set.
    rule, controls: whose sections are laid over the others. listed: the rule is one of --rules.
    """

    path: Path
    file: Tree
    keys: tuple[str, ...]
    rule: str = ""
    controls: bool = False
    listed: bool = False

    def error(self, key: str, value: Any, remedy: str) -> ConfigError:
        """`FILE:KEY = VALUE: REMEDY`, or `--set KEY` where the value came thence."""
        steps = key.split(".")
        written = self.written(key, value)
        absent = _depth(self.file, steps) < len(steps)
        place = f"{self.path}:{written}"
        for name in self.keys:
            inside = f"{key}.".startswith(f"{name}.") or f"{written}.".startswith(f"{name}.")
            laid = absent or name.startswith(("rules.", "controls."))  # these are in `file` by now
            if inside or (laid and name.startswith(f"{key}.")):
                place = f"--set {written if written.startswith(name) else key}"
        if key == "rule.name" and self.listed:
            place = "--rules"
        given = "" if value is None else f" = {_shown(value)}"
        return ConfigError(f"{place}{given}: {remedy}")

    def written(self, key: str, value: Any) -> str:
        """The key as the file has it: `rules.eqprop.beta` for a `rule.beta` that comes from there.

        A missing setting (value None) is looked for in the section that lacks it.
        """
        steps = key.split(".")
        least = 1 if value is None else 0
        before = _depth(self.file, steps[: len(steps) - least])
        if steps[0] == "rule" and self.rule != chosen_rule(self.file, ()):
            before = 0  # the file's [rule] stayed behind
        for name in ["controls"] * self.controls + [f"rules.{self.rule}"]:
            group = ["controls"] if name == "controls" else ["rules", self.rule]
            inner = steps[1:] if name != "controls" and steps[0] == "rule" else steps
            found = _depth(self.file, [*group, *inner[: len(inner) - least]])
            depth = max(found - len(group), 0)
            ahead = depth + len(steps) - len(inner) - before
            if depth and (ahead > 0 or (ahead == 0 and inner is steps)):
                return ".".join([name, *inner])
        return key


def lay(file: Tree, pairs: Sequence[Pair], controls: bool, folder: Path) -> Tree:
    """The sections of a config as one rule, and the null controls, want them.

    The settings of [rule] belong to the rule that it names; another one gets those of [rules.NAME],
    and every rule the sections that stand there.
    """
    name = chosen_rule(file, pairs)
    resolve("rules", name, "rule.name", folder)
    for other, own in {**file.get("rules", {}), None: file.get("controls", {})}.items():
        place = "controls" if other is None else f"rules.{other}"
        _check_own(place, own, [] if other is None else _settings(other, place, folder))
    tree = {key: value for key, value in copy.deepcopy(file).items() if key != "rules"}
    own = copy.deepcopy(file.get("rules", {}).get(name, {}))
    tree = merge(tree, {key: value for key, value in own.items() if key in _OWN})
    stated = file.get("rule", {}) if name == chosen_rule(file, ()) else {}
    settings = {key: value for key, value in own.items() if key not in _OWN}
    tree["rule"] = {**settings, **copy.deepcopy(stated), "name": name}
    over = tree.pop("controls", {})
    if controls:  # what a perfect device would do
        tree.pop("imperfections", None)
    return merge(tree, over) if controls else tree


def chosen_rule(file: Tree, pairs: Sequence[Pair]) -> Any:
    """The name of the rule that runs: the last --set rule.name, the file's, or the default."""
    section = file.get("rule")
    stated = section.get("name") if isinstance(section, dict) else None
    named = [stated or SECTIONS["rule"][1], *(v for key, v in pairs if key == "rule.name")]
    return named[-1]


def check_tables(tree: Tree, pairs: Sequence[Pair] = ()) -> None:
    """Every section is a table, and what is laid over a study's config is for one that it reads.

    That is a section which the config has, and where one is [training], any that a run has.
    """
    for name in TABLES:
        if not isinstance(tree.get(name, {}), dict):
            hint = f"; did you mean {name}.name?" if isinstance(tree[name], str) else ""
            raise Fault(name, tree[name], f"must be a section{hint}")
    if "experiment" in tree and "training" not in tree:
        for key, value in pairs:
            section = key.partition(".")[0]
            own = key == "rule.name" or section in (
                *tree,
                "study",
            )  # with_rule
            if section in TABLES and not own:
                raise Fault(key, value, f"the study reads no [{section}]")


def read_pair(text: str) -> Pair:
    """`key=value`, the value as TOML writes it or, failing that, as plain text."""
    key, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not all(key.split(".")):
        raise ConfigError(f"--set {text}: must be key=value, such as rule.beta=0.1")
    try:
        parsed = tomllib.loads(f"v = {value}")
    except (ValueError, RecursionError):  # not TOML, or whole numbers and lists beyond its limits
        return key, value
    return key, parsed["v"] if len(parsed) == 1 else value


def put(tree: Tree, key: str, value: Any) -> None:
    """Sets a dotted key, making sections on the way; a number steps into a list."""
    *way, last = key.split(".")
    node: Any = tree
    for i, step in enumerate(way):
        if isinstance(node, dict):
            node = node.setdefault(step, {})
        else:
            node = node[_place(node, step, ".".join(way[:i]), key, value)]
    if isinstance(node, dict):
        node[last] = value
    else:
        node[_place(node, last, ".".join(way), key, value)] = value


def _place(node: Any, step: str, name: str, key: str, value: Any) -> int:
    """The place in a list that a step of a key names."""
    if not isinstance(node, list):
        raise Fault(key, value, f"{name} is a single value and has no keys")
    if not step.isdecimal() or int(step) >= len(node):
        raise Fault(key, value, f"no such entry of {name}; allowed: 0 to {len(node) - 1}")
    return int(step)


def merge(base: Tree, over: Tree) -> Tree:
    """`base` with the entries of `over` in place of its own, table by table.

    A table that names another factory, such as another solver or layer, takes the old one's place
    wholly: the settings of one mean nothing to the other.
    """
    if over.get("name", base.get("name")) != base.get("name"):
        return over
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def resolve(kind: str, name: Any, place: str, folder: Path) -> Any:
    if not isinstance(name, str):
        remedy = registry.choices(registry.KINDS[kind], "")
        raise Fault(place, name, remedy if name is not None else f"is missing; {remedy}")
    try:
        return registry.resolve(kind, name, folder)
    except ValueError as error:
        raise Fault(place, name, str(error)) from None


def _check_own(place: str, own: Any, settings: Sequence[str]) -> None:
    """[rules.NAME] and [controls]: settings of the rule, and whole sections."""
    if not isinstance(own, dict):
        raise Fault(place, own, "must be a section")
    for key, value in own.items():
        if key not in settings and key not in _OWN:
            remedy = f"unknown key; {registry.choices([*settings, *_OWN], key)}"
            raise Fault(f"{place}.{key}", value, remedy)
        if key in _OWN and not isinstance(value, dict):
            raise Fault(f"{place}.{key}", value, "must be a section")


def _settings(rule: str, place: str, folder: Path) -> list[str]:
    try:
        return list(fields(resolve("rules", rule, place, folder)))
    except Fault as fault:  # the name is the key: there is no value to show
        raise Fault(place, None, fault.remedy) from None


def _depth(node: Any, steps: Sequence[str]) -> int:
    """How many steps of a key can be followed."""
    for count, step in enumerate(steps):
        if isinstance(node, dict) and isinstance(step, str) and step in node:
            node = node[step]
        elif isinstance(node, list) and str(step).isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            return count
    return len(steps)


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
