"""The sections of a config: what each holds, checked one by one and completed with defaults."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from annotated_types import Ge, Interval

from bpeq.config import registry
from bpeq.config.layer_calls import each_network, settle_network
from bpeq.config.overrides import LEFT_OUT, SECTIONS, TABLES, resolve
from bpeq.config.schema import Fault, settle, study_settings, wires
from bpeq.settings import Count, NonNegative, Positive
from bpeq.types import Solver

Tree = dict[str, Any]
Points = Annotated[int, Ge(2)]


class Run(NamedTuple):
    """What stands outside any section."""

    seed: Annotated[int, Interval(ge=0, lt=2**32)] = 0
    seeds: Count = 1
    precision: Literal["float32", "float64"] = "float32"
    experiment: str | None = None
    checkpoint_share: Annotated[float, Interval(ge=0, le=1)] = 0.03  # of a run's time; 1: each row
    devices: Count | Literal["all"] | None = None  # that share each batch
    folder: str | None = None  # where dotted paths are looked for, if not beside the config


class Training(NamedTuple):
    """[training]: passes over the data, examples an update, epochs between two evaluations.

    unsettled: what is done where a phase ends above its solver's tolerance. Its share is in every
    row; warn: it is told once, at the first such row; stop: that ends the run like divergence.
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
    """[fidelity]: what `bpeq fidelity` measures; with it a run records its rule's fidelity too.

    examples: training examples of the one batch; 32 if absent, or all. Grids are run for every rule
    that has something to vary. betas: a grid of β (coupled learning's η up to 1), for eqprop with
    every one of `nudgings`, such as "holomorphic-4" for N = 4. points: a grid of N, of eqprop.
    sweeps: a grid of sweeps for all phases alike, and for a rule's own count of them. precisions:
    where grids and rules are run; the config's own if absent. gdu: also set EP's updates, sweep by
    sweep, against BPTT's.
    """

    examples: Count | None = None
    betas: list[Positive] | None = None
    nudgings: list[str] | None = None
    points: list[Points] | None = None
    sweeps: list[Count] | None = None
    precisions: list[Literal["float32", "float64"]] | None = None
    gdu: bool = False


def settle_sections(tree: Tree, folder: Path) -> Tree:
    """Every section checked and completed."""
    top = {key: value for key, value in tree.items() if key not in TABLES}
    for key, value in top.items():
        if key not in Run._fields:
            allowed = [*Run._fields, *TABLES]
            raise Fault(key, value, f"unknown key; {registry.choices(allowed, key)}")
    done: Tree = _stated(settle(Run, top))
    if "experiment" not in done and "data" not in tree:
        raise Fault(
            "data.name", None, f"is missing; {registry.choices(registry.KINDS['data'], '')}"
        )
    for section, (kind, default) in SECTIONS.items():
        if section in tree or section not in LEFT_OUT:
            extra = Rates if section == "optimizer" else None
            given = {"name": default, **tree.get(section, {})}
            if section == "optimizer" and "learning_rate" not in given and section not in tree:
                given["learning_rate"] = 1e-3
            done[section] = _section(kind, section, given, folder, extra)
    networks = {key: value for key, value in tree.items() if key in ("network", "networks")}
    done |= each_network(networks, settle_network, folder)
    if "experiment" in done:
        done["experiment"], done["study"] = _study(
            done["experiment"], tree.get("study", {}), folder
        )
        if done.get("devices", 1) != 1:
            remedy = "a study's own steps run on one device; allowed: 1"
            raise Fault("devices", done["devices"], remedy)
    elif "study" in tree:
        raise Fault("study", tree["study"], "are settings of an experiment, and none is named")
    if "training" in tree or "experiment" not in done:
        done["training"] = _at("training", settle, Training, tree.get("training", {}))
    if "fidelity" in tree:
        done["fidelity"] = _stated(_at("fidelity", settle, Fidelity, tree["fidelity"]))
        _check_nudgings(done["fidelity"].get("nudgings", []))
        for key, values in done["fidelity"].items():
            if isinstance(values, list) and len(set(values)) < len(values):
                raise Fault(f"fidelity.{key}", values, "must be a list of different entries")
    done["solvers"] = _solvers(tree.get("solvers", {}), done["rule"]["name"], folder)
    _check_bounded(done)
    return done


def _study(given: str, settings: Tree, folder: Path) -> tuple[str, Tree]:
    """The study file's whole path, and its settings: what its `run` takes by name."""
    try:
        run = registry.load_study(given, folder)
    except ValueError as error:
        raise Fault("experiment", given, str(error)) from None
    settled = _stated(_at("study", settle, study_settings(run), settings))
    return str(Path(run.__code__.co_filename).resolve()), settled


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
        if key not in known:
            raise Fault(f"solvers.{key}", value, f"unknown phase; {registry.choices(known, key)}")
        if not isinstance(value, dict):
            raise Fault(f"solvers.{key}", value, "must be a section")
        done[key] = _section("solvers", f"solvers.{key}", value, folder)
    return done


def _check_bounded(done: Tree) -> None:
    """E − βC has no minimum in a linear output once β reaches 1: E curves by 1 there, as C does.

    What hidden units can take up of β on the way is known only when they have settled.
    """
    rule, system, layers = done["rule"], done["system"], done.get("network", {}).get("layers", [])
    beta, nudging = rule.get("beta"), rule.get("nudging", "one-sided")
    given = (
        rule["name"] in ("eqprop", "vector_field_eqprop", "asymmetric_eqprop"),
        nudging != "one-sided",
        isinstance(beta, int | float) and beta >= 1,
        done["cost"]["name"] == "squared_error",
        system["name"] in ("hopfield", "predictive") and system.get("output") == "state",
        bool(layers) and layers[-1]["name"] in ("dense", "conv"),
    )
    if all(given):
        remedy = "a linear output, pushed away from its target, is not bounded from 1 on"
        raise Fault("rule.beta", beta, f"must be < 1 with nudging = {nudging!r}: {remedy}")


def _check_nudgings(names: list[str]) -> None:
    for i, name in enumerate(names):
        circle = re.fullmatch(r"(holomorphic|online)-([1-9]\d*)", name)
        if name not in ("one-sided", "centered") and not (circle and int(circle[2]) >= 2):
            known = ["one-sided", "centered", "holomorphic-N", "online-N"]
            remedy = f"{registry.choices(known, name)} (N >= 2, such as holomorphic-4)"
            raise Fault(f"fidelity.nudgings.{i}", name, remedy)


def _at(place: str, check: Any, *args: Any) -> Any:
    """`check`, with the place put before the key of whatever Fault it raises."""
    try:
        return check(*args)
    except Fault as fault:
        raise Fault(f"{place}.{fault.key}", fault.value, fault.remedy) from None


def _stated(settings: Tree) -> Tree:
    return {key: value for key, value in settings.items() if value is not None}
