"""Everything that bpeq says of speed and memory, measured in one run of one process.

    python -m benchmarks.bench [--only eqprop,xor] [--quick] [--record] [--out DIR]

It writes bench.json (`machine`, `rows`, `ratios`, and why a ratio is absent under `skipped`) and
bench.html. Ratios are medians over rounds of two times in the same round, and `ratios_of_least`
those of the least times; where they differ much the machine was busy. About ten minutes on two
quiet cores; `--quick` is a glance.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from benchmarks.nets import images
from benchmarks.page import write_page
from benchmarks.record import write_results
from benchmarks.timing import QUICK, Effort, Ratio, Skipped, load, machine, said
from bpeq.cli import entry

GROUPS = (
    *("eqprop", "settling", "convolution", "backward", "every_rule", "scaling"),
    *("compiling", "memory", "xor", "starting", "pytorch"),
)
"""Modules of this folder: each has RATIOS, the names that it gives, and run(effort) -> Found."""
HERE = Path(__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """0; or 1 where a group failed, when the others are written all the same."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help=f"some of {','.join(GROUPS)}")
    parser.add_argument("--quick", action="store_true", help="small samples, under a minute")
    parser.add_argument("--record", action="store_true", help="the ratios into RESULTS.md as well")
    parser.add_argument("--out", type=Path, default=HERE / "out", help="where results go")
    given = parser.parse_args(arguments)
    chosen = given.only.split(",") if given.only else list(GROUPS)
    for name in chosen:
        if name not in GROUPS:
            parser.error(f"--only {name}: must be some of {', '.join(GROUPS)}")
    entry.keep_memory()  # as `bpeq run` does
    # What is measured is this process's own compiling, not what an earlier one has left.
    jax.config.update("jax_enable_compilation_cache", False)
    result = finite(measure(chosen, QUICK if given.quick else Effort()))
    given.out.mkdir(parents=True, exist_ok=True)
    written = given.out / "bench.json"
    written.write_text(json.dumps(result, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
    show(result)
    if given.record:
        write_results(result, HERE / "RESULTS.md")
    said(f"{written} and {write_page(result, given.out / 'bench.html').name}")
    return int(bool(result["failed"]))


def measure(chosen: Sequence[str], effort: Effort) -> dict[str, Any]:
    """All that bench.json has; ratios that were not measured are null, with a reason."""
    start = time.perf_counter()
    result: dict[str, Any] = {
        "machine": machine(),
        "data": images().name,
        "quick": effort.quick,
        "rows": [],
        "ratios": {},
        "ratios_of_least": {},
        "groups": {},
        "skipped": {},
        "failed": [],
        "seconds": {},
    }
    groups = {name: importlib.import_module(f"benchmarks.{name}") for name in GROUPS}
    for name, group in groups.items():
        result["ratios"] |= dict.fromkeys(group.RATIOS)
        result["groups"] |= dict.fromkeys(group.RATIOS, name)
        reason = _run(name, group, effort, result) if name in chosen else "not asked for"
        for ratio in group.RATIOS:
            if result["ratios"][ratio] is None:
                result["skipped"].setdefault(ratio, reason)
    result["machine"]["load_after"] = load()
    result["seconds"]["total"] = time.perf_counter() - start
    return result


def _run(name: str, group: Any, effort: Effort, result: dict[str, Any]) -> str:
    """Lays a group's findings into `result`; why some of its ratios may be absent."""
    start = time.perf_counter()
    reason = "quick" if effort.quick else "not measured"
    try:
        found = group.run(effort)
    except Skipped as why:
        reason = str(why)
        result["rows"].append({"group": name, "name": name, "skipped": reason})
    except Exception as error:  # the other groups' figures are not lost with this one's
        reason = f"{type(error).__name__}: {error}"
        result["failed"].append(f"{name}: {reason}")
    else:
        result["rows"] += [{"group": name, **row} for row in found.rows]
        for ratio, value in found.ratios.items():
            pair = isinstance(value, Ratio)
            result["ratios"][ratio] = value.median if pair else value
            if pair:
                result["ratios_of_least"][ratio] = value.least
        result["skipped"] |= found.skipped
    result["seconds"][name] = time.perf_counter() - start
    said(f"{name}: {result['seconds'][name]:.1f} s, load {load()}")
    return reason


def finite(value: Any) -> Any:
    """The same with null for what JSON has no number for."""
    if isinstance(value, dict):
        return {key: finite(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def show(result: dict[str, Any]) -> None:
    """The ratios, a line each."""
    for name, value in result["ratios"].items():
        least = result["ratios_of_least"].get(name)
        text = f"{'—':>10}  {result['skipped'][name]}" if value is None else f"{value:10.3f}"
        print(f"{name:<26}{text}{'' if least is None else f'  (least over least {least:.3f})'}")
    for line in result["failed"]:
        print(f"failed: {line}")


if __name__ == "__main__":
    raise SystemExit(main())
