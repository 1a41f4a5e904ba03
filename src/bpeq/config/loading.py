"""TOML to checked settings: one function reads a config, and nothing in it is taken on trust."""

from __future__ import annotations

import inspect
import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from functools import partial, reduce
from operator import getitem
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

from bpeq.config import registry
from bpeq.config.layer_calls import (
    build_layer,
    each_network,
    parse_each,
    parse_network,
    settle_each,
)
from bpeq.config.overrides import SECTIONS, Source, check_tables, chosen_rule, lay, put, read_pair
from bpeq.config.schema import ConfigError, Fault, fields, layer_tables
from bpeq.config.sections import settle_sections
from bpeq.config.user_code import blame, own_parts
from bpeq.types import DataError

Tree = dict[str, Any]


class Config(NamedTuple):
    """A checked config: `tree` has every setting, defaults filled in, as a file would write it."""

    name: str
    path: Path
    tree: Tree
    overrides: tuple[str, ...]
    source: Source

    @property
    def folder(self) -> Path:
        """Where dotted paths are looked for."""
        return self.path.parent / self.tree.get("folder", ".")

    def fault(self, key: str, value: Any, remedy: str) -> ConfigError:
        """The error for a key: `FILE:KEY = VALUE: REMEDY`, or --set KEY if it came thence."""
        return self.source.error(key, value, remedy)

    def blame(self, error: Exception, *sections: str) -> NoReturn:
        """Raises what may come from the user's own parts, those of `sections` first, as one line.

        It stays as it is where it is such a line, or where the config has no parts of the user's
        own: then it is a bug of ours.
        """
        parts = own_parts(self.tree, self.folder)
        if not parts or isinstance(error, ConfigError | DataError | MemoryError):
            raise error
        part, said = blame(error, parts, *sections)
        raise self.fault(part.key, part.name, said) from error

    def with_rule(self, name: str) -> Config:
        """The same config under another rule, which brings its own [rules.NAME] along.

        A `--set rule.beta=…` stays behind where the other rule has no such setting.
        """
        if name == self.tree["rule"]["name"]:
            return self
        made = load(self.path, self._under(name), study="experiment" in self.tree)
        return made._replace(source=made.source._replace(listed=True))

    def for_controls(self) -> Config:
        """The same config under backprop, with what [controls] asks for the null controls."""
        own = {"controls": True, "study": "experiment" in self.tree}
        return load(self.path, self._under("backprop"), **own)

    def changed(self, **sections: Any) -> Config:
        """The same config with some sections' entries replaced."""
        laid = {name: {**self.tree.get(name, {}), **own} for name, own in sections.items()}
        return self._replace(tree={**self.tree, **laid})

    def build(self, section: str, wired: Tree | None = None) -> Any:
        """What a section such as "rule" or "solvers.free" names, its settings applied."""
        kind = "solvers" if section.startswith("solvers.") else SECTIONS[section][0]
        settings = reduce(getitem, section.split("."), self.tree)
        name = settings["name"]
        factory = registry.resolve(kind, name, self.folder)
        arguments = {key: settings[key] for key in fields(factory) if key in settings}
        for key in layer_tables(factory):
            if key in arguments:
                arguments[key] = self.build_layers(f"{section}.{key}", arguments[key])
        arguments |= wired or {}
        try:
            inspect.signature(factory).bind(**arguments)
        except TypeError as error:
            raise self.fault(f"{section}.name", name, str(error)) from error
        try:
            made = factory(**arguments)
        except DataError:
            raise
        except ValueError as error:
            other = self.fault(f"{section}.name", name, str(error))
            raise self.named_fault(section, error) or other from error
        except Exception as error:
            if ":" not in name:
                raise
            if kind == "data" and isinstance(error, OSError):
                raise DataError(f"{self.path}:data.name = {name!r}: {error}") from error
            self.blame(error, section.partition(".")[0])
        if not isinstance(made, registry.WORDS[kind]):
            wanted = " or a ".join(word.__name__ for word in registry.WORDS[kind])
            remedy = f"gives a {type(made).__name__}; it must give a {wanted}"
            raise self.fault(f"{section}.name", name, remedy)
        return made

    def named_fault(self, section: str, error: Exception) -> ConfigError | None:
        """The error for the setting that `factory: setting = value: remedy` names, if it does."""
        settings = reduce(getitem, section.split("."), self.tree)
        said = re.fullmatch(r"\w+: (\w+) = (.*?): (.*)", str(error), re.DOTALL)
        if said is None or said[1] not in settings:
            return None
        place, value, entry = f"{section}.{said[1]}", settings[said[1]], said[2].strip("'")
        if isinstance(value, dict) and entry in value:  # one layer of a table of them
            place, value = f"{place}.{entry}", value[entry]["name"]
        return self.fault(place, value, said[3])

    def build_network(self) -> Any:
        """The chain of [network] layers, or None where there is no such section."""
        from bpeq.layers import chain

        if "network" not in self.tree:
            return None
        specs = dict(enumerate(self.tree["network"]["layers"]))
        return chain(*self.build_layers("network.layers", specs).values())

    def build_layers(self, place: str, specs: Mapping[Any, Tree]) -> dict[Any, Any]:
        """Several layers, each under its spec's key."""
        lookup = partial(registry.resolve, "layers", folder=self.folder)
        made = {}
        for key, spec in specs.items():
            try:
                made[key] = build_layer(spec, lookup)
            except ValueError as error:
                raise self.fault(f"{place}.{key}", spec["name"], str(error)) from error
            except Exception as error:
                if ":" not in str(spec):
                    raise
                self.blame(error, place.partition(".")[0])
        return made

    def _under(self, rule: str) -> list[str]:
        """The overrides, with another rule's name and without settings that it does not have."""
        try:
            known = fields(registry.resolve("rules", rule, self.folder))
        except ValueError as error:
            raise ConfigError(f"--rules = {rule!r}: {error}") from error
        keys = [read_pair(text)[0].split(".") for text in self.overrides]
        kept = [
            text
            for text, key in zip(self.overrides, keys, strict=True)
            if key[0] != "rule" or key[-1] in known
        ]
        return [*kept, f"rule.name={rule}"]


