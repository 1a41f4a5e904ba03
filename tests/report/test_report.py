"""Reports against folders written by hand: what the tables, the CSV, the plots and the page say."""

from __future__ import annotations

import csv
import json
import math
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from bpeq.report import (
    comparison_table,
    curves,
    numbers,
    pairs_table,
    run_table,
    tuning_table,
    write_report,
)
from bpeq.report.comparison_plots import dodge, tradeoffs
from bpeq.report.metrics import metric
from bpeq.runs import results
from bpeq.types import DataError

LONG = "my_laboratory.learning_rules.experimental:direct_random_target_projection_with_momentum"
NOTE = "BP on the feed-forward net and EP on the Hopfield net differentiate different functions."
ENVIRONMENT = {"python": "3.11.2", "jax": "0.10.2", "devices": ["cpu:0"], "cpu_count": 2}
COST = {"sweeps": 0, "macs": 1_234_567, "seconds": 0.000432, "bytes": 1_258_291}


def stat(values: list[float]) -> dict[str, Any]:
    std = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
    return {"mean": float(np.mean(values)), "std": std, "values": list(values)}


def fall(start: float, ends: list[float], epochs: int, seed: int = 0) -> list[list[float]]:
    """Noisy curves that fall from `start` to each seed's end: `[epochs][seeds]`."""
    wobble = np.random.default_rng(seed).normal(1.0, 0.05, (epochs, len(ends)))
    left = np.exp(-12 * np.linspace(0, 1, epochs) ** 0.6)[:, None] * (epochs > 1)
    curves = (np.asarray(ends) + (start - np.asarray(ends)) * left) * wobble
    curves[-1] = ends
    return curves.tolist()


def history(curves: dict[str, list[list[float]]]) -> str:
    lines = []
    for i in range(len(next(iter(curves.values())))):
        values = {name: curve[i] for name, curve in curves.items()}
        means = {name: float(np.mean(row)) for name, row in values.items()}
        lines.append(
            {"epoch": i + 1, "step": 44 * (i + 1), **means, "seconds": 1.2, "values": values}
        )
    return "".join(json.dumps(line) + "\n" for line in lines)


def digits(seeds: int = 5, epochs: int = 30, level: float = 0.021) -> tuple[dict, dict]:
    """Metrics as a summary holds them, and the curves that lead to them."""
    error = [level + 0.002 * math.sin(3 * i) for i in range(seeds)]
    curves = {
        "train_loss": fall(2.3, [0.001 + 0.0003 * (i % 7) for i in range(seeds)], epochs),
        "test_error": fall(0.6, error, epochs, seed=1),
        "validation_error": fall(0.62, [0.003 + e for e in error], epochs, seed=2),
        "train_error": fall(0.58, [0.001] * seeds, epochs, seed=3),
    }
    return {name: stat(curve[-1]) for name, curve in curves.items()}, curves


