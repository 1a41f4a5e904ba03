"""TOML to checked settings: one function reads a config, and nothing in it is taken on trust."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Interval

from bpeq import registry
from bpeq._calls import build_layer, parse_layer, settle_layer
from bpeq._overrides import choose_rule, overlay, put, read_pair, resolve
from bpeq._schema import ConfigError, Fault, fields, settle, wires
from bpeq.settings import Count, NonNegative
from bpeq.types import Solver

Tree = dict[str, Any]


class Run(NamedTuple):
    """What stands outside any section."""

    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    seeds: Count = 1
    precision: Literal["float32", "float64"] = "float32"
    experiment: str | None = None


class Training(NamedTuple):
    """[training]: passes over the data, examples an update, epochs between two evaluations."""

    epochs: Count
    batch_size: Count
    evaluate_every: Count = 1


class Rates(NamedTuple):
    """What [optimizer] takes beside the settings of the optimizer that it names."""

    layer_rates: list[NonNegative] | None = None
    clip_norm: NonNegative | None = None


SECTIONS = {
    "data": ("data", None),
    "cost": ("costs", "squared_error"),
    "system": ("systems", "hopfield"),
    "rule": ("rules", "backprop"),
    "optimizer": ("optimizers", "adam"),
    "schedule": ("schedules", "constant"),
}
"""Section -> (kind of factory, the name taken where the section is absent)."""
_TABLES = (*SECTIONS, "network", "solvers", "training", "rules", "controls")


class Config(NamedTuple):
    """A checked config: `tree` has every setting, defaults filled in, as a file would write it."""

    name: str
    path: Path
    tree: Tree
    overrides: tuple[str, ...]

    def fault(self, key: str, value: Any, remedy: str) -> ConfigError:
        """The error for a key: `FILE:KEY = VALUE: REMEDY`, or --set KEY if it came thence."""
        return _fault(self.path, self.overrides, key, value, remedy)

    def with_rule(self, name: str) -> Config:
        """The same config under another rule, which brings its own [rules.NAME] along."""
        return load(self.path, (*self.overrides, f"rule.name={name}"))

    def for_controls(self) -> Config:
        """The same config under backprop, with what [controls] asks for the null controls."""
        return load(self.path, (*self.overrides, "rule.name=backprop"), controls=True)

    def changed(self, **sections: Any) -> Config:
        """The same config with some sections' entries replaced."""
        tree = {**self.tree}
        for name, entries in sections.items():
            tree[name] = {**tree.get(name, {}), **entries}
        return self._replace(tree=tree)

    def build(self, section: str, wired: Tree | None = None) -> Any:
        """What a section such as "rule" or "solvers.free" names, its settings applied."""
        kind = "solvers" if section.startswith("solvers.") else SECTIONS[section][0]
        settings: Any = self.tree
        for part in section.split("."):
            settings = settings[part]
        factory = registry.resolve(kind, settings["name"], self.path.parent)
        own = {key: settings[key] for key in fields(factory) if key in settings}
        try:
            return factory(**(wired or {}), **own)
        except ValueError as error:
            raise self.fault(f"{section}.name", settings["name"], str(error)) from error

    def build_network(self) -> Any:
        """The chain of [network] layers, or None where there is no such section."""
        from bpeq.layers import chain

        if "network" not in self.tree:
            return None
        lookup = partial(registry.resolve, "layers", folder=self.path.parent)
        layers = []
        for i, spec in enumerate(self.tree["network"]["layers"]):
            try:
                layers.append(build_layer(spec, lookup))
            except ValueError as error:
                raise self.fault(f"network.layers.{i}", spec["name"], str(error)) from error
        return chain(*layers)


