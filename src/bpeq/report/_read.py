"""Reads run and comparison folders: JSON in, checked numbers and arrays out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from bpeq.types import DataError

Floats = NDArray[np.float64]


class Series(NamedTuple):
    """One metric over training. x `[k]`: epochs or steps. values `[k, seeds]`, NaN where absent."""

    x: Floats
    values: Floats


class History(NamedTuple):
    """metrics.jsonl: what the x axis counts ("epoch", "step" or "record"), and every metric."""

    axis: str
    series: dict[str, Series]


class Run(NamedTuple):
    """A run folder. `summary` is empty where the run did not finish; `config` is its text."""

    folder: Path
    summary: dict[str, Any]
    history: History
    config: str
    environment: dict[str, Any]


class Comparison(NamedTuple):
    """A comparison folder, and the history of each of its rules."""

    folder: Path
    comparison: dict[str, Any]
    histories: dict[str, History]
    config: str
    environment: dict[str, Any]


def read_run(folder: Path) -> Run:
    """Reads summary.json, metrics.jsonl, config.toml and environment.json, those that are there.

    Raises:
      DataError: one of them is no readable JSON object, or holds something else than numbers.
    """
    summary = read_json(folder / "summary.json") if (folder / "summary.json").exists() else {}
    return Run(
        folder,
        summary,
        read_history(folder / "metrics.jsonl"),
        config_text(folder, summary),
        environment_of(folder, summary, folder / "summary.json"),
    )


def read_comparison(folder: Path) -> Comparison:
    """Reads comparison.json, each rule's NAME/metrics.jsonl, config.toml and environment.json.

    Raises:
      DataError: as `read_run`; also where comparison.json is absent or names no rules.
    """
    path = folder / "comparison.json"
    comparison = read_json(path)
    if comparison.get("interrupted"):
        raise DataError(f"{path}: was interrupted ({comparison['interrupted']}); it has no report")
    rules = mapping(comparison.get("rules"), f"{path}: rules")
    if not rules:
        raise DataError(f"{path}: rules: must hold at least one rule")
    histories, environment = {}, environment_of(folder, comparison, path)
    for name, rule in rules.items():
        mapping(rule, f"{path}: rules.{name}")
        for inside in (name, name.replace(":", ".")):  # a dotted path's folder has no colon
            if Path(inside).name == inside and (folder / inside).is_dir():
                histories[name] = read_history(folder / inside / "metrics.jsonl")
                environment = environment or environment_of(folder / inside, {}, path)
                break
    return Comparison(folder, comparison, histories, config_text(folder, comparison), environment)


def read_json(path: Path) -> dict[str, Any]:
    """One JSON object. Raises DataError naming the file, and the line where it breaks off."""
    return _object(_text(path), f"{path}")


def read_history(path: Path) -> History:
    """metrics.jsonl as arrays; empty where there is no such file.

    Of two lines with the same epoch the later counts: a resumed run repeats some. Timings are left
    out; a metric without `values` counts as one seed.

    Raises:
      DataError: a line is no JSON object or holds no number where one must be; names file and line.
    """
    if not path.exists():
        return History("epoch", {})
    records: list[tuple[str, dict[str, Any]]] = []
    for line_number, line in enumerate(_text(path).split("\n"), start=1):
        if line.strip():
            where = f"{path}:{line_number}"
            records.append((where, _object(line, where)))
    axis = next((a for a in ("epoch", "step") if all(a in r for _, r in records)), "record")
    table: dict[str, dict[float, list[float]]] = {}
    for index, (where, record) in enumerate(records):
        x = float(index + 1) if axis == "record" else number(record[axis], f"{where}: {axis}")
        values = mapping(record.get("values", {}), f"{where}: values")
        for name in dict.fromkeys([*record, *values]):
            if name in ("epoch", "step", "values") or "seconds" in name:
                continue
            seeds = values.get(name, record.get(name))
            table.setdefault(name, {})[x] = numbers(seeds, f"{where}: {name}")
    return History(axis, {name: _series(points) for name, points in table.items()})


def mapping(value: Any, where: str) -> dict[str, Any]:
    """`value` if it is a JSON object, else DataError; an absent one (None) is empty."""
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be an object, not {_short(value)}")
    return value


def number(value: Any, where: str) -> float:
    """A JSON number as a float; None and the strings "NaN", "Infinity", "-Infinity" count too."""
    if value is None:
        return math.nan
    if value in ("NaN", "Infinity", "-Infinity"):
        return float(value)
    if not isinstance(value, int | float):
        raise DataError(f"{where}: must be a number, not {_short(value)}")
    return float(value)


def numbers(value: Any, where: str) -> list[float]:
    """A list of numbers, or a single number as a list of one."""
    items = value if isinstance(value, list) else [value]
    return [number(item, where) for item in items]


def _series(points: dict[float, list[float]]) -> Series:
    xs = sorted(points)
    values = np.full((len(xs), max(len(points[x]) for x in xs)), np.nan)
    for row, x in enumerate(xs):
        values[row, : len(points[x])] = points[x]
    return Series(np.asarray(xs, dtype=np.float64), values)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        at = f" in line {error.lineno}" if error.lineno > 1 else ""
        raise DataError(f"{where}: no valid JSON, truncated or corrupt: {error.msg}{at}") from error
    except (RecursionError, ValueError) as error:  # nested too deeply, or a number without end
        raise DataError(f"{where}: no valid JSON: {error}") from error
    if not isinstance(value, dict):
        raise DataError(f"{where}: must be a JSON object, not {_short(value)}")
    return value


def config_text(folder: Path, holder: dict[str, Any]) -> str:
    """The text of config.toml, else the holder's `config`, else nothing."""
    if (folder / "config.toml").exists():
        return _text(folder / "config.toml").strip()
    config = holder.get("config")
    return json.dumps(config, indent=2, ensure_ascii=False) if config else ""


def environment_of(folder: Path, holder: dict[str, Any], file: Path) -> dict[str, Any]:
    """What environment.json holds, else `environment` of what was read from `file`."""
    path = folder / "environment.json"
    if path.exists():
        return read_json(path)
    return mapping(holder.get("environment"), f"{file}: environment")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."


def only_noted(entry: Any) -> bool:
    """Whether a rule's fidelity says why it has no figures: it has no exact reference."""
    return isinstance(entry, dict) and bool(entry.get("note")) and "relative_error" not in entry
