"""The sections of a config: their settings, checked and completed with defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Interval

from bpeq.config import registry
from bpeq.config.overrides import LEFT_OUT, SECTIONS, TABLES
from bpeq.config.parts import Part, read_part, to_toml
from bpeq.config.schema import validate, wires
from bpeq.core.paths import user_path
from bpeq.settings import Count, NonNegative, Positive, SettingError
from bpeq.types import Solver

Tree = dict[str, Any]
Points = Annotated[int, Ge(2)]


class Run(NamedTuple):
    """The settings outside any section.

    Args:
      seed: the seed of all random numbers, 0 to 2³² − 1.
      seeds: the number of seeds that are trained together.
      precision: "float32" or "float64".
      experiment: the study file; None: the built-in supervised training.
      checkpoint_share: the share of the run's time that checkpoints may take, 0 to 1; 1 saves after
        each row.
      devices: the number of devices that share each batch; None: one device, or all devices of
        several processes.
      folder: where dotted paths are looked up; None: beside the config.
    """

    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    seeds: Count = 1
    precision: Literal["float32", "float64"] = "float32"
    experiment: str | None = None
    checkpoint_share: Annotated[float, Interval(ge=0, le=1)] = 0.03
    devices: Count | Literal["all"] | None = None
    folder: str | None = None


class Training(NamedTuple):
    """The settings of [training].

    Args:
      epochs: the number of passes over the data.
      batch_size: the number of examples of an update.
      evaluate_every: the number of epochs between two evaluations.
      evaluate_train: whether each evaluation also covers the training examples, so that the curves
        show the training error. The default does so only at the end, which takes less time.
      unsettled: what the run does if a phase ends above its solver's tolerance. Each row records
        the share of such phases. "record" does nothing more. "warn" prints one line at the first
        such row. "stop" ends the run there.
    """

    epochs: Count
    batch_size: Count
    evaluate_every: Count = 1
    evaluate_train: bool = False
    unsettled: Literal["record", "warn", "stop"] = "record"


class Rates(NamedTuple):
    """The settings of [optimizer] that do not belong to the named optimizer.

    Args:
      layer_rates: one learning rate for each layer; None: one rate for all.
      clip_norm: the largest norm of the gradient, > 0; None: no limit.
    """

    layer_rates: list[NonNegative] | None = None
    clip_norm: Positive | None = None


class Fidelity(NamedTuple):
    """The settings of [fidelity]: what `bpeq fidelity` measures.

    If the section is present, a run also records its fidelity. Each grid covers the rules that have
    the setting which it varies.

    Args:
      examples: the number of training examples in the one batch; None: 32, or all if there are
        fewer.
      betas: a grid of β (for coupled learning of η, up to 1); None: no grid.
      nudgings: the nudgings of eqprop in the grids, such as "holomorphic-4" for N = 4; None: all
        that the rule has.
      points: a grid of N for holomorphic eqprop; None: no grid.
      sweeps: a grid of sweeps for all phases together, or for a rule's own number of sweeps; None:
        no grid.
      precisions: the precisions of the grids and rules; None: the config's own.
      gdu: whether to compare EP's updates with BPTT's gradients in each sweep.
    """

    examples: Count | None = None
    betas: list[Positive] | None = None
    nudgings: list[str] | None = None
    points: list[Points] | None = None
    sweeps: list[Count] | None = None
    precisions: list[Literal["float32", "float64"]] | None = None
    gdu: bool = False


class Inputs(NamedTuple):
    """The settings of [networks.NAME] besides its layers.

    Args:
      input: the shape of one example.
      tokens: the inputs are whole numbers below this; None: the inputs are real numbers.
    """

    input: list[Count]
    tokens: Count | None = None


class NetworkSettings(NamedTuple):
    """The settings of [network] or of one [networks.NAME].

    Args:
      layers: the layers in order.
      input: the shape of one example; empty for [network].
      tokens: as in `Inputs`; None for [network].
    """

    layers: tuple[Part, ...]
    input: tuple[int, ...] = ()
    tokens: int | None = None

    def as_dict(self) -> Tree:
        """Converts the network to a section of a TOML file.

        Returns:
          The section.
        """
        return to_toml(self)


def read_sections(tree: Tree, folder: Path) -> dict[str, Any]:
    """Reads and checks every section of a config.

    Args:
      tree: the sections as parsed from TOML.
      folder: where dotted paths are looked up.

    Returns:
      The sections by name, with `run` for the settings outside any section.

    Raises:
      SettingError: a setting is wrong.
    """
    top = {key: value for key, value in tree.items() if key not in TABLES}
    for key, value in top.items():
        if key not in Run._fields:
            remedy = registry.choices([*Run._fields, *TABLES], key)
            raise SettingError("", key, value, f"unknown key; {remedy}")
    run = Run(**validate(Run, top, ""))
    sections: dict[str, Any] = {"run": run}
    if run.experiment is None and "data" not in tree:
        remedy = registry.choices(registry.KINDS["data"], "")
        raise SettingError("", "data.name", None, f"is missing; {remedy}")
    for section in (*SECTIONS, "network", "networks", "fidelity"):
        if section in tree or (section in SECTIONS and section not in LEFT_OUT):
            sections[section] = read_section(section, tree.get(section), folder)
    if run.experiment is not None:
        sections["run"], sections["study"] = _read_study(run, tree.get("study", {}), folder)
    elif "study" in tree:
        remedy = "are settings of an experiment, and none is named"
        raise SettingError("", "study", tree["study"], remedy)
    if "training" in tree or run.experiment is None:
        sections["training"] = read_section("training", tree.get("training", {}), folder)
    sections["solvers"] = read_section("solvers", tree.get("solvers", {}), folder, sections["rule"])
    return sections


def read_section(name: str, values: Any, folder: Path, rule: Part | None = None) -> Any:
    """Reads and checks one section.

    Args:
      name: the name of the section.
      values: the parsed section; None if it is absent.
      folder: where dotted paths are looked up.
      rule: the config's rule, which only [solvers] needs, for the names of its phases.

    Returns:
      The section: a Part, a dict of Parts for [solvers], or the NamedTuple of its settings.

    Raises:
      SettingError: a setting is wrong.
    """
    if name == "network":
        return _read_network(values, name, folder)
    if name == "networks":
        return {key: _read_network(each, f"{name}.{key}", folder) for key, each in values.items()}
    if name == "training":
        return Training(**validate(Training, values, name))
    if name == "solvers":
        assert rule is not None
        return _read_solvers(values, rule, folder)
    if name == "fidelity":
        return _read_fidelity(values)
    kind, default = SECTIONS[name]
    if name == "optimizer" and values is None:
        values = {"learning_rate": 1e-3}
    beside = Rates if name == "optimizer" else None
    part = read_part(kind, {"name": default, **(values or {})}, name, folder, beside)
    path = part.settings.get("path")
    if name == "data" and isinstance(path, str) and path:
        file = folder / user_path(path)
        if os.path.exists(file):  # a copy of the config elsewhere must find it
            part = replace(part, settings={**part.settings, "path": str(file.resolve())})
    return part


def _read_network(values: Any, place: str, folder: Path) -> NetworkSettings:
    """Reads [network] or one [networks.NAME]."""
    if not isinstance(values, dict):
        raise SettingError("", place, values, "must be a section")
    known, texts = [*(() if place == "network" else Inputs._fields), "layers"], values.get("layers")
    for key, value in values.items():
        if key not in known:
            remedy = f"unknown key; {registry.choices(known, key)}"
            raise SettingError("", f"{place}.{key}", value, remedy)
    if not isinstance(texts, list) or not texts:
        remedy = 'must be a list of layers such as ["dense(128)"]'
        raise SettingError("", f"{place}.layers", texts, remedy)
    layers = (read_part("layers", x, f"{place}.layers.{i}", folder) for i, x in enumerate(texts))
    if place == "network":
        return NetworkSettings(tuple(layers))
    beside = {key: value for key, value in values.items() if key != "layers"}
    inputs = Inputs(**validate(Inputs, beside, place))
    return NetworkSettings(tuple(layers), tuple(inputs.input), inputs.tokens)


def _read_fidelity(values: Tree) -> Fidelity:
    """Reads [fidelity], and checks its nudgings and that no grid has an entry twice."""
    fidelity = Fidelity(**validate(Fidelity, values, "fidelity"))
    for i, name in enumerate(fidelity.nudgings or []):
        circle = re.fullmatch(r"(holomorphic|online)-([1-9]\d*)", name)
        if name not in ("one-sided", "centered") and not (circle and int(circle[2]) >= 2):
            known = ["one-sided", "centered", "holomorphic-N", "online-N"]
            remedy = f"{registry.choices(known, name)} (N >= 2, such as holomorphic-4)"
            raise SettingError("", f"fidelity.nudgings.{i}", name, remedy)
    for key, values in fidelity._asdict().items():
        if isinstance(values, list) and len(set(values)) < len(values):
            remedy = "must be a list of different entries"
            raise SettingError("", f"fidelity.{key}", values, remedy)
    return fidelity


def _read_study(run: Run, settings: Tree, folder: Path) -> tuple[Run, Tree]:
    """The run with the absolute path of its study file, and the checked settings of the study."""
    assert run.experiment is not None
    try:
        study = registry.load_study(run.experiment, folder)
    except ValueError as error:
        raise SettingError("", "experiment", run.experiment, str(error)) from None
    if run.devices not in (None, 1):
        remedy = "a study's own steps run on one device; allowed: 1"
        raise SettingError("", "devices", run.devices, remedy)
    path = str(Path(study.__code__.co_filename).resolve())
    return run._replace(experiment=path), validate(study, settings, "study", skip=2)


def _read_solvers(values: Mapping[str, Any], rule: Part, folder: Path) -> dict[str, Part]:
    """Reads the solvers by phase. The phases of all rules are allowed."""
    factories = [*registry.KINDS["rules"].values(), rule.factory]
    known = sorted({key for f in factories for key, word in wires(f).items() if word is Solver})
    for key, value in values.items():
        place = f"solvers.{key}"
        if key not in known:
            raise SettingError("", place, value, f"unknown phase; {registry.choices(known, key)}")
        if not isinstance(value, dict):
            raise SettingError("", place, value, "must be a section")
    return {key: read_part("solvers", x, f"solvers.{key}", folder) for key, x in values.items()}
