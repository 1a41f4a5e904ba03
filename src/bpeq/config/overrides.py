"""What is laid over a config: `key=value` from the command line, and [rules.NAME] of each rule."""

from __future__ import annotations

import copy
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bpeq.config import registry
from bpeq.config.errors import ConfigError
from bpeq.config.parts import parse_layer, resolve
from bpeq.config.schema import fields
from bpeq.settings import SettingError

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

    file: the tree as read, with `--set rules.…` and `--set controls.…` in it. texts: all of --set.
    controls: [controls] is laid over the rest. listed: the rule is one of --rules. study: False
    leaves out the experiment and its settings.
    """

    path: Path
    file: Tree
    texts: tuple[str, ...] = ()
    controls: bool = False
    listed: bool = False
    study: bool = True

    def add(self, texts: Sequence[str]) -> Source:
        """The same with further texts of --set.

        Raises:
          ConfigError: a text is not `key=value`, or its key leads nowhere.
        """
        added = self._replace(file=copy.deepcopy(self.file), texts=(*self.texts, *texts))
        for key, value in map(read_pair, texts):
            if key.partition(".")[0] in ("rules", "controls"):
                with added.locate_errors():
                    put(added.file, key, value, self.folder)
        return added

    @property
    def pairs(self) -> list[Pair]:
        """The keys and values of --set."""
        return [read_pair(text) for text in self.texts]

    @property
    def rule(self) -> Any:
        """The name of the rule that runs: the last --set rule.name, the file's, or the default."""
        named = [value for key, value in self.pairs if key == "rule.name"]
        return named[-1] if named else self.rule_of_file

    @property
    def rule_of_file(self) -> Any:
        section = self.file.get("rule")
        stated = section.get("name") if isinstance(section, dict) else None
        return stated or SECTIONS["rule"][1]

    @property
    def folder(self) -> Path:
        """Where dotted paths are looked for."""
        home = self.file.get("folder", ".")
        return self.path.parent / (home if isinstance(home, str) else ".")

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Raises a SettingError from inside, whose setting is a key, as the error of its place."""
        try:
            yield
        except ConfigError:
            raise
        except SettingError as error:
            raise self.error(error.setting, error.value, error.remedy) from error.__cause__

    def error(self, key: str, value: Any, remedy: str) -> ConfigError:
        """The error of a key in the file, or of --set if the value was given there."""
        steps = key.split(".")
        written = self.written(key, value)
        absent = _depth(self.file, steps) < len(steps)
        place, setting = str(self.path), written
        for name, _ in self.pairs:
            inside = f"{key}.".startswith(f"{name}.") or f"{written}.".startswith(f"{name}.")
            in_file = absent or name.startswith(("rules.", "controls."))
            if inside or (in_file and name.startswith(f"{key}.")):
                place, setting = "--set", written if written.startswith(name) else key
        if key == "rule.name" and self.listed:
            place, setting = "--rules", ""
        return ConfigError(place, setting, value, remedy)

    def written(self, key: str, value: Any) -> str:
        """The key as the file has it: `rules.eqprop.beta` for a `rule.beta` that comes from there.

        A missing setting (value None) is looked for in the section that lacks it.
        """
        steps = key.split(".")
        least = 1 if value is None else 0
        before = _depth(self.file, steps[: len(steps) - least])
        if steps[0] == "rule" and self.rule != self.rule_of_file:
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


def lay(source: Source) -> Tree:
    """The sections of a config as one rule, and the null controls, want them.

    The settings of [rule] belong to the rule that it names. Another rule gets those of
    [rules.NAME], and every rule the sections that stand there. --set comes last.

    Raises:
      SettingError: an unknown rule; what stands in [rules.NAME] or [controls] and cannot.
    """
    file, name, folder = source.file, source.rule, source.folder
    check_tables(file, source.pairs)
    resolve("rules", name, "rule.name", folder)
    for other, own in file.get("rules", {}).items():
        _check_own(f"rules.{other}", own, _settings(other, f"rules.{other}", folder))
    _check_own("controls", file.get("controls", {}), [])
    left_out = ("rules",) if source.study else ("rules", "experiment", "study")
    tree = copy.deepcopy({key: value for key, value in file.items() if key not in left_out})
    own = copy.deepcopy(file.get("rules", {}).get(name, {}))
    stated = tree.get("rule", {}) if name == source.rule_of_file else {}
    tree = merge(tree, {key: value for key, value in own.items() if key in _OWN})
    settings = {key: value for key, value in own.items() if key not in _OWN}
    tree["rule"] = {**settings, **stated, "name": name}
    over = tree.pop("controls", {})
    if source.controls:
        tree.pop("imperfections", None)  # the controls are what a perfect device would do
        tree = merge(tree, over)
    for key, value in source.pairs:
        if key.partition(".")[0] not in ("controls", *left_out):
            put(tree, key, value, folder)
    check_tables(tree)
    return tree


def check_tables(tree: Tree, pairs: Sequence[Pair] = ()) -> None:
    """Checks that every section is a table, and that --set reaches what a study reads.

    A study without [training] reads the sections that its config has. One with [training] may read
    any section that a run has.

    Raises:
      SettingError: it is not so.
    """
    for name in TABLES:
        if not isinstance(tree.get(name, {}), dict):
            hint = f"; did you mean {name}.name?" if isinstance(tree[name], str) else ""
            raise SettingError("", name, tree[name], f"must be a section{hint}")
    if "experiment" in tree and "training" not in tree:
        for key, value in pairs:
            section = key.partition(".")[0]
            read = key == "rule.name" or section in (*tree, "study")
            if section in TABLES and not read:
                raise SettingError("", key, value, f"the study reads no [{section}]")


def read_pair(text: str) -> Pair:
    """`key=value`, the value as TOML writes it or, failing that, as plain text."""
    key, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not all(key.split(".")):
        raise ConfigError("--set", text, None, "must be key=value, such as rule.beta=0.1")
    try:
        parsed = tomllib.loads(f"v = {value}")
    except (ValueError, RecursionError):  # not TOML, or whole numbers and lists beyond its limits
        return key, value
    return key, parsed["v"] if len(parsed) == 1 else value


def put(tree: Tree, key: str, value: Any, folder: Path | None = None) -> None:
    """Sets a dotted key, making sections on the way; a number steps into a list.

    A step into a layer that is written as a call, such as `network.layers.0.features`, replaces the
    call by a table.

    Raises:
      SettingError: a step leads nowhere.
    """
    *way, last = key.split(".")
    node: Any = tree
    for i, step in enumerate(way):
        place = _place(node, step, ".".join(way[:i]), key, value)
        inner = node.setdefault(place, {}) if isinstance(node, dict) else node[place]
        if isinstance(inner, str):
            with suppress(SettingError):  # no layer: the next step says that it has no keys
                inner = node[place] = parse_layer(inner, key, folder)
        node = inner
    node[_place(node, last, ".".join(way), key, value)] = value


def _place(node: Any, step: str, name: str, key: str, value: Any) -> Any:
    """The key in a table, or the place in a list, that a step of a key names."""
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise SettingError("", key, value, f"{name} is a single value and has no keys")
    if not step.isdecimal() or int(step) >= len(node):
        remedy = f"no such entry of {name}; allowed: 0 to {len(node) - 1}"
        raise SettingError("", key, value, remedy)
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


def _check_own(place: str, own: Any, settings: Sequence[str]) -> None:
    """[rules.NAME] and [controls]: settings of the rule, and whole sections."""
    if not isinstance(own, dict):
        raise SettingError("", place, own, "must be a section")
    for key, value in own.items():
        if key not in settings and key not in _OWN:
            remedy = f"unknown key; {registry.choices([*settings, *_OWN], key)}"
            raise SettingError("", f"{place}.{key}", value, remedy)
        if key in _OWN and not isinstance(value, dict):
            raise SettingError("", f"{place}.{key}", value, "must be a section")


def _settings(rule: str, place: str, folder: Path) -> list[str]:
    try:
        return list(fields(resolve("rules", rule, place, folder)))
    except SettingError as error:  # the name is the key: there is no value to show
        raise SettingError("", place, None, error.remedy) from None


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
