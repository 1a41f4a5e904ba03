"""Merges overrides into a config: `key=value` of the command line, and [rules.NAME]."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from bpeq.config import registry
from bpeq.config.errors import ConfigError
from bpeq.config.parts import parse_layer, resolve
from bpeq.config.schema import fields
from bpeq.core.paths import user_path
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
"""Section -> (kind of factory, the default name; None: the name must be given)."""
LEFT_OUT = ("data", "imperfections")
"""Sections without a default. If they are absent, nothing takes their place."""
TABLES = (
    *(*SECTIONS, "network", "networks", "solvers", "training", "fidelity"),
    *("rules", "controls", "study"),
)
_NUMBERS = re.compile(r"[\s\d.,eE+\-\[\]]+")
_OWN = (
    *("cost", "system", "imperfections", "optimizer", "schedule", "network", "solvers"),
    "training",
)
"""Sections that [rules.NAME] and [controls] may contain."""


class Source(NamedTuple):
    """The origin of each setting, so that errors can name the place.

    Args:
      path: the config file.
      file: the parsed file, with `--set rules.…` and `--set controls.…` already in it.
      texts: all texts of `--set`.
      controls: [controls] is merged into the other sections.
      listed: the rule was named by `--rules`.
      study: False removes the experiment and its settings.
    """

    path: Path
    file: Tree
    texts: tuple[str, ...] = ()
    controls: bool = False
    listed: bool = False
    study: bool = True

    def add(self, texts: Sequence[str]) -> Source:
        """Adds texts of `--set`.

        Args:
          texts: `key=value` texts.

        Returns:
          The source with the further texts.

        Raises:
          ConfigError: a text is not `key=value`, or its key does not exist.
        """
        added = self._replace(file=copy.deepcopy(self.file), texts=(*self.texts, *texts))
        for key, value in map(read_pair, texts):
            if key.partition(".")[0] in ("rules", "controls"):
                with added.locate_errors():
                    put(added.file, key, value, self.folder)
        return added

    @property
    def pairs(self) -> list[Pair]:
        """The keys and values of `--set`."""
        return [read_pair(text) for text in self.texts]

    @property
    def rule(self) -> Any:
        """The name of the rule that runs: of the last `--set rule.name`, or `rule_of_file`."""
        named = [value for key, value in self.pairs if key == "rule.name"]
        return named[-1] if named else self.rule_of_file

    @property
    def rule_of_file(self) -> Any:
        """The name of the rule in the file, else the default."""
        section = self.file.get("rule")
        stated = section.get("name") if isinstance(section, dict) else None
        return stated or SECTIONS["rule"][1]

    @property
    def folder(self) -> Path:
        """The folder where dotted paths are looked up."""
        home = self.file.get("folder", ".")
        return self.path.parent / user_path(home if isinstance(home, str) else ".")

    @contextmanager
    def locate_errors(self) -> Iterator[None]:
        """Turns a SettingError of the block into a ConfigError that names the place of the setting.

        Raises:
          ConfigError: the block raised a SettingError. Its `setting` is the dotted key.
        """
        try:
            yield
        except ConfigError:
            raise
        except SettingError as error:
            raise self.error(error.setting, error.value, error.remedy) from error.__cause__

    def error(self, key: str, value: Any, remedy: str) -> ConfigError:
        """Makes the error for a key. Its place is the file, or `--set` if the value is from there.

        Args:
          key: the dotted key.
          value: the value; None if it is absent.
          remedy: what is allowed, or what to do.

        Returns:
          The error.
        """
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
        """The key as it is written in the file, such as `rules.eqprop.beta` for `rule.beta`.

        If the setting is missing, the key is looked up in the section that lacks it.

        Args:
          key: the dotted key of the resolved config.
          value: the value; None if it is missing.

        Returns:
          The key in the file.
        """
        steps = key.split(".")
        least = 1 if value is None else 0
        before = _depth(self.file, steps[: len(steps) - least])
        if steps[0] == "rule" and self.rule != self.rule_of_file:
            before = 0  # the file's [rule] does not apply
        for name in ["controls"] * self.controls + [f"rules.{self.rule}"]:
            group = ["controls"] if name == "controls" else ["rules", self.rule]
            inner = steps[1:] if name != "controls" and steps[0] == "rule" else steps
            count = _depth(self.file, [*group, *inner[: len(inner) - least]])
            depth = max(count - len(group), 0)
            ahead = depth + len(steps) - len(inner) - before
            if depth and (ahead > 0 or (ahead == 0 and inner is steps)):
                return ".".join([name, *inner])
        return key


def lay(source: Source) -> Tree:
    """Merges the sections of a config for one rule or for the null controls.

    The settings of [rule] belong to the rule that it names. Another rule takes the settings of
    [rules.NAME]. Every rule takes the whole sections in its [rules.NAME]. `--set` applies last.

    Args:
      source: the file and the overrides.

    Returns:
      The sections, not yet checked.

    Raises:
      SettingError: the rule is unknown, or [rules.NAME] or [controls] has a key that is not
        allowed.
    """
    file, name, folder = source.file, source.rule, source.folder
    check_tables(file, source.pairs)
    resolve("rules", name, "rule.name", folder)
    for other, overlay in file.get("rules", {}).items():
        _check_own(f"rules.{other}", overlay, _settings(other, f"rules.{other}", folder))
    _check_own("controls", file.get("controls", {}), [])
    left_out = ("rules",) if source.study else ("rules", "experiment", "study")
    tree = copy.deepcopy({key: value for key, value in file.items() if key not in left_out})
    overlay = copy.deepcopy(file.get("rules", {}).get(name, {}))
    stated = tree.get("rule", {}) if name == source.rule_of_file else {}
    tree = merge(tree, {key: value for key, value in overlay.items() if key in _OWN})
    settings = {key: value for key, value in overlay.items() if key not in _OWN}
    tree["rule"] = {**settings, **stated, "name": name}
    over = tree.pop("controls", {})
    if source.controls:
        tree.pop("imperfections", None)  # the null controls run on a perfect device
        tree = merge(tree, over)
    for key, value in source.pairs:
        if key.partition(".")[0] not in ("controls", *left_out):
            put(tree, key, value, folder)
    check_tables(tree)
    return tree


def check_tables(tree: Tree, pairs: Sequence[Pair] = ()) -> None:
    """Checks that every section is a table, and that a study reads the sections of `--set`.

    A study without [training] reads the sections of its config. A study with [training] may read
    any section that a run has.

    Args:
      tree: the sections.
      pairs: the keys and values of `--set`.

    Raises:
      SettingError: a section is not a table, or `--set` names a section that the study does not
        read.
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
    """Parses `key=value`. A value that is not TOML stays plain text, except numbers such as `.5`.

    Args:
      text: the text of one `--set`.

    Returns:
      The key and the value.

    Raises:
      ConfigError: the text has another form.
    """
    key, sign, value = (part.strip() for part in text.partition("="))
    if not sign or not all(key.split(".")):
        raise ConfigError("--set", text, None, "must be key=value, such as rule.beta=0.1")
    try:
        parsed = tomllib.loads(f"v = {_as_toml_numbers(value)}")
    except (ValueError, RecursionError):  # not TOML, or beyond the limits of its numbers and lists
        return key, value
    return key, parsed["v"] if len(parsed) == 1 else value