def write_run(folder: Path, metrics: dict, curves: dict, **more: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    seeds = len(next(iter(metrics.values()))["values"])
    summary = {
        "name": "digits",
        "rule": "eqprop",
        "config": {"rule": {"name": "eqprop", "beta": 0.5}},
        "seeds": seeds,
        "metrics": metrics,
        "seconds": {"compile": 3.1, "train": 12.34, "total": 15.9},
        "environment": ENVIRONMENT,
        "data": {"name": "digits", "train": 1438, "test": 359},
        "layers": [
            {"name": "dense_1", "parameters": 8320},
            {"name": "dense_2", "parameters": 1290},
        ],
        **more,
    }
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text(history(curves))
    (folder / "config.toml").write_text('[rule]\nname = "eqprop" # 0 < beta & <b>bold</b>\n')
    (folder / "environment.json").write_text(json.dumps(ENVIRONMENT))
    return folder


def comparison(rules: dict[str, tuple[dict, bool]], **more: Any) -> dict[str, Any]:
    rows = {
        name: {
            "metrics": metrics,
            "cost": {
                **COST,
                "sweeps": 0 if control else 52.3 * i,
                "seconds": 0.000432 * (1 + 9 * i),
            },
            "control": control,
        }
        for i, (name, (metrics, control)) in enumerate(rules.items())
    }
    return {
        "name": "digits",
        "config": {"optimizer": {"name": "adam"}},
        "seeds": 5,
        "rules": rows,
        "notes": [NOTE],
        **more,
    }


def write_comparison(folder: Path, whole: dict, curves: dict[str, dict]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "comparison.json").write_text(json.dumps(whole))
    for name, curve in curves.items():
        write_run(folder / name, whole["rules"][name]["metrics"], curve)
    return folder


LEVELS = {"linear_readout": 0.032, "frozen_hidden": 0.027, "backprop": 0.0209, "eqprop": 0.0222}
PAIR = {"a": "eqprop", "b": "backprop", "metric": "test_error", "mean": 0.0013, "low": -0.002}
VERDICT = {"verdict": "not distinguishable", "comparisons": 28, "correction": "Holm"}
PAIRED = [{**PAIR, "high": 0.0046, "level": 0.95, "n": 5, **VERDICT}]


def digits_comparison(folder: Path, seeds: int = 5, **more: Any) -> Path:
    made = {name: digits(seeds, level=level) for name, level in LEVELS.items()}
    rules = {name: (made[name][0], "_" in name) for name in LEVELS}
    whole = comparison(rules, **{"paired": PAIRED, "seeds": seeds, **more})
    return write_comparison(folder, whole, {name: curves for name, (_, curves) in made.items()})


def xor(seeds: int, unsolved: int, epochs: int = 40) -> tuple[dict, dict]:
    curves = {
        "train_loss": fall(0.14, [0.0625] * unsolved + [0.0005] * (seeds - unsolved), epochs),
        "train_error": fall(0.5, [0.25] * unsolved + [0.0] * (seeds - unsolved), epochs),
        "solved": [[0.0] * seeds] * (epochs - 1) + [[0.0] * unsolved + [1.0] * (seeds - unsolved)],
    }
    return {name: stat(curve[-1]) for name, curve in curves.items()}, curves


def regression() -> tuple[dict, dict]:
    curves = {
        "train_loss": fall(1.0, [0.21, 0.22, 0.23], 20),
        "test_rmse": fall(150.0, [53.1, 54.6, 55.2], 20),
        "test_r2": [[1 - v / 200 for v in row] for row in fall(150.0, [53.1, 54.6, 55.2], 20)],
        "unsettled": [[0.0125] * 3] * 20,
    }
    return {name: stat(curves[name][-1]) for name in ("test_rmse", "test_r2")}, curves


def show(table: Any, width: int = 80) -> list[str]:
    console = Console(width=width, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    console.print(table)
    console.file.close()
    return [line.rstrip() for line in console.export_text().splitlines()]


class Page(HTMLParser):
    """The text of a page, its tags with their attributes, and the words that name its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw = path.read_text(encoding="utf-8")
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._text: list[str] = []
        self.feed(self.raw)
        self.text = " ".join("".join(self._text).split())
        self.alts = [a["aria-label"] or "" for tag, a in self.tags if tag == "svg"]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._text.append("" if tag == "wbr" else " ")

    def handle_data(self, data: str) -> None:
        self._text.append(data)

    def handle_endtag(self, tag: str) -> None:
        self._text.append(" ")


def pixels(path: Path) -> np.ndarray:
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    return matplotlib.image.imread(path)[..., :3]


def share(picture: np.ndarray, colour: str) -> float:
    """The share of pixels that have exactly this colour."""
    wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
    return float((np.rint(picture * 255) == wanted).all(axis=-1).mean())


def test_run_table_gives_errors_in_percent_with_best_and_worst_seed() -> None:
    metrics = {
        "test_error": stat([0.0199, 0.0213, 0.0218]),
        "train_loss": stat([0.011, 0.012, 0.013]),
    }
    summary = {"name": "digits", "rule": "eqprop", "seeds": 3, "metrics": metrics}
    lines = show(
        run_table({**summary, "seconds": {"compile": 3.14, "train": 250.0, "total": 0.02}})
    )
    assert lines[0] == "digits · eqprop · 3 seeds"
    assert re.split(r"\s{2,}", lines[4]) == ["test error, %", "2.10 ± 0.10", "1.99", "2.18"]
    assert re.split(r"\s{2,}", lines[5]) == ["train loss", "0.0120 ± 0.0010", "0.0110", "0.0130"]
    assert "compile 3.1 s · train 4 min 10 s · total 20.0 ms" in " ".join(lines[6:])


def test_run_table_of_one_seed_claims_no_spread() -> None:
    lines = show(run_table({"metrics": {"test_error": stat([0.021])}, "seeds": 1}))
    assert re.split(r"\s{2,}", lines[-1]) == ["test error, %", "2.10"]
    assert "±" not in "".join(lines)


def test_solved_is_a_share_of_seeds() -> None:
    text = "\n".join(show(run_table({"metrics": xor(50, 1)[0]})))
    assert "98 % (49 of 50)" in text


def test_more_is_better_for_some_metrics() -> None:
    line = show(run_table({"metrics": {"test_r2": stat([0.41, 0.52])}}))[-1]
    assert re.split(r"\s{2,}", line)[2:] == ["0.520", "0.410"]


def test_comparison_table_sets_the_controls_apart(tmp_path: Path) -> None:
    whole = json.loads((digits_comparison(tmp_path) / "comparison.json").read_text())
    lines = show(comparison_table(whole))
    starts = [line.split("  ")[0] for line in lines]
    order = ["backprop", "eqprop", "Null controls", "linear_readout", "frozen_hidden"]
    assert [start for start in starts if start in order] == order
    row = re.split(r"\s{2,}", lines[starts.index("eqprop")])
    assert row == ["eqprop", "2.21 ± 0.07", "2.11 – 2.30", "157", "1.2 M", "12.1 ms", "1.2 MiB"]
    assert NOTE in " ".join(lines)
    lines = show(pairs_table(whole))
    row = re.split(r"\s{2,}", next(line for line in lines if line.startswith("eqprop")))
    assert row == ["eqprop", "+0.13", "−0.20 to +0.46", "5", "not distinguishable"]
    assert "less the best rule, backprop" in lines


def test_comparison_table_fits_80_columns_whatever_the_names() -> None:
    rules = {name: (digits()[0], False) for name in ("direct_feedback_alignment", LONG, "[red]x")}
    lines = show(comparison_table(comparison(rules)))
    assert max(map(len, lines)) <= 80
    assert "…" not in "".join(lines)
    names = "".join(line[:20].strip() for line in lines)
    assert LONG in names
    assert "[red]x" in names


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A comparison on digits with its report, and in run/ a run with its own."""
    folder = digits_comparison(tmp_path_factory.mktemp("comparison"))
    assert write_report(folder) == folder / "report.html"
    assert write_report(write_run(folder / "run", *digits())) == folder / "run" / "report.html"
    return folder


def test_csv_holds_the_figures_of_the_json(written: Path) -> None:
    whole = json.loads((written / "comparison.json").read_text())["rules"]
    with (written / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["rule"] for row in rows] == [
        "backprop",
        "eqprop",
        "linear_readout",
        "frozen_hidden",
    ]
    assert [row["control"] for row in rows] == ["false", "false", "true", "true"]
    for row in rows:
        for name, values in whole[row["rule"]]["metrics"].items():
            assert float(row[f"{name}_mean"]) == values["mean"]
            assert float(row[f"{name}_std"]) == values["std"]
        for name, value in whole[row["rule"]]["cost"].items():
            assert float(row[f"cost_{name}"]) == value


def test_comparison_page_says_what_the_json_says(written: Path) -> None:
    page = Page(written / "report.html")
    for words in (*LEVELS, "2.08 ± 0.07", "3.19 ± 0.07", "1.98 – 2.17", "12.1 ms ×1.5", NOTE):
        assert words in page.text
    assert "Null controls: what any rule must beat" in page.text
    assert "eqprop − backprop +0.13 −0.20 to +0.46 5 not distinguishable" in page.text
    assert "2.09 2.12 2.03 2.17 1.98" in page.text  # each seed of backprop
    assert '"name": "adam"' in page.text
    assert "cpu_count 2" in page.text
    dots, differences, macs, seconds, error, train, loss = page.alts
    assert "backprop 2.08 ± 0.07 %; eqprop 2.21 ± 0.07 %; linear_readout 3.19" in dots
    assert "eqprop − backprop +0.13" in differences
    assert macs.startswith("Test error, % over multiply-accumulates of a gradient, millions: ")
    assert "backprop 2.08 ± 0.07 % at 1.23; eqprop 2.21 ± 0.07 % at 1.23; linear_readout" in macs
    assert "backprop 2.08 ± 0.07 % at 8.21; eqprop 2.21 ± 0.07 % at 12.1" in seconds
    assert error.startswith("test error, % from epoch 1 to 30.")
    assert train.startswith("train error, % from epoch 1 to 30.")
    assert "linear_readout: " in loss


def test_dot_plot_has_a_dot_for_every_seed(tmp_path: Path) -> None:
    page = Page(write_report(digits_comparison(tmp_path, seeds=7)))
    first = page.raw[page.raw.index("<svg") : page.raw.index("</svg>")]
    groups = re.findall(r'id="f0-PathCollection_\d+">(.*?)</g>\s*</g>', first, flags=re.DOTALL)
    assert [group.count("<use") for group in groups] == [7] * len(LEVELS)


def test_pages_are_self_contained(written: Path) -> None:
    for path in (written / "report.html", written / "run" / "report.html"):
        page = Page(path)
        assert not re.search(r"(?:https?:)?//[a-z]", page.raw.replace("<!doctype", ""))
        assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
        outside = [a for _, a in page.tags for key in ("src", "href") if key in a
                   and not str(a[key]).startswith(("#", "data:"))]  # fmt: skip
        assert not outside
        assert not re.search(r"url\((?!#)|@import", page.raw)
        ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
        assert len(ids) == len(set(ids))
        inside = {str(a["href"])[1:] for _, a in page.tags if "href" in a}
        assert inside <= set(ids)
        assert page.alts
        assert all(page.alts)
        used, defined = (set(re.findall(p, page.raw)) for p in (r"var\(--(\w+)\)", r"--(\w+):"))
        assert used <= defined
        assert "prefers-color-scheme: dark" in page.raw


def test_text_from_files_is_escaped(tmp_path: Path) -> None:
    evil = '<script>alert("1")</script>'
    rules = {evil.replace("/", ""): (digits()[0], False), "backprop": (digits()[0], False)}
    whole = comparison(rules, name=evil, config={"a": evil}, environment={evil: evil}, notes=[evil])
    whole["rules"]["backprop"]["note"] = f"{evil} $\\frac{{$"
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    assert "script" not in {tag for tag, _ in page.tags}
    assert f"backprop: {evil} $\\frac{{$" in page.text
    assert page.text.count(evil) >= 6
    run = Page(write_report(write_run(tmp_path / "run", *digits(), name=evil, rule=evil)))
    assert "script" not in {tag for tag, _ in run.tags}
    assert '[rule] name = "eqprop" # 0 < beta & <b>bold</b>' in run.text


def test_plots_are_pictures_in_the_colours_of_the_rules(written: Path) -> None:
    picture = pixels(written / "comparison.png")
    assert picture.std() > 0.05
    for colour in ("#0067a8", "#c75000", "#77828e"):  # backprop, eqprop, controls
        assert share(picture, colour) > 2e-4
    assert share(picture, "#00785a") == 0  # there is no third rule
    assert pixels(written / "run" / "learning_curves.png").std() > 0.05


def test_few_seeds_are_lines_and_many_a_band(tmp_path: Path) -> None:
    pages = {}
    for seeds in (1, 5, 50):
        metrics, curves = digits(seeds)
        folder = write_run(tmp_path / str(seeds), metrics, {"train_loss": curves["train_loss"]})
        pages[seeds] = Page(write_report(folder)).raw
    assert [pages[s].count("stroke-opacity: 0.35") for s in (1, 5, 50)] == [0, 5, 0]
    assert [pages[s].count("FillBetween") for s in (1, 5, 50)] == [0, 0, 1]
    assert "thin lines: each seed" in pages[5]
    assert "band: lowest to highest seed" in pages[50]


def test_loss_gets_a_log_axis_where_it_spans_decades(tmp_path: Path) -> None:
    for start, wanted in ((2.3, True), (0.02, False)):
        curves = {"train_loss": fall(start, [0.002, 0.003], 30)}
        metrics = {"train_loss": stat([0.002, 0.003])}
        page = Page(write_report(write_run(tmp_path / str(start), metrics, curves)))
        assert ("train loss (log scale)" in page.text) is wanted


def test_one_logged_point_is_drawn_as_points(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path, *digits(5, epochs=1))))
    assert "One logged point. Large dot: mean of 5 seeds" in page.text
    assert share(pixels(tmp_path / "learning_curves.png"), "#0067a8") > 0


