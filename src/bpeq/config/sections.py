"""The sections of a config: what each holds, checked and completed with defaults."""

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
from bpeq.config.parts import Part, read_part
from bpeq.config.schema import study_settings, validate, wires
from bpeq.settings import Count, NonNegative, Positive, SettingError
from bpeq.types import Solver

Tree = dict[str, Any]
Points = Annotated[int, Ge(2)]


class Run(NamedTuple):
    """What stands outside any section.

    checkpoint_share: of a run's time that checkpoints may take; 1 saves after each row. devices:
    how many share each batch. folder: where dotted paths are looked for, if not beside the config.
    """

    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    seeds: Count = 1
    precision: Literal["float32", "float64"] = "float32"
    experiment: str | None = None
    checkpoint_share: Annotated[float, Interval(ge=0, le=1)] = 0.03
    devices: Count | Literal["all"] | None = None
    folder: str | None = None


class Training(NamedTuple):
    """[training]: passes over the data, examples an update, epochs between two evaluations.

    unsettled: what the run does if a phase ends above its solver's tolerance. Each row records the
    share of such phases. "warn" prints one line at the first such row. "stop" ends the run there.
    """

    epochs: Count
    batch_size: Count
    evaluate_every: Count = 1
    unsettled: Literal["record", "warn", "stop"] = "record"


class Rates(NamedTuple):
    """What [optimizer] takes beside the settings of the optimizer that it names."""

    layer_rates: list[NonNegative] | None = None
    clip_norm: NonNegative | None = None


class Fidelity(NamedTuple):
    """[fidelity]: what `bpeq fidelity` measures. If it is there, a run records its fidelity too.

    examples: training examples of the one batch; 32 if absent, or all. Grids are run for every rule
    that has something to vary. betas: a grid of β (coupled learning's η up to 1), for eqprop with
    every one of `nudgings`, such as "holomorphic-4" for N = 4. points: a grid of N, of eqprop.
    sweeps: a grid of sweeps for all phases alike, and for a rule's own count of them. precisions:
    where grids and rules are run; the config's own if absent. gdu: also compare EP's updates, sweep
    by sweep, with BPTT's.
    """

    examples: Count | None = None
    betas: list[Positive] | None = None
    nudgings: list[str] | None = None
    points: list[Points] | None = None
    sweeps: list[Count] | None = None
    precisions: list[Literal["float32", "float64"]] | None = None
    gdu: bool = False


class Inputs(NamedTuple):
    """What [networks.NAME] says beside its layers: the shape of one example, and its tokens.

    tokens: the entries of an example are whole numbers below this; numbers if absent.
    """

    input: list[Count]
    tokens: Count | None = None


class NetworkSettings(NamedTuple):
    """[network], or one of [networks.NAME], which also says what it reads; see `Inputs`."""

    layers: tuple[Part, ...]
    input: tuple[int, ...] = ()
    tokens: int | None = None

    def as_dict(self) -> Tree:
        """The network as a section of a TOML file has it."""
        tree: Tree = {"layers": [layer.as_dict() for layer in self.layers]}
        if self.input:
            tree["input"] = list(self.input)
        return tree if self.tokens is None else {**tree, "tokens": self.tokens}


def read_sections(tree: Tree, folder: Path) -> dict[str, Any]:
    """Every section of a config, checked and typed, by the names of the fields of `Config`.

    Raises:
      SettingError: the first thing that is wrong.
    """
    top = {key: value for key, value in tree.items() if key not in TABLES}
    for key, value in top.items():
        if key not in Run._fields:
            remedy = registry.choices([*Run._fields, *TABLES], key)
            raise SettingError("", key, value, f"unknown key; {remedy}")
    run = Run(**validate(Run, top, ""))
    done: dict[str, Any] = {"run": run}
    if run.experiment is None and "data" not in tree:
        remedy = registry.choices(registry.KINDS["data"], "")
        raise SettingError("", "data.name", None, f"is missing; {remedy}")
    for section in (*SECTIONS, "network", "networks", "fidelity"):
        if section in tree or (section in SECTIONS and section not in LEFT_OUT):
            done[section] = read_section(section, tree.get(section), folder)
    if run.experiment is not None:
        done["run"], done["study"] = _read_study(run, tree.get("study", {}), folder)
    elif "study" in tree:
        remedy = "are settings of an experiment, and none is named"
        raise SettingError("", "study", tree["study"], remedy)
    if "training" in tree or run.experiment is None:
        done["training"] = read_section("training", tree.get("training", {}), folder)
    done["solvers"] = read_section("solvers", tree.get("solvers", {}), folder, done["rule"])
    return done