def load(
    path: Path | str, overrides: Sequence[str] = (), *, controls: bool = False, study: bool = True
) -> Config:
    """Reads and checks a config, with `key=value` overrides on top.

    The settings of [rule] belong to the rule that it names. When an override names another rule,
    they stay behind, and [rules.NAME] of the new one applies: its settings, and whole sections like
    `optimizer` that this rule wants different. With `controls`, the sections of [controls] are laid
    on top. Other overrides come last. What does not apply to this run is checked all the same.
    Without `study`, the config is what it would be if it named no experiment.

    Raises:
      ConfigError: anything at all that is wrong with it, in one line.
    """
    path = Path(path)
    file = {k: v for k, v in _read(path).items() if study or k not in ("experiment", "study")}
    pairs = [read_pair(text) for text in overrides]
    source = Source(path, file, tuple(key for key, _ in pairs))
    try:
        for key, value in pairs:
            if key.partition(".")[0] in ("rules", "controls"):
                put(file, key, value)
        check_tables(file, pairs)
        source = source._replace(rule=chosen_rule(file, pairs), controls=controls)
        tree = _assembled(source, pairs)
        _check_others(source)
        return Config(path.stem, path, tree, tuple(overrides), source)
    except Fault as fault:
        raise source.error(fault.key, fault.value, fault.remedy) from None


def _read(path: Path) -> Tree:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text: {error.reason} at byte {error.start}") from None
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: malformed TOML: {error}") from None
    except (ValueError, RecursionError):
        problem = "a number too long, or lists nested too deeply"
        raise ConfigError(f"{path}: malformed TOML: {problem}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None


def _assembled(source: Source, pairs: Sequence[tuple[str, Any]]) -> Tree:
    """All sections laid over each other, the overrides put in, checked and completed."""
    home = source.file.get("folder", ".")
    folder = source.path.parent / (home if isinstance(home, str) else ".")
    tree = lay(source.file, pairs, source.controls, folder)
    tree = each_network(tree, parse_network, folder)
    tree = _with_tables(tree, folder, parse_each)
    for key, value in pairs:
        if key.partition(".")[0] not in ("rules", "controls"):
            put(tree, key, value)
    check_tables(tree)
    done = settle_sections(_with_tables(tree, folder, settle_each), folder)
    given = done.get("data", {}).get("path")
    if isinstance(given, str) and given and os.path.exists(folder / given):
        done["data"]["path"] = str((folder / given).resolve())  # found from elsewhere too
    if re.search(r"\w:\w", str(done)):  # perhaps a dotted path: a copy elsewhere must find it too
        done["folder"] = str(folder.resolve())
    return done


def _with_tables(tree: Tree, folder: Path, change: Callable[..., Tree]) -> Tree:
    """The tree with the layers changed in every table of layers, such as [system] skips.

    What is no table, and a section whose factory is not found, is left for its section's own check.
    """
    lookup = partial(registry.resolve, "layers", folder=folder)
    changed = dict(tree)
    for section, (kind, default) in SECTIONS.items():
        given = tree.get(section, {})
        try:
            factory = registry.resolve(kind, str(given.get("name", default)), folder)
        except ValueError:
            continue
        for key in layer_tables(factory):
            if isinstance(given.get(key), dict):
                own = change(f"{section}.{key}", given[key], lookup)
                changed[section] = {**changed[section], key: own}
    return changed


def _check_others(source: Source) -> None:
    """[rule], [rules.NAME] and [controls] are checked even where they do not apply to this run."""
    rules = [*source.file.get("rules", {}), chosen_rule(source.file, ())]
    variants = [source._replace(rule=rule, controls=False) for rule in rules if rule != source.rule]
    if not source.controls:
        variants.append(source._replace(rule="backprop", controls=True))
    for variant in variants:
        try:
            _assembled(variant, [("rule.name", variant.rule)])
        except Fault as fault:
            written = variant.written(fault.key, fault.value)
            if written.partition(".")[0] in ("rule", "rules", "controls"):
                beside = tuple(key for key in source.keys if key != "rule.name")
                named = variant._replace(keys=beside)
                raise named.error(fault.key, fault.value, fault.remedy) from None