def load(path: Path | str, overrides: Sequence[str] = (), *, controls: bool = False) -> Config:
    """Reads and checks a config, with `key=value` overrides on top.

    The settings of [rule] belong to the rule that it names. When an override names another rule,
    they stay behind, and [rules.NAME] of the new one applies: its settings, and whole sections like
    `optimizer` that this rule wants different. With `controls`, the sections of [controls] are laid
    on top. Other overrides come last.

    Raises:
      ConfigError: anything at all that is wrong with it, in one line.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            tree = tomllib.load(file)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: malformed TOML: {error}") from None
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not text: {error.reason} at byte {error.start}") from None
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the config: {error.strerror}") from None
    pairs = [read_pair(text) for text in overrides]
    problem = partial(_fault, path, [key for key, _ in pairs])
    for name, value in tree.items():
        if name in _TABLES and not isinstance(value, dict):
            raise problem(name, value, "must be a section")
    try:
        tree = choose_rule(tree, pairs, "backprop", _TABLES, path.parent)
        own = tree.pop("controls", {})
        tree = overlay(tree, own) if controls else tree
        if "network" in tree:
            tree["network"] = _parsed(tree["network"], path.parent)
        for key, value in pairs:
            if not key.startswith("rules."):
                put(tree, key, value)
        return Config(path.stem, path, _settled(tree, path.parent), tuple(overrides))
    except Fault as fault:
        raise problem(fault.key, fault.value, fault.remedy) from None


def _settled(tree: Tree, folder: Path) -> Tree:
    """Every section checked and completed."""
    top = {key: value for key, value in tree.items() if key not in _TABLES}
    for key, value in top.items():
        if key not in Run._fields:
            allowed = [*Run._fields, *_TABLES]
            raise Fault(key, value, f"unknown key; {registry.choices(allowed, key)}")
    done: Tree = _stated(settle(Run, top))
    if "experiment" not in done and "data" not in tree:
        raise Fault(
            "data.name", None, f"is missing; {registry.choices(registry.KINDS['data'], '')}"
        )
    for section, (kind, default) in SECTIONS.items():
        if section in tree or default is not None:
            extra = Rates if section == "optimizer" else None
            given = {"name": default, **tree.get(section, {})}
            if section == "optimizer" and "learning_rate" not in given and section not in tree:
                given["learning_rate"] = 1e-3
            done[section] = _section(kind, section, given, folder, extra)
    if "network" in tree:
        done["network"] = _network(tree["network"], folder)
    if "training" in tree or "experiment" not in done:
        done["training"] = _at("training", settle, Training, tree.get("training", {}))
    done["solvers"] = _solvers(tree.get("solvers", {}), done["rule"]["name"], folder)
    return done


def _section(kind: str, place: str, given: Tree, folder: Path, extra: Any = None) -> Tree:
    factory = resolve(kind, given.get("name"), f"{place}.name", folder)
    own = {key: value for key, value in given.items() if key != "name"}
    beside = {key: own.pop(key) for key in list(own) if extra and key in extra._fields}
    settled = _at(place, settle, factory, own)
    if extra:
        settled |= _at(place, settle, extra, beside)
    return {"name": given["name"], **_stated(settled)}


def _solvers(given: Tree, rule: str, folder: Path) -> Tree:
    factories = [*registry.KINDS["rules"].values(), registry.resolve("rules", rule, folder)]
    known = sorted({key for f in factories for key, word in wires(f).items() if word is Solver})
    done = {}
    for key, value in given.items():
        if key not in known or not isinstance(value, dict):
            raise Fault(f"solvers.{key}", value, f"unknown phase; {registry.choices(known, key)}")
        done[key] = _section("solvers", f"solvers.{key}", value, folder)
    return done


def _parsed(network: Tree, folder: Path) -> Tree:
    """[network] with its calls parsed, so that an override can reach inside one."""
    layers = network.get("layers")
    if not isinstance(layers, list) or not layers:
        raise Fault("network.layers", layers, 'must be a list of layers such as ["dense(128)"]')
    lookup = partial(registry.resolve, "layers", folder=folder)
    parsed = []
    for i, given in enumerate(layers):
        try:
            parsed.append(parse_layer(given, lookup))
        except ValueError as error:
            raise Fault(f"network.layers.{i}", given, str(error)) from None
    return {**network, "layers": parsed}


def _network(network: Tree, folder: Path) -> Tree:
    network = _parsed(network, folder)  # once more: an override may have put a call back
    for key in network:
        if key != "layers":
            raise Fault(f"network.{key}", network[key], "unknown key; allowed: layers")
    lookup = partial(registry.resolve, "layers", folder=folder)
    layers = network["layers"]
    done = [_at(f"network.layers.{i}", settle_layer, s, lookup) for i, s in enumerate(layers)]
    return {"layers": done}


def _at(place: str, check: Any, *args: Any) -> Any:
    """`check`, with the place put before the key of whatever Fault it raises."""
    if len(args) == 2 and check is settle and not isinstance(args[1], dict):
        raise Fault(place, args[1], "must be a section")
    try:
        return check(*args)
    except Fault as fault:
        raise Fault(f"{place}.{fault.key}", fault.value, fault.remedy) from None


def _stated(settings: Tree) -> Tree:
    return {key: value for key, value in settings.items() if value is not None}


def _fault(path: Path, set_keys: Sequence[str], key: str, value: Any, remedy: str) -> ConfigError:
    keys = [text.partition("=")[0].strip() for text in set_keys]
    place = f"--set {key}" if key in keys else f"{path}:{key}"
    given = "" if value is None else f" = {_shown(value)}"
    return ConfigError(f"{place}{given}: {remedy}")


def _shown(value: Any) -> str:
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