def _as_toml_numbers(value: str) -> str:
    """Writes numbers such as `.5` and `5.` as TOML does, 0.5 and 5.0, also in a list."""
    if not _NUMBERS.fullmatch(value):
        return value
    return re.sub(r"(?<=\d)\.(?![\d.])", ".0", re.sub(r"(?<![\d.])\.(?=\d)", "0.", value))


def put(tree: Tree, key: str, value: Any, folder: Path | None = None) -> None:
    """Sets a dotted key in a tree and creates missing sections.

    A number in the key selects an entry of a list. If the key leads into a layer that is written as
    a call, such as `network.layers.0.features`, a table replaces the call.

    Args:
      tree: the sections. They are changed in place.
      key: the dotted key.
      value: the value.
      folder: where dotted paths are looked up; None: only where Python looks.

    Raises:
      SettingError: the key does not exist.
    """
    *way, last = key.split(".")
    node: Any = tree
    for i, step in enumerate(way):
        place = _place(node, step, ".".join(way[:i]), key, value)
        inner = node.setdefault(place, {}) if isinstance(node, dict) else node[place]
        if isinstance(inner, str):
            with suppress(SettingError):  # not a layer: the next step raises an error
                inner = node[place] = parse_layer(inner, key, folder)
        node = inner
    node[_place(node, last, ".".join(way), key, value)] = value


def _place(node: Any, step: str, name: str, key: str, value: Any) -> Any:
    """The key of a table, or the index of a list, that one step of a dotted key names."""
    if isinstance(node, dict):
        return step
    if not isinstance(node, list):
        raise SettingError("", key, value, f"{name} is a single value and has no keys")
    if not step.isdecimal() or int(step) >= len(node):
        remedy = f"no such entry of {name}; allowed: 0 to {len(node) - 1}"
        raise SettingError("", key, value, remedy)
    return int(step)


def merge(base: Tree, over: Tree) -> Tree:
    """Merges the entries of `over` into `base`, table by table.

    If `over` names another factory, such as another solver or layer, it replaces the whole table,
    because the settings belong to the factory.

    Args:
      base: a table.
      over: the entries that take precedence.

    Returns:
      The merged table.
    """
    if over.get("name", base.get("name")) != base.get("name"):
        return over
    merged = dict(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(merged.get(key), dict)
        merged[key] = merge(merged[key], value) if both else value
    return merged


def _check_own(place: str, overlay: Any, settings: Sequence[str]) -> None:
    """Checks [rules.NAME] or [controls]. They may hold settings of the rule and sections."""
    if not isinstance(overlay, dict):
        raise SettingError("", place, overlay, "must be a section")
    for key, value in overlay.items():
        if key not in settings and key not in _OWN:
            remedy = f"unknown key; {registry.choices([*settings, *_OWN], key)}"
            raise SettingError("", f"{place}.{key}", value, remedy)
        if key in _OWN and not isinstance(value, dict):
            raise SettingError("", f"{place}.{key}", value, "must be a section")


def _settings(rule: str, place: str, folder: Path) -> list[str]:
    """The names of the settings of a rule."""
    try:
        return list(fields(resolve("rules", rule, place, folder)))
    except SettingError as error:  # the key holds the name, so there is no value
        raise SettingError("", place, None, error.remedy) from None


def _depth(node: Any, steps: Sequence[str]) -> int:
    """The number of steps of a key that exist."""
    for count, step in enumerate(steps):
        if isinstance(node, dict) and isinstance(step, str) and step in node:
            node = node[step]
        elif isinstance(node, list) and str(step).isdecimal() and int(step) < len(node):
            node = node[int(step)]
        else:
            return count
    return len(steps)