def test_diverged_seeds_are_named_and_not_averaged_away(tmp_path: Path) -> None:
    metrics, curves = digits()
    for curve in curves.values():
        for row in curve[11:]:
            row[2] = math.nan
    metrics = {name: stat(curve[-1]) for name, curve in curves.items()}
    page = Page(write_report(write_run(tmp_path / "run", metrics, curves)))
    assert "test error NaN finite in 4 of 5 seeds, best 1.99" in page.text
    assert "Not finite in 1 of 5 seeds: test error, validation error, train error" in page.text
    assert "× marks where a seed stops being finite" in page.text
    whole = comparison({"eqprop": (metrics, False), "backprop": (digits()[0], False)})
    page = Page(write_report(write_comparison(tmp_path / "c", whole, {"eqprop": curves})))
    assert "eqprop: the test error of 1 of 5 seeds is not finite." in page.text
    assert (tmp_path / "c" / "comparison.csv").read_text().splitlines()[1].split(",")[3] == "nan"


def test_xor_leads_with_the_share_that_is_solved(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run", *xor(50, 1))))
    assert "seeds solved 98 % 49 of 50" in page.text
    made = {"backprop": xor(50, 1), "linear_readout": xor(50, 50)}
    whole = comparison({name: (made[name][0], "_" in name) for name in made})
    page = Page(
        write_report(write_comparison(tmp_path / "c", whole, {n: c for n, (_, c) in made.items()}))
    )
    assert "98 % solved, 49 of 50 seeds; train error 0.50 ± 3.54 %" in page.text
    assert "backprop 49 of 50 solved" in page.alts[0]
    assert "final train loss (log scale)" in page.text


def test_regression_leads_with_the_rmse(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path / "run", *regression())))
    assert "test RMSE 54.3" in page.text
    assert "test RMSE, target unit 54.3 ± 1.1 53.1 55.2" in page.text
    assert "1.25 % of the examples' phases had not settled" in page.text
    whole = comparison({"eqprop": (regression()[0], False)})
    assert "54.3 ± 1.1" in "\n".join(show(comparison_table(whole)))


