"""Every table of every page, figure by figure, against the JSON that it comes from."""

from __future__ import annotations

import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from bpeq.report import write_report

Row = dict[str, str]


class Tables(HTMLParser):
    """The tables of a page by the title of their section. A row maps a column's label to a text.

    A row of fewer or more cells than columns fails. `span` is the label of a row's group.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[Row]] = {}
        self._section, self._group, self._text = "", "", ""
        self._head: list[str] = []
        self._cells: list[str] | None = None
        self._small = False
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._small |= tag == "small"
        if tag in ("h2", "th", "td"):
            self._text = ""
        if tag == "tr":
            self._cells = []
        if tag == "thead":
            self.tables[self._section], self._head = [], []
        if tag == "tbody":
            self._group = ""

    def handle_data(self, data: str) -> None:
        self._text += "" if self._small else data

    def handle_endtag(self, tag: str) -> None:
        text = re.sub(r"\s+", " ", self._text).strip()
        if tag == "h2":
            self._section = text
        if tag in ("th", "td") and self._cells is not None:
            self._cells.append(text)
        if tag == "small":
            self._small = False
        if tag == "tr" and self._cells is not None:
            if not self._head:
                self._head = self._cells
            elif len(self._cells) == 1 < len(self._head):
                self._group = self._cells[0]
            else:
                row = dict(zip(self._head, self._cells, strict=True))
                self.tables[self._section].append({**row, "span": self._group})
            self._cells = None


def tables(folder: Path, file: str, content: dict[str, Any]) -> dict[str, list[Row]]:
    (folder / file).write_text(json.dumps(content))
    return Tables(write_report(folder)).tables


def number(text: str) -> float:
    """A figure of a page; NaN for a dash."""
    if text in ("", "—"):
        return math.nan
    scales = {"k": 1e3, "M": 1e6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "B": 1.0, "KiB": 1024.0}
    value, _, unit = text.replace("−", "-").replace(",", "").partition(" ")
    return float(value) * scales.get(unit, 1.0)


def same(text: str, value: float | None, scale: float = 1.0) -> bool:
    """Whether a figure of a page is this value, to two digits."""
    shown = number(text)
    if value is None:
        return math.isnan(shown)
    return shown == pytest.approx(scale * value, rel=6e-3, abs=6e-3 if scale == 100 else 0.0)


def spread(text: str, stat: dict[str, Any], scale: float = 100.0) -> bool:
    mean, _, std = text.partition(" ± ")
    return same(mean, stat["mean"], scale) and same(std, stat["std"], scale)


def stat(mean: float, std: float) -> dict[str, Any]:
    return {"mean": mean, "std": std, "values": [mean - std, mean, mean + std]}


def measures(error: float, **more: Any) -> dict[str, Any]:
    ratios = {"norm_ratio": 1 + error, "sign_agreement": 0.9 - error}
    return {"relative_error": error, "cosine": 1 - error, **ratios, **more}


def rule(error: float, **more: Any) -> dict[str, Any]:
    layers = {"dense_1": measures(2 * error), "dense_2": measures(error / 2)}
    settled = {
        "reference": "autodiff",
        "reference_settled": 0.75,
        "reference_residual": error / 1e9,
    }
    own = {**measures(error / 7), "objective": "another", "layers": layers, **settled}
    whole = measures(error, converged=0.875, sweeps=100 * error, layers=layers, **settled)
    return {**whole, "own_objective": own, **more}


def is_rule(row: Row, r: dict[str, Any]) -> bool:
    """Whether a row has the measures of `r`, each in its column."""
    return (
        same(row["relative error"], r["relative_error"])
        and row["cosine"] == f"{r['cosine']:.5f}"
        and row["norm ratio"] == f"{r['norm_ratio']:.3f}"
        and row["signs agree, %"] == f"{100 * r['sign_agreement']:.1f}"
    )


def test_run_tables_are_those_of_the_summary(tmp_path: Path) -> None:
    metrics = {"test_error": stat(0.021, 0.002), "train_error": stat(0.011, 0.003)}
    metrics |= {"test_loss": stat(0.31, 0.04)}
    ends = {"initial": rule(0.02), "trained": rule(0.05)}
    summary = {
        "metrics": metrics,
        "layers": [
            {"name": "dense_1", "parameters": 8320},
            {"name": "dense_2", "parameters": 1290},
        ],
        "fidelity": {"rule": "eqprop", "examples": 4, **ends},
    }
    page = tables(tmp_path, "summary.json", summary)
    assert set(page) == {"Results", "Gradient fidelity", "Network"}
    scales = {"test error, %": 100.0, "train error, %": 100.0, "test loss": 1.0}
    assert [row["metric"] for row in page["Results"]] == [
        "test error, %",
        "train error, %",
        "test loss",
    ]
    for row in page["Results"]:
        label = row["metric"]
        one = metrics[label.removesuffix(", %").replace(" ", "_")]
        assert spread(row["mean ± std"], one, scales[label])
        assert same(row["best seed"], one["values"][0], scales[label])
        assert same(row["worst seed"], one["values"][2], scales[label])
    for row, layer in zip(page["Network"], summary["layers"], strict=True):
        assert (row["layer"], number(row["parameters"])) == (layer["name"], layer["parameters"])
    check_training(page["Gradient fidelity"], {"eqprop": ends})


def check_training(rows: list[Row], rules: dict[str, dict[str, Any]]) -> None:
    """Fidelity before and after training: the rule, its layers, its own objective, its layers."""
    position = iter(rows)
    for name, ends in rules.items():
        own = {end: r["own_objective"] for end, r in ends.items()}
        for title, parts in ((name, ends), ("of its own objective", own)):
            for label in (title, "dense_1", "dense_2"):
                row = next(position)
                assert row["rule"] == label
                for end, part in parts.items():
                    m = part if label == title else part["layers"][label]
                    assert same(row[f"relative error, {end}"], m["relative_error"])
                    assert row[f"cosine, {end}"] == f"{m['cosine']:.5f}"
                assert row["settled, %"] == ("87.5" if label == name else "")
    assert not list(position)


def test_comparison_tables_are_those_of_the_comparison(tmp_path: Path) -> None:
    levels = {"backprop": 0.02, "eqprop": 0.03, "linear_readout": 0.05}
    rows, ends = {}, {}
    for i, (name, level) in enumerate(levels.items(), start=1):
        metrics = {"test_error": stat(level, level / 9), "train_loss": stat(20 * level, level)}
        cost = {"sweeps": 10.0 * i, "macs": 1.1e6 * i, "seconds": 2e-4 * i, "bytes": 2048.0 * i}
        control = name == "linear_readout"
        rows[name] = {
            "metrics": metrics,
            "cost": cost,
            "control": control,
            "seconds": {"train": 7.0 * i},
        }
        if not control:
            ends[name] = {"initial": rule(0.01 * i), "trained": rule(0.03 * i)}
            rows[name]["fidelity"] = {"rule": name, **ends[name]}
    paired = [
        {"a": "backprop", "b": "eqprop", "mean": -0.01, "low": -0.018, "high": -0.002, "n": 3,
         "verdict": "lower"},
        {"a": "backprop", "b": "linear_readout", "mean": -0.03, "low": -0.07, "high": 0.011, "n": 4,
         "verdict": "not distinguishable"},
        {"a": "eqprop", "b": "linear_readout", "mean": -0.02, "low": None, "high": None, "n": 2,
         "verdict": "too few seeds"},
    ]  # fmt: skip
    paired = [{**p, "metric": "test_error", "level": 0.95, "comparisons": 2} for p in paired]
    trials = [{"settings": {"rule.beta": 0.1 * k}, "validation_error": 0.04 / k} for k in (1, 2)]
    trials.append({"settings": {"rule.beta": 0.5}, "failed": "diverged"})
    tuning = {"eqprop": {"metric": "validation_error", "chosen": 1, "trials": trials}}
    content = {"rules": rows, "paired": paired, "tuning": tuning}
    page = tables(tmp_path, "comparison.json", content)
    assert set(page) == {"Results", "Paired differences", "Gradient fidelity", "Cost", "Tuning"}
    for results, costs in zip(page["Results"], page["Cost"], strict=True):
        one = rows[results["rule"]]
        assert results["rule"] == costs["rule"]
        assert (results["span"] != "") == (costs["span"] != "") == one["control"]
        error = one["metrics"]["test_error"]
        assert spread(results["test error, %"], error)
        best, _, worst = results["best – worst"].partition(" – ")
        assert same(best, error["values"][0], 100.0)
        assert same(worst, error["values"][2], 100.0)
        assert spread(results["train loss"], one["metrics"]["train_loss"], 1.0)
        for label, key in (("sweeps", "sweeps"), ("MACs", "macs"), ("time", "seconds")):
            assert same(costs[label], one["cost"][key])
        assert same(costs["memory"], one["cost"]["bytes"])
        assert same(costs["training"], one["seconds"]["train"])
    assert [row["rule"] for row in page["Results"]] == list(rows)
    # eqprop − backprop is the turned pair.
    turned = {**paired[0], "mean": 0.01, "low": 0.002, "high": 0.018}
    pairs = {f"{p['a']} − {p['b']}": p for p in paired[1:]} | {"eqprop − backprop": turned}
    words = {"eqprop − backprop": "worse", "backprop − linear_readout": "not distinguishable"}
    assert {row["difference"] for row in page["Paired differences"]} == set(pairs)
    for row in page["Paired differences"]:
        pair = pairs[row["difference"]]
        assert same(row["mean"].replace("+", ""), pair["mean"], 100.0)
        low, _, high = row["95 % interval"].replace("+", "").partition(" to ")
        assert same(low, pair["low"], 100.0)
        assert same(high, pair["high"], 100.0)
        assert row["pairs"] == str(pair["n"])
        assert row["the first is"] == words.get(row["difference"], "too few seeds")
    check_training(page["Gradient fidelity"], ends)
    (row,) = page["Tuning"]
    assert (row["rule"], row["chosen settings"], row["failed trials"]) == (
        "eqprop",
        "beta 0.2",
        "1",
    )
    assert same(row["validation error, %"], 0.02, 100.0)
    assert same(row["as configured"], 0.04, 100.0)


def test_fidelity_tables_are_those_of_the_result(tmp_path: Path) -> None:
    nudge = {"amplitude": {"s1": 1.7e-3, "s2": 2.3e-2}, "residual": 4.4e-6}
    rules = {"backprop": rule(0.011), "eqprop": rule(0.02, beta=0.3, error_bar=0.04, nudge=nudge)}
    law = {"betas": [0.1, 0.01], "error": 0.02, "theory": 2, "residuals": [0.01, -0.02]}
    equilibrium = {
        "curvature": {"smallest": 0.21, "median": 0.43},
        "output_curvature": {"smallest": 0.55, "median": 0.67},
        "asymmetry": 0.019,
        "saturated": {"s1": 0.123, "s2": 0.456},
        "jumped": {"beta": 0.1, "share": 0.031},
        "jumped_along": {"betas": [0.4, 0.2], "shares": [0.25, 0.125]},
        "settled": 0.984,
    }
    content = {
        "rules": rules,
        "bias_order": {"centered": 1.98, "one-sided": None},
        "fit": {"centered": law, "one-sided": {"theory": 1, "reason": "slopes disagree"}},
        "radius": 2.2,
        "pole": {"points": [4, 6, 8], "error": 0.03, "residuals": [0.03, 0.0]},
        "gdu": {"centered": {"slope": 1.9, "betas": [0.1], "mismatch": [0.1],
                             "fit": {**law, "error": 0.011, "residuals": [0.04]}}},
        "equilibrium": equilibrium,
    }  # fmt: skip
    page = tables(tmp_path, "fidelity.json", content)
    assert set(page) == {
        "Closeness to the exact gradient",
        "Own objectives",
        "Bias and round-off",
        "Equilibrium",
        "Nudge",
        "References",
    }
    close, own = iter(page["Closeness to the exact gradient"]), iter(page["Own objectives"])
    references = iter(page["References"])
    for name, r in rules.items():
        row = next(close)
        assert row["rule"] == name
        assert is_rule(row, r)
        assert row["settled, %"] == "87.5"
        assert same(row["sweeps"], r["sweeps"])
        assert same(row["β"], r.get("beta"))
        assert same(row["error bar"], r.get("error_bar"))
        assert is_rule(next(own), r["own_objective"])
        for rows, one in ((close, r), (own, r["own_objective"])):
            for layer, m in one["layers"].items():
                row = next(rows)
                assert row["rule"] == layer
                assert is_rule(row, m)
        for one, by in ((r, "autodiff"), (r["own_objective"], "another")):
            row = next(references)
            assert (row["exact gradient by"], row["settled, %"]) == (by, "75.0")
            assert same(row["largest residual"], one["reference_residual"])
    assert not [*close, *own, *references]
    moved = page["Nudge"]
    assert (moved[0]["state"], moved[0]["moved by"]) == ("eqprop", "")
    assert same(moved[0]["residual"], nudge["residual"])
    assert [row["state"] for row in moved[1:]] == ["s1", "s2"]
    assert all(same(row["moved by"], nudge["amplitude"][row["state"]]) for row in moved[1:])
    fits = {row["fit"]: row for row in page["Bias and round-off"]}
    expected = {
        "bias order, centered": (1.98, 0.02, 2, "β = 0.01 to 0.1", 100 * (10**0.02 - 1)),
        "bias order, one-sided": (None, None, 1, "slopes disagree", None),
        "GDU slope, centered": (1.9, 0.011, 2, "β = 0.01 to 0.1", 100 * (10**0.04 - 1)),
        "nearest pole in β": (2.2, 0.03, None, "N = 4 to 8", 100 * (10**0.03 - 1)),
    }
    assert set(fits) == set(expected)
    for name, (value, error, theory, over, residual) in expected.items():
        row = fits[name]
        assert same(row["fitted"], value)
        assert same(row["±"], error)
        assert same(row["theory"], theory)
        assert row["over"] == over
        assert residual is None or number(row["largest residual, %"]) == pytest.approx(
            residual, rel=0.03
        )
    quantities = {row["quantity"]: row["value"] for row in page["Equilibrium"]}
    assert {name: number(value) for name, value in quantities.items()} == {
        "curvature, smallest": 0.21,
        "curvature, median over examples": 0.43,
        "curvature of the outputs, smallest": 0.55,
        "curvature of the outputs, median over examples": 0.67,
        "asymmetry of the force's Jacobian": 0.019,
        "saturated units of s1, %": 12.3,
        "saturated units of s2, %": 45.6,
        "examples that jump at β = 0.1, %": 3.1,
        "along the grid, at β = 0.2, %": 12.5,
        "along the grid, at β = 0.4, %": 25.0,
        "examples that settled, %": 98.4,
    }


def test_sweep_table_is_that_of_the_sweep(tmp_path: Path) -> None:
    runs = [
        {"run": f"r{k}", "settings": {"rule.beta": 0.1 * k, "network.layers.0": f"dense({k})"},
         "state": "finished", "metrics": {"test_error": stat(0.02 * k, 0.003),
                                          "validation_error": stat(0.05 / k, 0.004)}}
        for k in (1, 2, 4)
    ]  # fmt: skip
    runs.append({"run": "lost", "settings": {"rule.beta": 0.8}, "state": "failed"})
    page = tables(tmp_path, "sweep.json", {"runs": runs})
    assert set(page) == {"Runs"}
    for row, run in zip(page["Runs"], runs, strict=True):
        assert (row["run"], row["state"]) == (run["run"], run["state"])
        assert row["beta"] == str(run["settings"]["rule.beta"])
        assert row["layers.0"] == run["settings"].get("network.layers.0", "—")
        for label, name in (
            ("test error, %", "test_error"),
            ("validation error, %", "validation_error"),
        ):
            one = run.get("metrics", {}).get(name)
            assert row[label] == "" if one is None else spread(row[label], one)


def test_the_sweep_plot_draws_validation_and_rings_the_run_that_it_selects(tmp_path: Path) -> None:
    from matplotlib.figure import Figure

    from bpeq.report.sweep import sweep_page

    points = {0.1: (0.02, 0.05), 0.2: (0.05, 0.03), 0.4: (0.03, 0.06)}  # test, validation
    runs = [
        {"run": f"r{beta}", "settings": {"rule.beta": beta}, "state": "finished",
         "metrics": {"test_error": stat(test, 0.0), "validation_error": stat(held, 0.0)}}
        for beta, (test, held) in points.items()
    ]  # fmt: skip
    (tmp_path / "sweep.json").write_text(json.dumps({"runs": runs}))
    (panel,) = sweep_page(tmp_path).panels["sweep.png"]
    axes = Figure(layout="constrained").add_subplot()
    panel.draw(axes)
    lines = {line.get_linestyle(): line for line in axes.lines if len(line.get_xdata()) == 3}
    for dash, index in (("-", 0), ("--", 1)):
        expected = [100 * pair[index] for pair in points.values()]
        assert lines[dash].get_ydata() == pytest.approx(expected)
    (ring,) = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert (ring.get_xdata()[0], ring.get_ydata()[0]) == (0.2, pytest.approx(5.0))
    assert "validation selects r0.2" in panel.alt