def read_section(name: str, given: Any, folder: Path, rule: Part | None = None) -> Any:
    """One section, checked and typed.

    Args:
      given: as the file has it; None if it is absent there.
      rule: the config's rule, for the phases that [solvers] may name.

    Raises:
      SettingError: the first thing that is wrong.
    """
    if name == "network":
        return _read_network(given, name, folder)
    if name == "networks":
        return {key: _read_network(each, f"{name}.{key}", folder) for key, each in given.items()}
    if name == "training":
        return Training(**validate(Training, given, name))
    if name == "solvers":
        assert rule is not None
        return _read_solvers(given, rule, folder)
    if name == "fidelity":
        return _read_fidelity(given)
    kind, default = SECTIONS[name]
    if name == "optimizer" and given is None:
        given = {"learning_rate": 1e-3}
    beside = Rates if name == "optimizer" else None
    part = read_part(kind, {"name": default, **(given or {})}, name, folder, beside)
    path = part.settings.get("path")
    if name == "data" and isinstance(path, str) and path and os.path.exists(folder / path):
        whole = str((folder / path).resolve())  # so that a copy of the config finds it too
        part = replace(part, settings={**part.settings, "path": whole})
    return part


def _read_network(given: Any, place: str, folder: Path) -> NetworkSettings:
    if not isinstance(given, dict):
        raise SettingError("", place, given, "must be a section")
    texts = given.get("layers")
    if not isinstance(texts, list) or not texts:
        remedy = 'must be a list of layers such as ["dense(128)"]'
        raise SettingError("", f"{place}.layers", texts, remedy)
    layers = (read_part("layers", x, f"{place}.layers.{i}", folder) for i, x in enumerate(texts))
    beside = {key: value for key, value in given.items() if key != "layers"}
    if place == "network":
        for key, value in beside.items():
            remedy = f"unknown key; {registry.choices(['layers'], key)}"
            raise SettingError("", f"{place}.{key}", value, remedy)
        return NetworkSettings(tuple(layers))
    inputs = Inputs(**validate(Inputs, beside, place))
    return NetworkSettings(tuple(layers), tuple(inputs.input), inputs.tokens)


def _read_fidelity(given: Tree) -> Fidelity:
    fidelity = Fidelity(**validate(Fidelity, given, "fidelity"))
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
    """The study file by its whole path, and the settings that its `run` takes by name."""
    assert run.experiment is not None
    try:
        study = registry.load_study(run.experiment, folder)
    except ValueError as error:
        raise SettingError("", "experiment", run.experiment, str(error)) from None
    if run.devices not in (None, 1):
        remedy = "a study's own steps run on one device; allowed: 1"
        raise SettingError("", "devices", run.devices, remedy)
    path = str(Path(study.__code__.co_filename).resolve())
    return run._replace(experiment=path), validate(study_settings(study), settings, "study")


def _read_solvers(given: Mapping[str, Any], rule: Part, folder: Path) -> dict[str, Part]:
    """The solvers by their phases, which are those of any rule."""
    factories = [*registry.KINDS["rules"].values(), rule.factory]
    known = sorted({key for f in factories for key, word in wires(f).items() if word is Solver})
    for key, value in given.items():
        place = f"solvers.{key}"
        if key not in known:
            raise SettingError("", place, value, f"unknown phase; {registry.choices(known, key)}")
        if not isinstance(value, dict):
            raise SettingError("", place, value, "must be a section")
    return {key: read_part("solvers", x, f"solvers.{key}", folder) for key, x in given.items()}