def test_a_rule_that_does_not_beat_a_null_is_named(tmp_path: Path) -> None:
    rules = {"backprop": 0.021, "eqprop": 0.03, "frozen_hidden": 0.027}
    whole = comparison({n: (digits(level=v)[0], n == "frozen_hidden") for n, v in rules.items()})
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    note = "No better than the null control frozen_hidden (2.69 % test error): eqprop."
    assert note in page.text


def test_rules_without_results_are_rows_all_the_same(tmp_path: Path) -> None:
    whole = comparison({"backprop": (digits()[0], False), "eqprop": ({}, False)}, paired=[])
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    assert "eqprop has no test error: its run did not finish." in page.text
    assert re.search(r"eqprop\s+no result", "\n".join(show(comparison_table(whole))))
    whole = comparison({"backprop": ({}, False)})
    page = Page(write_report(write_comparison(tmp_path / "none", whole, {})))
    assert "No rule has any result" in page.text
    assert not (tmp_path / "none" / "comparison.png").exists()


def test_an_unfinished_run_shows_what_it_logged(tmp_path: Path) -> None:
    folder = write_run(tmp_path / "digits-7", *digits(5, epochs=8))
    (folder / "summary.json").unlink()
    page = Page(write_report(folder))
    assert "the run did not finish" in page.text
    assert "digits-7" in page.text
    assert "test error, % 2.09 ± 0.07 1.99 2.18" in page.text


