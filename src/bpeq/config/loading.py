"""From TOML to checked settings: `load_config` reads a config. Every error is one line."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from bpeq.config import registry
from bpeq.config.building import build_part
from bpeq.config.errors import ConfigError
from bpeq.config.overrides import SECTIONS, Source, lay
from bpeq.config.parts import Part, to_toml
from bpeq.config.schema import fields
from bpeq.config.sections import (
    Fidelity,
    NetworkSettings,
    Run,
    Training,
    read_section,
    read_sections,
)
from bpeq.core.paths import user_path
from bpeq.settings import SettingError

_FIELDS = {"data": "data_or_none", "training": "training_or_none", "fidelity": "fidelity_or_none"}
"""Sections that may be absent. A property of Config handles their absence."""


@dataclass(frozen=True)
class Config:
    """A config: every setting is typed, checked and completed with its default. It never changes.

    A `Part` holds a factory and its settings.

    Args:
      name: the name of the file without its ending. It names run folders.
      path: the file.
      source: where each setting was written.
      run: the settings outside any section.
      cost, system, rule, optimizer, schedule: the Part of each of these sections.
      solvers: one Part for each phase of [solvers].
      imperfections: the Part of [imperfections]; None: a perfect device.
      network: the layers of [network]; None without the section.
      networks: the layers of each [networks.NAME].
      study: the settings of the experiment.
      data_or_none: the Part of [data]; None without the section.
      training_or_none: the settings of [training]; None without the section.
      fidelity_or_none: the settings of [fidelity]; None: the run does not measure its fidelity.
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
        """The seed of all random numbers, 0 to 2³² − 1."""
        return self.run.seed

    @property
    def seeds(self) -> int:
        """The number of seeds that are trained together."""
        return self.run.seeds

    @property
    def precision(self) -> str:
        """The floating-point type, "float32" or "float64"."""
        return self.run.precision

    @property
    def double(self) -> bool:
        """Whether the config computes in float64."""
        return self.run.precision == "float64"

    @property
    def experiment(self) -> str | None:
        """The path of the study file; None without one."""
        return self.run.experiment

    @property
    def data(self) -> Part:
        """[data]. Raises ConfigError if the config of a study has no such section."""
        if self.data_or_none is None:
            remedy = "is missing; only `bpeq run` and `check` need none"
            raise self.error("data.name", None, remedy)
        return self.data_or_none

    @property
    def training(self) -> Training:
        """[training]. Raises ConfigError if the config of a study has no such section."""
        if self.training_or_none is None:
            raise self.error("training.epochs", None, "is missing; only `bpeq run` needs none")
        return self.training_or_none

    @property
    def fidelity(self) -> Fidelity:
        """[fidelity], or its defaults if it is absent."""
        return self.fidelity_or_none or Fidelity()

    @property
    def overrides(self) -> tuple[str, ...]:
        """The texts of `--set`."""
        return self.source.texts

    @property
    def folder(self) -> Path:
        """The folder where dotted paths are looked up."""
        return self.source.folder

    def parts(self) -> Iterator[Part]:
        """Iterates over all parts of the config, with all layers inside layers."""
        networks = filter(None, (self.network, *self.networks.values()))
        layers = (layer for network in networks for layer in network.layers)
        sections = (getattr(self, _FIELDS.get(name, name)) for name in SECTIONS)
        for part in (*filter(None, sections), *layers, *self.solvers.values()):
            yield from part.walk()

    def as_dict(self) -> dict[str, Any]:
        """A new dict with every setting, in the form of a TOML file."""
        tree = to_toml(self.run)
        if any(part.is_users_own for part in self.parts()):  # a copy must find them too
            tree["folder"] = str(self.folder.resolve())
        later = ("network", "networks", "study", "training", "fidelity", "solvers")
        for name in (*SECTIONS, *later):
            section = getattr(self, _FIELDS.get(name, name))
            kept = self.experiment is not None if name == "study" else section or name == "solvers"
            if kept:
                tree[name] = to_toml(section)
        return tree

    # --- other configs from the same file ---

    def with_rule(self, name: str) -> Config:
        """The same config with another rule and the settings of its [rules.NAME].

        A `--set rule.KEY=…` is dropped if the other rule has no such setting.

        Args:
          name: the name or the dotted path of the rule.

        Raises:
          ConfigError: there is no such rule, or a setting does not suit it.
        """
        return self if name == self.rule.name else self._under(name, listed=True)

    def for_controls(self) -> Config:
        """The same config for the null controls: backprop, with the settings of [controls]."""
        return self._under("backprop", listed=False, controls=True)

    def override(self, *texts: str) -> Config:
        """The same config with further overrides.

        Args:
          texts: `key=value` texts of `--set`.

        Raises:
          ConfigError: a text or a setting is wrong.
        """
        return _assemble_checked(self.source.add(texts))

    def without_study(self) -> Config:
        """The same config without the experiment and its settings."""
        if self.training_or_none is None:  # then the config need not be a whole one
            return replace(self, run=self.run._replace(experiment=None), study={})
        return _assemble(self.source._replace(study=False))

    def changed(self, **sections: Mapping[str, Any] | None) -> Config:
        """The same config with some settings of sections replaced.

        Args:
          sections: section name -> its new settings; None removes the section.

        Raises:
          ConfigError: a setting is wrong.
        """
        tree = self.as_dict()
        changed: dict[str, Any] = {}
        for name, settings in sections.items():
            field = _FIELDS.get(name, name)
            changed[field] = None
            if settings is not None:
                whole = {**tree.get(name, {}), **settings}
                with self.source.locate_errors():
                    changed[field] = read_section(name, whole, self.folder, self.rule)
        return replace(self, **changed)

    def _under(self, rule: str, *, listed: bool, controls: bool = False) -> Config:
        """The config under another rule, without `--set` texts for settings that it lacks."""
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
        """The error for a key: `FILE:KEY = VALUE: REMEDY`, or `--set KEY …` for an override.

        Args:
          key: the dotted key.
          value: the value; None if it is absent.
          remedy: what is allowed, or what to do.
        """
        return self.source.error(key, value, remedy)

    def build(self, part: Part, /, **wired: Any) -> Any:
        """What the factory of a part returns; see `build_part`, also for its errors.

        Args:
          part: the part.
          wired: the other arguments of the factory, such as the network of a rule.
        """
        return build_part(self.error, part, wired)

    def build_network(self) -> Any:
        """The chain of the layers in [network]; None without the section."""
        from bpeq.layers import chain

        return None if self.network is None else chain(*map(self.build, self.network.layers))


def load_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Reads and checks a config, with `key=value` overrides.

    The settings of [rule] belong to the rule that it names. If an override names another rule, they
    do not apply. [rules.NAME] of the new rule applies instead, with its settings and its own
    sections, such as `optimizer`. Other overrides apply last. Sections that do not apply to this
    run, such as [controls], are checked too.

    Args:
      path: a TOML file.
      overrides: texts of `--set`, such as "rule.beta=0.1".

    Returns:
      The checked config.

    Raises:
      ConfigError: the file cannot be read, or a setting is wrong. The message is one line.
    """
    path = user_path(path)
    return _assemble_checked(Source(path, _read_toml(path)).add(overrides))


def _read_toml(path: Path) -> dict[str, Any]:
    """Parses a TOML file. Raises ConfigError if it is not readable."""
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
    """Merges all sections, checks them and fills in the defaults."""
    with source.locate_errors():
        sections = read_sections(lay(source), source.folder)
    sections = {_FIELDS.get(name, name): section for name, section in sections.items()}
    return Config(source.path.stem, source.path, source, **sections)


def _assemble_checked(source: Source) -> Config:
    """Checks also [rule], [rules.NAME] and [controls] that do not apply to this run."""
    config = _assemble(source)
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
    return config
