"""TOML to checked settings: `load_config` reads a config, and every error in it is one line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bpeq.config import registry
from bpeq.config.building import build_part, part_error
from bpeq.config.errors import ConfigError
from bpeq.config.overrides import SECTIONS, Source, lay
from bpeq.config.parts import Part
from bpeq.config.schema import fields
from bpeq.config.sections import (
    Fidelity,
    NetworkSettings,
    Run,
    Training,
    read_section,
    read_sections,
)
from bpeq.settings import SettingError

_FIELDS = {"data": "data_or_none", "training": "training_or_none", "fidelity": "fidelity_or_none"}
"""Sections that may be absent, and whose property says what absence means."""


@dataclass(frozen=True)
class Config:
    """A config: every setting typed and checked, with the defaults filled in. It never changes.

    name: of the file, which names run folders. rule, system, cost, ...: a `Part` each, whose
    `settings` are what the factory takes. network: the layers of [network]; networks: those of
    [networks.NAME]. solvers: a Part a phase. study: the settings of the experiment. run: what
    stands outside any section. source: where each setting was written.
    """

    name: str
    path: Path
    source: Source
    run: Run
    cost: Part
    system: Part
    rule: Part
    optimizer: Part
    schedule: Part
    solvers: Mapping[str, Part]
    imperfections: Part | None = None
    network: NetworkSettings | None = None
    networks: Mapping[str, NetworkSettings] = field(default_factory=dict)
    study: Mapping[str, Any] = field(default_factory=dict)
    data_or_none: Part | None = None
    training_or_none: Training | None = None
    fidelity_or_none: Fidelity | None = None

    # --- reading ---

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def seeds(self) -> int:
        return self.run.seeds

    @property
    def precision(self) -> str:
        return self.run.precision

    @property
    def double(self) -> bool:
        """Whether the config computes in float64."""
        return self.run.precision == "float64"

    @property
    def experiment(self) -> str | None:
        """The study file that the config names."""
        return self.run.experiment

    @property
    def data(self) -> Part:
        """[data]. Raises ConfigError if a study's config has none."""
        if self.data_or_none is None:
            remedy = "is missing; only `bpeq run` and `check` need none"
            raise self.error("data.name", None, remedy)
        return self.data_or_none

    @property
    def training(self) -> Training:
        """[training]. Raises ConfigError if a study's config has none."""
        if self.training_or_none is None:
            raise self.error("training.epochs", None, "is missing; only `bpeq run` needs none")
        return self.training_or_none

    @property
    def fidelity(self) -> Fidelity:
        """[fidelity], or its defaults; `fidelity_or_none` tells whether a run measures it."""
        return self.fidelity_or_none or Fidelity()

    @property
    def overrides(self) -> tuple[str, ...]:
        """What --set said."""
        return self.source.texts

    @property
    def folder(self) -> Path:
        """Where dotted paths are looked for."""
        return self.source.folder

    def parts(self) -> Iterator[Part]:
        """Every part of the config, layers inside layers too."""
        networks = filter(None, (self.network, *self.networks.values()))
        layers = (layer for network in networks for layer in network.layers)
        sections = (getattr(self, _FIELDS.get(name, name)) for name in SECTIONS)
        for part in (*filter(None, sections), *layers, *self.solvers.values()):
            yield from part.walk()

    def as_dict(self) -> dict[str, Any]:
        """Every setting as a TOML file has it; to be read anew, not to be changed."""
        tree: dict[str, Any] = {k: v for k, v in self.run._asdict().items() if v is not None}
        if any(part.is_users_own for part in self.parts()):  # a copy elsewhere must find them too
            tree["folder"] = str(self.folder.resolve())
        for name in (*SECTIONS, "network"):
            section = getattr(self, _FIELDS.get(name, name))
            if section is not None:
                tree[name] = section.as_dict()
        if self.networks:
            tree["networks"] = {key: each.as_dict() for key, each in self.networks.items()}
        if self.experiment is not None:
            tree["study"] = dict(self.study)
        for name in ("training", "fidelity"):
            section = getattr(self, _FIELDS[name])
            if section is not None:
                tree[name] = {k: v for k, v in section._asdict().items() if v is not None}
        tree["solvers"] = {phase: each.as_dict() for phase, each in self.solvers.items()}
        return tree

    @cached_property
    def tree(self) -> dict[str, Any]:
        return self.as_dict()

    # --- other configs from the same file ---

    def with_rule(self, name: str) -> Config:
        """The same config under another rule, which brings its own [rules.NAME] along.

        A `--set rule.beta=…` stays behind if the other rule has no such setting.
        """
        return self if name == self.rule.name else self._under(name, listed=True)

    def for_controls(self) -> Config:
        """The same config under backprop, with what [controls] asks for the null controls."""
        return self._under("backprop", listed=False, controls=True)

    def override(self, *texts: str) -> Config:
        """The same config with further `key=value` texts of --set."""
        source = self.source.add(texts)
        config = _assemble(source)
        _check_others(source)
        return config

    def without_study(self) -> Config:
        """The config that it would be if it named no experiment."""
        if self.training_or_none is None:  # then the study reads its own few sections
            return replace(self, run=self.run._replace(experiment=None), study={})
        return _assemble(self.source._replace(study=False))

    def changed(self, **sections: Mapping[str, Any] | None) -> Config:
        """The same config with some settings of sections replaced; None takes a section away.

        Raises:
          ConfigError: a setting is wrong.
        """
        fields: dict[str, Any] = {}
        for name, settings in sections.items():
            own = None
            if settings is not None:
                own = self._read(name, {**self.as_dict().get(name, {}), **settings})
            fields[_FIELDS.get(name, name)] = own
        return replace(self, **fields)

    def _read(self, name: str, given: dict[str, Any]) -> Any:
        with self.source.locate_errors():
            return read_section(name, given, self.folder, self.rule)

    def _under(self, rule: str, *, listed: bool, controls: bool = False) -> Config:
        """The config with another rule's name, without --set of settings that it does not have."""
        try:
            known = fields(registry.resolve("rules", rule, self.folder))
        except ValueError as error:
            raise ConfigError("--rules", "", rule, str(error)) from error
        keys = [key.split(".") for key, _ in self.source.pairs]
        kept = (
            text
            for text, key in zip(self.source.texts, keys, strict=True)
            if key[0] != "rule" or key[-1] in known
        )
        study = self.source.study and self.experiment is not None
        source = self.source._replace(texts=(*kept, f"rule.name={rule}"), study=study)
        return _assemble(source._replace(listed=listed, controls=controls))

    # --- building ---

    def error(self, key: str, value: Any, remedy: str) -> ConfigError:
        """The error for a key: `FILE:KEY = VALUE: REMEDY`, or --set KEY if it came from there."""
        return self.source.error(key, value, remedy)

    def part_error(self, part: Part, error: ValueError) -> ConfigError:
        """The error for what a part refuses: of the setting that it names, if it names one."""
        return part_error(self.error, part, error)

    def build(self, part: Part, /, **wired: Any) -> Any:
        """What a part's factory makes of its settings; see `build_part`."""
        return build_part(self.error, part, wired)

    def build_network(self) -> Any:
        """The chain of [network] layers; None without such a section."""
        from bpeq.layers import chain

        return None if self.network is None else chain(*map(self.build, self.network.layers))


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a config, with `key=value` overrides on top.

    The settings of [rule] belong to the rule that it names. When an override names another rule,
    they stay behind, and [rules.NAME] of the new one applies: its settings, and whole sections like
    `optimizer` that this rule wants different. Other overrides come last. What does not apply to
    this run, such as [controls], is checked all the same.

    Args:
      path: a TOML file.
      overrides: texts of `--set`, such as "rule.beta=0.1".

    Raises:
      ConfigError: anything at all that is wrong with it, in one line.
    """
    path = Path(path)
    source = Source(path, _read_toml(path)).add(overrides)
    config = _assemble(source)
    _check_others(source)
    return config


load = load_config


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        remedy = f"is not text: {error.reason} at byte {error.start}"
    except tomllib.TOMLDecodeError as error:
        remedy = f"malformed TOML: {error}"
    except (ValueError, RecursionError):
        remedy = "malformed TOML: a number too long, or lists nested too deeply"
    except OSError as error:
        remedy = f"cannot read the config: {error.strerror}"
    raise ConfigError(str(path), remedy=remedy)


def _assemble(source: Source) -> Config:
    """All sections laid over each other, checked and completed."""
    with source.locate_errors():
        sections = read_sections(lay(source), source.folder)
    sections = {_FIELDS.get(name, name): section for name, section in sections.items()}
    return Config(source.path.stem, source.path, source, **sections)


def _check_others(source: Source) -> None:
    """Checks [rule], [rules.NAME] and [controls] even if they do not apply to this run."""
    rules = [*source.file.get("rules", {}), source.rule_of_file]
    others = [(rule, False) for rule in rules if rule != source.rule]
    others += [("backprop", True)] * (not source.controls)
    for rule, controls in others:
        named = (f"rule.name={rule}",)
        variant = source._replace(texts=named, controls=controls)
        try:
            read_sections(lay(variant), source.folder)
        except SettingError as error:
            written = variant.written(error.setting, error.value)
            if written.partition(".")[0] in ("rule", "rules", "controls"):
                texts = tuple(t for t in source.texts if t.partition("=")[0].strip() != "rule.name")
                located = variant._replace(texts=(*texts, *named))
                raise located.error(error.setting, error.value, error.remedy) from None