def test_of_a_repeated_epoch_the_later_line_counts(tmp_path: Path) -> None:
    lines = [{"epoch": e, "train_loss": v} for e, v in ((1, 0.9), (2, 0.7), (2, 0.5), (3, 0.4))]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    page = Page(write_report(tmp_path))
    assert page.alts == [
        "train loss from epoch 1 to 3. Means, first to last: train: 0.900 to 0.400."
    ]


def many_pairs(names: list[str]) -> dict[str, Any]:
    """A comparison of rules, of which rule0 is the best; names with an underscore are controls."""
    pairs = [{**PAIRED[0], "a": a, "b": b} for i, a in enumerate(names) for b in names[i + 1 :]]
    levels = {name: 0.02 + 0.001 * i for i, name in enumerate(names)}
    made = {name: (digits(level=level)[0], "_" in name) for name, level in levels.items()}
    return comparison(made, paired=pairs[::-1])


def test_the_page_has_all_pairs_and_the_terminal_the_controls_and_the_best(tmp_path: Path) -> None:
    names = [*(f"rule{i}" for i in range(6)), "linear_readout", "frozen_hidden"]
    whole = many_pairs(names)
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    shown = re.findall(r"(\w+) − (\w+) [+−]0\.13 −0\.\d\d to", page.text)
    rules = names[:6]
    assert len(shown) == len({frozenset(pair) for pair in shown}) == 28
    assert sorted(shown[:6]) == [(rule, "frozen_hidden") for rule in rules]
    assert sorted(shown[6:12]) == [(rule, "linear_readout") for rule in rules]
    assert sorted(shown[12:17]) == [(rule, "rule0") for rule in rules[1:]]  # the best one
    assert "corrected for 28 comparisons by Holm's method" in page.text
    assert "The picture shows the first 12 of 28 pairs." in page.text
    lines = show(pairs_table(whole))
    heads = re.findall(r"less the (?:null control|best rule,)\s+(\w+)", " ".join(lines))
    assert heads == ["frozen_hidden", "linear_readout", "rule0"]
    assert [sum(line.startswith(f"{rule} ") for line in lines) for rule in rules] == [2, *[3] * 5]
    assert "corrected for 28 comparisons by Holm's method" in " ".join(lines)
    assert "17 of 28 pairs; report.html and comparison.json have all." in " ".join(lines)


def test_a_pair_that_is_turned_has_the_other_sign_and_verdict() -> None:
    names = ["rule0", "rule1", "frozen_hidden"]
    whole = many_pairs(names)
    whole["paired"] = [{**PAIRED[0], "a": "rule0", "b": "rule1", "low": 0.001, "verdict": "higher"}]
    row = next(line for line in show(pairs_table(whole)) if line.startswith("rule1"))
    assert re.split(r"\s{2,}", row) == ["rule1", "−0.13", "−0.46 to −0.10", "5", "better"]


def test_pairs_without_a_verdict_show_their_difference_and_the_reason(tmp_path: Path) -> None:
    whole = many_pairs(["rule0", "rule1", "frozen_hidden"])
    reasons = ["too few seeds", "no spread", "not finite"]
    none = {"low": None, "high": None, "comparisons": 0}
    for pair, reason in zip(whole["paired"], reasons, strict=True):
        pair |= {**none, "verdict": reason}
    del whole["paired"][2]["verdict"]  # a file of an earlier version
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    for reason in (*reasons[:2], "not judged"):
        assert f"0.13 — 5 {reason}" in page.text
        assert f"1 pair: {reason}" in page.text
    assert "Verdicts" not in page.text
    lines = show(pairs_table(whole))
    assert sum(line.rstrip().endswith(tuple(reasons)) for line in lines) >= 2


def test_rules_that_beat_the_frozen_control_and_those_that_do_not_are_told_by_verdict() -> None:
    """By mean, `close` and `luck` are better than the control; by the paired test neither is."""
    rules = {"good": 0.015, "close": 0.025, "luck": 0.02, "bad": 0.04, "frozen_hidden": 0.027}
    verdicts = {"good": "lower", "close": "", "luck": "", "bad": "higher"}
    paired = [
        {**PAIRED[0], "a": name, "b": "frozen_hidden", "mean": rules[name] - 0.027,
         "verdict": verdict or "not distinguishable"}
        for name, verdict in verdicts.items()
    ]  # fmt: skip
    paired.append({**paired[3], "a": "good", "b": "bad"})  # says nothing of the control
    made = {n: (digits(level=v)[0], n == "frozen_hidden") for n, v in rules.items()}
    text = " ".join(show(comparison_table(comparison(made, paired=paired))))
    assert (
        "Beat the null control frozen_hidden (2.69 % test error) by the paired test: good." in text
    )
    assert (
        "Do not beat the null control frozen_hidden (2.69 % test error), whose hidden layers stay "
        "random: close, luck (not distinguishable); bad (worse)." in text
    )
    assert "No better than" not in text


def near(relative: float, cosine: float, **layers: tuple[float, float]) -> dict[str, Any]:
    """An end of a row's `fidelity`."""
    measures = {"norm_ratio": 1.0, "sign_agreement": 1.0}
    inner = {k: {"relative_error": r, "cosine": c, **measures} for k, (r, c) in layers.items()}
    whole = {"relative_error": relative, "cosine": cosine, **measures, "layers": inner}
    return {**whole, "converged": 0.938, "sweeps": 40.0, "reference": "recurrent_backprop"}


def compared_with_fidelity() -> dict[str, Any]:
    rules = {"backprop": (digits()[0], False), "eqprop": (digits()[0], False)}
    whole = comparison({**rules, "own": (digits()[0], False), "frozen_hidden": (digits()[0], True)})
    whole["rules"]["eqprop"]["fidelity"] = {
        "initial": near(0.154, 0.98943, dense_1=(0.171, 0.98867), dense_2=(0.148, 0.99032)),
        "trained": {
            **near(0.455, 0.92566, dense_1=(0.494, 0.92421), dense_2=(0.437, 0.92871)),
            "own_objective": near(0.0123, 0.99991),
        },
    }
    whole["rules"]["own"]["fidelity"] = {
        "initial": {"note": "no exact reference"},
        "trained": {"note": "no exact reference"},
    }
    return whole


def test_fidelity_is_shown_before_and_after_training_in_total_and_by_layer(tmp_path: Path) -> None:
    folder = write_comparison(tmp_path, compared_with_fidelity(), {})
    page = Page(write_report(folder))
    assert "eqprop 0.154 0.455 0.98943 0.92566 93.8" in page.text
    assert "dense_1 0.171 0.494 0.98867 0.92421" in page.text
    assert "dense_2 0.148 0.437 0.99032 0.92871" in page.text
    assert "of its own objective — 0.0123 — 0.99991" in page.text
    with (folder / "comparison.csv").open(newline="") as file:
        rows = {row["rule"]: row for row in csv.DictReader(file)}
    found = [float(rows["eqprop"][f"{end}_relative_error"]) for end in ("initial", "trained")]
    assert found == [0.154, 0.455]
    assert rows["eqprop"]["trained_cosine"] == "0.92566"
    assert rows["own"]["trained_cosine"] == rows["backprop"]["trained_cosine"] == ""


def test_the_terminal_shows_the_error_and_the_worst_layer_after_training() -> None:
    lines = show(comparison_table(compared_with_fidelity()))
    assert max(map(len, lines)) <= 80
    rows = {line.split("  ")[0]: re.split(r"\s{2,}", line) for line in lines}
    assert rows["eqprop"][1:4] == ["2.09 ± 0.07", "0.46", "0.9242"]
    assert rows["own"][1:4] == ["2.09 ± 0.07", "—", "—"]
    assert rows["frozen_hidden"][1:3] == ["2.09 ± 0.07", "0"]


def test_weights_that_the_exact_gradient_leaves_alone_are_not_the_worst_layer() -> None:
    """Their cosine is 0 by definition, and JSON has null for their infinite error."""
    whole = compared_with_fidelity()
    entry = whole["rules"]["eqprop"]["fidelity"]["trained"]["layers"]
    for name, cosine, shown in (("inverses", 0.0, "0.9242"), ("lost", None, "NaN")):
        entry[name] = {**entry["dense_1"], "relative_error": None, "cosine": cosine}
        lines = show(comparison_table(whole))
        row = next(line for line in lines if line.startswith("eqprop"))
        assert re.split(r"\s{2,}", row)[3] == shown


def test_a_row_that_diverged_says_so(tmp_path: Path) -> None:
    whole = comparison({"backprop": (digits()[0], False), "eqprop": ({}, False)}, paired=[])
    whole["rules"]["eqprop"]["diverged"] = "c.toml: diverged in epoch 3"
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    assert "eqprop diverged and has no result: c.toml: diverged in epoch 3." in page.text
    assert "eqprop diverged" in page.text
    assert "did not finish" not in page.text
    assert re.search(r"eqprop\s+diverged", "\n".join(show(comparison_table(whole))))


def test_notes_of_rules_stand_in_table_and_page(tmp_path: Path) -> None:
    whole = comparison({"backprop": (digits()[0], False)})
    whole["rules"]["backprop"]["note"] = "is backprop"
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    assert "backprop: is backprop" in page.text
    assert "backprop: is backprop" in show(comparison_table(whole))


# --- error against cost ------------------------------------------------------------------------


def drawn(panel: Any) -> Any:
    """The axes of a panel, drawn as a picture would have them."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.9, panel.height), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    panel.draw(axes)
    figure.canvas.draw()
    return axes


def test_error_over_cost_has_each_rule_at_its_figures_and_controls_as_lines() -> None:
    made = {name: digits(level=level)[0] for name, level in LEVELS.items()}
    whole = comparison({name: (made[name], "_" in name) for name in LEVELS})
    whole["rules"]["eqprop"]["cost"]["macs"] = 5e6
    found = results.Comparison.parse(whole).rules
    for panel, key, scale in zip(
        tradeoffs(found, metric("test_error")), ("macs", "seconds"), (1e-6, 1e3), strict=True
    ):
        axes = drawn(panel)
        for bars, name in zip(axes.containers, ("backprop", "eqprop"), strict=True):
            dot, _, (line,) = bars
            mean, std = (100 * made[name]["test_error"][k] for k in ("mean", "std"))
            at = whole["rules"][name]["cost"][key] * scale
            assert dot.get_xydata().ravel().tolist() == pytest.approx([at, mean])
            (ends,) = line.get_segments()
            np.testing.assert_allclose(ends[:, 1], [mean - std, mean + std])
        means = [100 * made[name]["test_error"]["mean"] for name in LEVELS if "_" in name]
        flat = [line.get_ydata()[0] for line in axes.lines if list(line.get_xdata()) == [0, 1]]
        np.testing.assert_allclose(flat, means)


def crowd(many: int) -> Any:
    """The panel of rules of three costs and three errors, and one control among them; its axes."""
    rules = {
        f"{'a_name_of_24_characters_' if i == 0 else 'rule_'}{i}": (
            digits(level=0.02 + 1e-4 * (i % 3))[0], False,
        )
        for i in range(many)
    }  # fmt: skip
    whole = comparison({**rules, "control": (digits(level=0.0202)[0], True)})
    for i, row in enumerate(whole["rules"].values()):
        row["cost"] = {"macs": 1e6 * (1 + 0.05 * (i % 3))}
    (panel,) = tradeoffs(results.Comparison.parse(whole).rules, metric("test_error"))
    return panel, drawn(panel), whole


def dots(axes: Any) -> Any:
    """Where the points are drawn, in pixels."""
    return [bars[0].get_transform().transform(bars[0].get_xydata()[0]) for bars in axes.containers]


@pytest.mark.parametrize("many", [2, 17])
def test_points_are_numbered_from_the_lowest_error_on_and_the_key_names_them(many: int) -> None:
    _, axes, whole = crowd(many)
    names = [name for name in whole["rules"] if name != "control"]
    means = {name: whole["rules"][name]["metrics"]["test_error"]["mean"] for name in names}
    ranked = sorted(names, key=lambda name: (means[name], name))
    (key,) = axes.figure.legends
    expected = [f"{i}  {name}" for i, name in enumerate(ranked, start=1)]
    assert [text.get_text() for text in key.get_texts()] == expected
    numbers_inside = [text.get_text() for text in axes.texts if text.get_text().isdecimal()]
    assert numbers_inside == [str(i) for i in range(1, many + 1)]


def test_points_that_would_cover_each_other_stand_side_by_side() -> None:
    """Seventeen rules of three costs and three errors: the data stay, the dots move apart."""
    _, axes, whole = crowd(17)
    costs = [
        row["cost"]["macs"] * 1e-6 for name, row in whole["rules"].items() if name != "control"
    ]
    drawn_at = [bars[0].get_xdata()[0] for bars in axes.containers]
    assert sorted(drawn_at) == pytest.approx(sorted(costs))
    places = np.asarray(dots(axes)) / axes.figure.dpi * 72  # points
    gaps = np.linalg.norm(places[:, None] - places[None], axis=2)[np.triu_indices(17, 1)]
    assert gaps.min() > 9


def test_dodge_moves_no_point_that_stands_alone() -> None:
    assert dodge([(0.0, 0.0), (5.0, 0.0), (0.0, 0.0), (0.0, 3.0)], 1.0) == [0.0, 0.0, 1.0, 0.0]


def test_a_rule_without_a_figure_is_named_below_the_picture(tmp_path: Path) -> None:
    whole = comparison({"backprop": (digits()[0], False), "eqprop": ({}, False)})
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    assert "Not drawn, because a figure is missing: eqprop." in page.text
    assert pixels(tmp_path / "accuracy_cost.png").std() > 0.02


# --- tuning ------------------------------------------------------------------------------------


def tuned(**more: Any) -> dict[str, Any]:
    trials = [
        {"settings": {"optimizer.learning_rate": 0.01, "rule.beta": 0.2}, "validation_error": 0.05},
        {"settings": {"optimizer.learning_rate": 0.09, "rule.beta": 0.1}, "validation_error": None,
         "failed": "diverged in epoch 2"},
        {"settings": {"optimizer.learning_rate": 0.0023, "rule.beta": 0.41},
         "validation_error": 0.0321},
    ]  # fmt: skip
    whole = comparison({"eqprop": (digits()[0], False)})
    entry = {"metric": "validation_error", "chosen": 2, "trials": trials, **more}
    return {**whole, "tuning": {"eqprop": entry}}


def test_the_chosen_settings_stand_in_table_and_page_with_every_trial(tmp_path: Path) -> None:
    lines = show(tuning_table(tuned()))
    assert max(map(len, lines)) <= 80
    row = re.split(r"\s{2,}", next(line for line in lines if line.startswith("eqprop")))
    assert row == ["eqprop", "learning_rate 0.0023, beta 0.41", "3.21", "5.00", "1"]
    assert "3 trials for every rule and null control" in " ".join(lines)
    page = Page(write_report(write_comparison(tmp_path, tuned(), {})))
    assert "eqprop learning_rate 0.0023, beta 0.41 3.21 5.00 1" in page.text
    assert "learning_rate 0.09, beta 0.1: diverged in epoch 2" in page.text
    assert "learning_rate 0.0023, beta 0.41: 3.21 %" in page.text


def test_the_folder_of_a_dotted_rule_is_found(tmp_path: Path) -> None:
    metrics, curves = digits()
    whole = comparison({LONG: (metrics, False)})
    write_run(tmp_path / LONG.replace(":", "."), metrics, curves)
    page = Page(write_report(write_comparison(tmp_path, whole, {})))
    assert [alt.partition(" from")[0] for alt in page.alts[3:]] == [
        "test error, %",
        "train error, %",
        "train loss",
    ]


def test_sweeps_share_a_panel_where_they_vary(tmp_path: Path) -> None:
    metrics, curves = digits(3)
    sweeps = {"sweeps": fall(90, [40] * 3, 30), "sweeps_free": fall(60, [30] * 3, 30)}
    page = Page(write_report(write_run(tmp_path / "a", metrics, {**curves, **sweeps})))
    assert page.alts[2].startswith("sweeps per gradient from epoch 1 to 30.")
    assert "all: " in page.alts[2]
    assert "free: " in page.alts[2]
    flat = {"sweeps": [[40.0] * 3] * 30, "sweeps_free": [[20.0] * 3] * 30}
    page = Page(write_report(write_run(tmp_path / "b", metrics, {**curves, **flat})))
    assert len(page.alts) == 2


def test_a_folder_that_holds_neither_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"empty: no run and no comparison: holds none of"):
        write_report(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"absent: no such folder"):
        write_report(tmp_path / "absent")


@pytest.mark.parametrize(
    ("file", "text", "place"),
    [
        ("summary.json", '{"metrics": 3}', ": metrics: "),
        ("metrics.jsonl", '{"epoch": 1}\n{"epoch": 2, "tr', ":2: "),
        ("comparison.json", '{"rules": {"a": {"cost": {"macs": []}}}}', ": rules.a.cost.macs: "),
        ("sweep.json", '{"runs": 3}', ": runs: "),
    ],
)
def test_corrupt_files_are_named(tmp_path: Path, file: str, text: str, place: str) -> None:
    (tmp_path / file).write_text(text)
    with pytest.raises(DataError) as caught:
        write_report(tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / file}{place}")
    assert not (tmp_path / "report.html").exists()


def test_the_same_folder_gives_the_same_files(written: Path) -> None:
    before = dict(matplotlib.rcParams)
    names = ("report.html", "comparison.png", "comparison.csv")
    first = [(written / name).read_bytes() for name in names]
    write_report(written)
    assert [(written / name).read_bytes() for name in names] == first
    assert dict(matplotlib.rcParams) == before


def test_names_outside_latin_raise_no_warning(tmp_path: Path) -> None:
    page = Page(write_report(write_run(tmp_path, *digits(), name="数字\nb")))
    assert "数字" in page.text


def test_a_long_history_stays_a_small_page(tmp_path: Path) -> None:
    metrics, curves = digits(5, epochs=2000)
    page = write_report(write_run(tmp_path, metrics, curves))
    assert page.stat().st_size < 600_000


def test_import_is_light() -> None:
    code = (
        "import sys, bpeq.report;"
        "print([m for m in ('matplotlib', 'rich', 'jinja2') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("function", "value", "text"),
    [
        (numbers.format_number, 0.0, "0"),
        (numbers.format_number, 54.21, "54.2"),
        (numbers.format_number, -0.012345, "−0.0123"),
        (numbers.format_number, 1.24e-7, "1.24e-7"),
        (numbers.format_number, math.nan, "NaN"),
        (numbers.format_number, -math.inf, "−∞"),
        (numbers.magnitude, 1_234_567, "1.2 M"),
        (numbers.magnitude, 999_600, "1.0 M"),
        (numbers.magnitude, 12, "12"),
        (numbers.memory, 1_258_291, "1.2 MiB"),
        (numbers.memory, 1023, "1023 B"),
        (numbers.duration, 0.0000012, "1.2 µs"),
        (numbers.duration, 0.0821, "82.1 ms"),
        (numbers.duration, 250, "4 min 10 s"),
        (numbers.duration, 7500, "2 h 5 min"),
    ],
)
def test_numbers_read_well(function: Any, value: float, text: str) -> None:
    assert function(value) == text


def test_fixed_has_no_negative_zero() -> None:
    assert numbers.format_number(-0.0001, decimals=2) == "0.00"
    assert numbers.format_number(0.5, signed=True) == "+0.500"
    assert numbers.format_number(-0.00001, signed=True) == "−1.00e-5"
    assert numbers.plus_minus(54.321, 1.37) == "54.3 ± 1.4"
    assert numbers.plus_minus(54.321, 0.0) == "54.3"


def test_thinning_keeps_every_spike() -> None:
    y = np.zeros(10_000)
    y[[17, 5003]] = 9.0, -9.0
    x, thinned = curves.thin(np.arange(10_000.0), y)
    assert len(x) <= 700
    assert {(17.0, 9.0), (5003.0, -9.0), (9999.0, 0.0)} <= set(zip(x, thinned, strict=True))
