"""Fidelity reports against a fidelity.json written by hand: table, pictures, page, bad input."""

from __future__ import annotations

import copy
import json
import math
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import matplotlib.image
import numpy as np
import pytest
from matplotlib.figure import Figure
from rich.console import Console

from bpeq.report import fidelity_table, write_report
from bpeq.report.fidelity_plots import grid_lines, grid_panels, layer_panel
from bpeq.runs import fidelity_results
from bpeq.types import DataError

LAYERS = ("conv_1", "conv_2", "dense_3")
BETAS = [10.0**k for k in np.arange(-5, 0.01, 0.5)]
ORDERS = {"one-sided": 1, "centered": 2, "holomorphic-4": 4}
EPSILON = {"float32": 6e-8, "float64": 1e-16}


def closeness(error: float, **more: Any) -> dict[str, Any]:
    cosine = 1 / math.sqrt(1 + error**2)
    signs = {"norm_ratio": 1 + error / 4, "sign_agreement": 1 - error / 3}
    return {"relative_error": error, "cosine": cosine, **signs, **more}


def rule(first: float, total: float, last: float, **more: Any) -> dict[str, Any]:
    middle = math.sqrt(first * last)
    layers = {n: closeness(e) for n, e in zip(LAYERS, (first, middle, last), strict=True)}
    settled = {"reference_settled": 1.0, "reference_residual": 3.2e-13}
    return closeness(
        total, converged=1.0, sweeps=0, reference="autodiff", **settled, layers=layers, **more
    )


def beta_grid() -> list[dict[str, Any]]:
    points = []
    for estimator, order in ORDERS.items():
        for precision, epsilon in EPSILON.items():
            for beta in BETAS:
                error = 0.4 * beta**order + epsilon / beta
                more = {"estimator": estimator, "beta": beta, "points": None, "sweeps": None}
                more |= {"precision": precision, "varied": "beta", "rule": "eqprop"}
                points.append(closeness(error, converged=1.0 if beta < 0.9 else 0.97, **more))
    return points


def other_grid() -> list[dict[str, Any]]:
    same = {"rule": "eqprop", "beta": 0.5, "precision": "float32", "converged": 1.0}
    points = []
    for n in (2, 4, 6, 8, 10, 12, 14, 16):
        error = (0.5 / 2.25) ** n + 1.2e-7
        more = {"estimator": f"holomorphic-{n}", "points": n, "sweeps": 60, "varied": "points"}
        points.append(closeness(error, **same, **more))
    for sweeps in (2, 4, 8, 16, 32, 64, 128):
        error = 0.9 * math.exp(-sweeps / 9) + 2e-3
        more = {"estimator": "centered", "points": None, "sweeps": sweeps, "varied": "sweeps"}
        points.append(closeness(error, **same, **more))
    return points


def gdu(order: int) -> dict[str, Any]:
    betas = [1e-1, 1e-2, 1e-3, 1e-4]
    fit = {"betas": betas[:3], "error": 0.002, "theory": order, "residuals": [0.0, 0.002, -0.001]}
    mismatch = [0.3 * b**order for b in betas]
    return {"slope": order - 0.004, "betas": betas, "mismatch": mismatch, "fit": fit}


MINIMAL = {
    "name": "mnist",
    "config": {"rule": {"name": "eqprop"}},
    "params": "initial",
    "examples": 64,
    "precision": "float32",
    "rules": {"eqprop": rule(0.23, 0.0123, 4.2e-5, beta=0.1)},
    "notes": [],
}
MINIMAL["rules"]["eqprop"] |= {"sweeps": 83.5, "converged": 0.9875}
NOTE = "backprop and eqprop differentiate [different] functions."
FULL = {
    **MINIMAL,
    "params": "runs/mnist-eqprop",
    "rules": {
        "backprop": rule(3.1e-7, 2.2e-7, 1.9e-7),
        "eqprop": {
            **rule(0.23, 0.0123, 4.2e-5, beta=0.1, error_bar=0.0098, note="a note <b>on</b> it"),
            "sweeps": 83.5,
            "converged": 0.9875,
            "reference": "recurrent_backprop",
            "nudge": {"amplitude": {"s1": 1.7e-4, "s2": 2.3e-3}, "residual": 4.4e-6},
        },
        "direct_feedback_alignment": rule(1.42, 1.02, 1.1e-7),
    },
    "grid": beta_grid() + other_grid(),
    "bias_order": {"one-sided": 1.003, "centered": 2.001, "holomorphic-4": None},
    "fit": {
        **{
            name: {"betas": BETAS[-4:], "intercept": math.log10(0.4), "error": 0.01,
                   "theory": ORDERS[name], "residuals": [0.01, -0.005, 0.0, 0.002]}
            for name in ("one-sided", "centered")
        },
        "holomorphic-4": {"theory": 4, "reason": "neighbouring slopes disagree"},
    },
    "radius": 2.25,
    "pole": {"points": [4, 6, 8], "error": 0.04, "residuals": [0.005, 0.0, -0.005]},
    "equilibrium": {
        "curvature": {"smallest": 0.212, "median": 0.434},
        "output_curvature": {"smallest": 0.551, "median": 0.673},
        "asymmetry": 0.0,
        "saturated": {"s1": 0.1234, "s2": 0.0},
        "jumped": {"beta": 0.1, "share": 0.03125},
        "units": 266,
        "examples": 8,
        "settled": 1.0,
    },
    "gdu": {"one-sided": gdu(1), "centered": gdu(2)},
    "notes": [NOTE],
    "environment": {"python": "3.11.2", "jax": "0.10.2"},
}  # fmt: skip


def show(table: Any, width: int = 80) -> list[str]:
    console = Console(width=width, file=open("/dev/null", "w"), record=True)  # noqa: SIM115
    console.print(table)
    console.file.close()
    return [line.rstrip() for line in console.export_text().splitlines()]


def cells(lines: list[str], start: str) -> list[str]:
    """The cells of the first row that begins so; cells apart by two spaces."""
    row = next(line for line in lines if line.startswith(start))
    return re.split(r"\s{2,}", row.strip())


class Page(HTMLParser):
    """The text of a page, its tags, and the words that name its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.raw, self.tags = path.read_text(encoding="utf-8"), set[str]()
        self._text: list[str] = []
        self.alts: list[str] = []
        self.feed(self.raw)
        self.text = " ".join("".join(self._text).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self._text.append("" if tag == "wbr" else " ")
        if tag == "svg":
            self.alts.append(dict(attrs)["aria-label"] or "")

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


def reported(folder: Path, result: dict[str, Any]) -> Page:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "fidelity.json").write_text(json.dumps(result))
    return Page(write_report(folder))


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Page]:
    folder = tmp_path_factory.mktemp("fidelity")
    return folder, reported(folder, FULL)


def test_table_has_a_row_a_rule_and_below_it_a_row_a_layer() -> None:
    lines = show(fidelity_table(FULL))
    assert lines[0] == "mnist · runs/mnist-eqprop · 64 examples · float32"
    starts = [
        line[: len(line) - len(line.lstrip())] + line.split()[0] for line in lines[4:20] if line
    ]
    layers = [f"  {name}" for name in LAYERS]
    names = ["backprop", *layers, "eqprop", *layers, "direct_", "feedback_", "alignment", *layers]
    assert starts[: len(names)] == names
    row = ["0.0123", "0.99992", "1.003", "99.6", "98.8", "83.5", "0.1", "0.00980"]
    assert cells(lines, "eqprop") == ["eqprop", *row]
    assert cells(lines, "backprop")[1:] == ["2.20e-7", "1.00000", "1.000", ">99.9", *"————"]
    at = next(i for i, line in enumerate(lines) if line.startswith("eqprop"))
    assert cells(lines[at:], "  conv_1") == ["conv_1", "0.230", "0.97456", "1.058", "92.3"]
    assert max(map(len, lines)) <= 80  # fmt: skip


def test_table_says_orders_equilibrium_and_notes_below() -> None:
    caption = " ".join(show(fidelity_table(FULL)))
    for words in (
        "one-sided 1.00 ± 0.01 (theory 1); centered 2.00 ± 0.01 (theory 2); "
        "holomorphic-4 (theory 4) no fit holds, neighbouring slopes disagree.",
        "Nearest pole in β: 2.25 ± 0.040 away.",
        "Equilibrium of 8 examples, 266 units each: smallest curvature 0.212 (median 0.434); "
        "of the outputs 0.551 (median 0.673); asymmetry 0; saturated units: s1 12.3 %, s2 0 %; "
        "at β = 0.1 3.1 % of the examples jump to another state.",
        NOTE,
        "eqprop: a note <b>on</b> it",
        "eqprop: 98.8 % of its phases settled, not all.",
    ):
        assert words in re.sub(r"\s+", " ", caption)


def test_table_of_rules_only_has_no_empty_columns() -> None:
    lines = show(fidelity_table(MINIMAL))
    assert lines[0] == "mnist · initial parameters · 64 examples · float32"
    assert cells(lines, "eqprop")[1:] == [
        "0.0123",
        "0.99992",
        "1.003",
        "99.6",
        "98.8",
        "83.5",
        "0.1",
    ]
    assert not re.search("bar|Equilibrium|order|pole", "".join(lines))
    still = {**MINIMAL, "rules": {"backprop": FULL["rules"]["backprop"]}}
    assert not re.search("settled$|sweeps|β", "".join(show(fidelity_table(still))[:4]))


def test_page_says_what_the_json_says(full: tuple[Path, Page]) -> None:
    page = full[1]
    for words in (
        "runs/mnist-eqprop · 64 examples · float32",
        "eqprop 0.0123 relative error; 0.230 in conv_1",  # a headline
        "eqprop 0.0123 0.99992 1.003 99.6 98.8 83.5 0.1 0.00980",
        "conv_1 1.42 0.57578 1.355 52.7",
        "holomorphic-4 (theory 4) no fit holds, neighbouring slopes disagree. Nearest pole in β: 2",
        "bias order, centered 2.00 0.010 2 β = 0.031623 to 1 2.3",
        "bias order, holomorphic-4 — — 4 neighbouring slopes disagree —",
        "GDU slope, one-sided 0.996 0.0020 1 β = 0.001 to 0.1 0.46",
        "nearest pole in β 2.25 0.040 — N = 4 to 8 1.2",
        "curvature of the outputs, smallest 0.551",
        "saturated units of s1, % 12.3",
        "examples that jump at β = 0.1, % 3.1",
        "s2 0.00230",
        "eqprop recurrent_backprop 100 3.20e-13",
        "slopes: one-sided 1.00, centered 2.00",
        NOTE,
        "eqprop: a note <b>on</b> it",
        "eqprop holomorphic-6 float32 β = 0.5, 6 points: relative error 0.000121",
        '"name": "eqprop"',
        "python 3.11.2",
    ):
        assert words in page.text, words
    assert not {"script", "link", "img", "b"} & page.tags
    assert not re.search(r"(?:https?:)?//[a-z]", page.raw.replace("<!doctype", ""))


def test_full_page_has_five_panels(full: tuple[Path, Page]) -> None:
    layers, beta, points, sweeps, gdu_alt = full[1].alts
    assert "eqprop: conv_1 0.230, conv_2 0.00311, dense_3 4.20e-5, all 0.0123" in layers
    assert beta.startswith("Relative error over β from 1e-5 to 1.")
    assert "centered (float64): 5.00e-11 to 0.400" in beta
    assert "Fitted orders: one-sided 1.00; centered 2.00." in beta
    assert points.startswith("Relative error over points N from 2 to 16.")
    assert sweeps.startswith("Relative error over sweeps from 2 to 128.")
    assert "one-sided: 3.00e-5 to 0.0300" in gdu_alt
    raw = full[1].raw
    for words in ("slope 1.00", "slope 2.00", "β = 0.1", "(β / 2.25)ᴺ", "slope 1<", "slope 2<"):
        assert words in raw
    assert "Solid: float32, dashed: float64. Hollow: not all phases settled." in full[1].text


def test_every_layer_has_its_dot_where_its_error_is() -> None:
    whole = copy.deepcopy(FULL)
    whole["rules"]["eqprop"]["layers"]["conv_2"]["relative_error"] = None
    whole["rules"]["backprop"]["layers"]["dense_3"]["relative_error"] = 0.0
    axes = Figure(layout="constrained").add_subplot()
    layer_panel(fidelity_results.Fidelity.parse(whole).measured).draw(axes)
    names = [label.get_text() for label in axes.get_xticklabels()]
    assert names == [*LAYERS, "all"]
    dots = {
        (names[int(np.argmin(np.abs(axes.get_xticks() - line.get_xdata()[0])))], line.get_color()):
        (line.get_marker(), float(line.get_ydata()[0]))
        for line in axes.lines if len(line.get_xdata()) == 1
    }  # fmt: skip
    assert len(dots) == 12
    blue, orange, green = "#0067a8", "#c75000", "#00785a"
    assert dots["conv_1", orange] == ("o", 0.23)
    assert dots["all", orange] == ("o", 0.0123)
    assert dots["all", green] == ("o", 1.02)
    assert dots["conv_2", orange][0] == "x"
    assert dots["dense_3", blue][0] == "v"
    low, high = axes.get_ylim()
    assert low < dots["dense_3", blue][1] < 1.1e-7 / 2  # below all others, and within
    assert 1.4 <= dots["conv_2", orange][1] < high


def test_unsettled_points_are_hollow_and_the_beta_in_use_has_a_ring() -> None:
    axes = Figure(layout="constrained").add_subplot()
    grid_panels(fidelity_results.Fidelity.parse(FULL))[0].draw(axes)
    hollow = [x for line in axes.lines if line.get_markerfacecolor() == "#fffffe"
              for x in line.get_xdata()]  # fmt: skip
    assert hollow == [1.0] * 6  # three estimators in two precisions, at the largest β
    rings = [line for line in axes.lines if line.get_markerfacecolor() == "none"]
    assert [(r.get_xdata()[0], r.get_ydata()[0]) for r in rings] == [(0.1, 0.0123)]
    broad = [line for line in axes.lines if line.get_linewidth() == 8]
    ends = [(line.get_xdata()[0], line.get_ydata()[-1]) for line in broad]
    np.testing.assert_allclose(ends, [(10**-1.5, 0.4)] * 2)


def test_png_is_a_picture_of_all_panels(full: tuple[Path, Page], tmp_path: Path) -> None:
    picture = pixels(full[0] / "fidelity.png")
    assert picture.std() > 0.05
    for colour in ("#0067a8", "#c75000", "#00785a"):
        assert share(picture, colour) > 2e-4
    reported(tmp_path, MINIMAL)
    small = pixels(tmp_path / "fidelity.png")
    assert share(small, "#0067a8") > 2e-4
    assert share(small, "#c75000") == 0
    assert picture.shape[0] > 2.5 * small.shape[0]  # three rows of panels against one


def test_minimal_page_has_only_the_layers(tmp_path: Path) -> None:
    page = reported(tmp_path, MINIMAL)
    assert len(page.alts) == 1
    for absent in ("Bias and round-off", "Equilibrium", "Nudge", "BPTT", "Every point"):
        assert absent not in page.text
    assert "Closeness to the exact gradient" in page.text
    nulls = ("grid", "bias_order", "fit", "radius", "equilibrium", "gdu", "notes", "environment")
    again = reported(tmp_path / "nulls", {**MINIMAL, **dict.fromkeys(nulls)})
    assert again.raw == page.raw


def test_write_report_knows_a_fidelity_folder(tmp_path: Path) -> None:
    (tmp_path / "fidelity.json").write_text(json.dumps(MINIMAL))
    assert write_report(tmp_path) == tmp_path / "report.html"
    assert "bpeq fidelity" in Page(tmp_path / "report.html").text


def test_errors_that_are_not_finite_are_named_and_do_not_break_a_plot(tmp_path: Path) -> None:
    whole = copy.deepcopy(FULL)
    whole["rules"]["eqprop"]["layers"]["conv_2"]["relative_error"] = None
    whole["rules"]["backprop"]["relative_error"] = "Infinity"
    for point in whole["grid"]:
        if point["estimator"] == "centered" and point["beta"] < 5e-5:
            point["relative_error"] = None
    whole["gdu"]["centered"]["mismatch"][0] = None
    whole["gdu"]["one-sided"]["betas"][0] = None
    whole["fit"]["centered"]["betas"][0] = whole["fit"]["one-sided"]["intercept"] = None
    whole["bias_order"]["holomorphic-4"] = whole["rules"]["eqprop"]["cosine"] = None
    page = reported(tmp_path, whole)
    said = (
        "Not finite: the relative error of backprop (all); the relative error of eqprop (conv_2); "
        "eqprop centered float32 at β = 1e-5, 3.16e-5; eqprop centered float64 at β = 1e-5, "
        "3.16e-5; the GDU mismatch of centered at β = 0.1."
    )
    assert said in page.text
    assert said in re.sub(r"\s+", " ", " ".join(show(fidelity_table(whole))))
    assert "× at the upper edge: not finite." in page.text
    assert "centered (float32): 0.000600 to" in page.alts[1]
    assert len(page.alts) == 5
    assert pixels(tmp_path / "fidelity.png").std() > 0.05


def test_nothing_finite_is_a_page_all_the_same(tmp_path: Path) -> None:
    lost = {"relative_error": None, "cosine": None, "converged": 0.0, "sweeps": 5}
    whole = {"rules": {"eqprop": {**lost, "beta": 0.1}}, "bias_order": {"centered": None}}
    point = {**lost, "rule": "eqprop", "estimator": "centered", "beta": 0.1, "varied": "beta"}
    page = reported(tmp_path, {**whole, "grid": [point]})
    assert "eqprop NaN NaN 0 5.00 0.1" in page.text
    assert "eqprop: 0 % of its phases settled, not all." in page.text
    assert len(page.alts) == 1


def test_an_error_of_zero_has_its_place(tmp_path: Path) -> None:
    whole = {**MINIMAL, "rules": {"autodiff": rule(0.0, 0.0, 0.0), "eqprop": rule(0.1, 0.1, 0.1)}}
    page = reported(tmp_path, whole)
    assert "▽ at the lower edge: exactly 0." in page.text
    assert "autodiff 0 1.00000" in page.text
    assert "Not finite" not in page.text


def test_many_rules_layers_and_single_points_can_be_drawn(tmp_path: Path) -> None:
    whole = copy.deepcopy(FULL)
    whole["rules"] = {f"my.rules:number_{i}": rule(0.1, 0.01 * i, 0.3) for i in range(15)}
    for row in whole["rules"].values():
        row["layers"] = {f"residual_block_{i}": closeness(0.1) for i in range(60)}
    whole["grid"] = [whole["grid"][0]]
    page = reported(tmp_path, whole)
    assert "my.rules:number_14 0.140" in page.text
    assert len(page.alts) == 3
    assert max(map(len, show(fidelity_table(whole)))) <= 80


def test_unsettled_references_are_named() -> None:
    whole = copy.deepcopy(MINIMAL)
    whole["rules"]["eqprop"] |= {"reference": "recurrent_backprop", "reference_settled": 0.5}
    text = re.sub(r"\s+", " ", " ".join(show(fidelity_table(whole))))
    assert "exact gradient by recurrent_backprop settled in 50.0 % of its solves only" in text


def summary(**more: Any) -> dict[str, Any]:
    ends = {"initial": rule(0.021, 0.0123, 4.2e-5), "trained": rule(0.61, 0.0456, 3e-4)}
    return {"name": "digits", "fidelity": {"examples": 64, "rule": "eqprop", **ends, **more}}


def test_run_report_sets_trained_beside_initial(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text(json.dumps(summary()))
    text = Page(write_report(tmp_path)).text
    assert "Gradient fidelity" in text
    head = "rule relative error, initial relative error, trained cosine, initial cosine, trained"
    assert head in text
    assert "conv_1 0.0210 0.610 0.99978 0.85370" in text
    assert "eqprop 0.0123 0.0456 0.99992 0.99896" in text
    assert "of eqprop was from the exact one of the same function on 64 examples" in text
    ends = "0.0123 (0.0210 in conv_1) with initial parameters and 0.0456 (0.610 in conv_1) with"
    assert ends in text


def test_run_report_without_fidelity_has_no_such_section(tmp_path: Path) -> None:
    for i, held in enumerate((None, {}, {"rule": "eqprop", "trained": None})):
        folder = tmp_path / str(i)
        folder.mkdir()
        (folder / "summary.json").write_text(json.dumps({"name": "digits", "fidelity": held}))
        assert "Gradient fidelity" not in Page(write_report(folder)).text
    (tmp_path / "summary.json").write_text(json.dumps(summary(trained=None)))
    assert "eqprop 0.0123 0.99992" in Page(write_report(tmp_path)).text


def test_an_absent_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"fidelity\.json: no such file"):
        fidelity_results.Fidelity.read(tmp_path / "fidelity.json")


def with_own() -> dict[str, Any]:
    whole = copy.deepcopy(MINIMAL)
    whole["rules"]["coupled_learning"] = rule(1.35, 1.42, 1.44)
    own = rule(0.0733, 0.0021, 0.00105, objective="½(o−y)ᵀK(o−y)")
    own |= {"reference_settled": 0.5, "reference_residual": 8.8e-11}
    whole["rules"]["coupled_learning"] |= {"own_objective": own, "sweeps": 12.0}
    return whole


FOLLOWS = (
    "Another objective than the cost: coupled_learning follows ½(o−y)ᵀK(o−y). Such a rule need not "
    "come near the cost's gradient."
)
UNSETTLED = (
    "coupled_learning: the exact gradient of ½(o−y)ᵀK(o−y) settled in 50.0 % of its solves only"
)


def test_table_sets_a_rule_against_its_own_objective_below_the_costs_gradient() -> None:
    lines = show(fidelity_table(with_own()))
    at = next(i for i, line in enumerate(lines) if line.startswith("coupled_"))
    assert lines[at].split()[1] == "1.42"
    own = next(i for i, line in enumerate(lines) if line.startswith("  own"))
    assert [line.split()[0] for line in lines[at + 1 : own] if "_" in line][-1] == "dense_3"
    assert "0.00210" in "".join(lines[own : own + 2])
    assert cells(lines[own:], "    conv_1")[:2] == ["conv_1", "0.0733"]
    assert max(map(len, lines)) <= 80
    caption = re.sub(r"\s+", " ", " ".join(lines))
    assert f"{FOLLOWS} Rows “own objective” are against the exact gradient of" in caption
    assert "Exact gradients settled to a residual of 8.80e-11." in caption
    assert UNSETTLED in caption
    assert "own objective" not in " ".join(show(fidelity_table(MINIMAL)))


def test_page_sets_a_rule_against_its_own_objective_in_a_section_of_its_own(
    tmp_path: Path,
) -> None:
    page = reported(tmp_path, with_own())
    for words in (
        "coupled_learning 1.42 relative error; 1.44 in dense_3; to its own objective 0.00210",
        "A rule that follows another objective than the cost is set against that below.",
        f"Own objectives {FOLLOWS} Here are its distances",
        "coupled_learning ½(o−y)ᵀK(o−y) 0.00210 1.00000",
        "conv_1 0.0733 0.99732",
        "own objective ½(o−y)ᵀK(o−y) 50.0 8.80e-11",
        UNSETTLED,
    ):
        assert words in page.text, words
    assert "objective" not in reported(tmp_path / "plain", MINIMAL).text


def test_own_objectives_that_are_not_finite_are_named() -> None:
    whole = with_own()
    whole["rules"]["coupled_learning"]["own_objective"]["layers"]["conv_2"]["relative_error"] = None
    text = re.sub(r"\s+", " ", " ".join(show(fidelity_table(whole))))
    assert "the relative error of coupled_learning (own objective, conv_2)" in text
    whole["rules"]["coupled_learning"]["own_objective"].pop("cosine")
    with pytest.raises(DataError, match=r"rules.coupled_learning.own_objective.cosine: is missing"):
        fidelity_results.Fidelity.parse(whole)


def test_run_report_sets_a_rules_own_objective_beside_the_costs_gradient(tmp_path: Path) -> None:
    whole = summary()
    for end, error in (("initial", 0.0011), ("trained", 0.0022)):
        own = rule(0.5, error, 0.6, objective="E_clamped − E_free")
        whole["fidelity"][end]["own_objective"] = own
    (tmp_path / "summary.json").write_text(json.dumps(whole))
    text = Page(write_report(tmp_path)).text
    assert "eqprop follows E_clamped − E_free." in text
    assert "eqprop 0.0123 0.0456 0.99992 0.99896" in text
    assert "of its own objective 0.00110 0.00220" in text


def test_the_caption_has_the_gdu_slopes_the_precisions_and_the_jumps_along_beta() -> None:
    whole = copy.deepcopy(FULL)
    betas, shares = [0.1, 0.4, 0.2], [0.0, 0.25, 0.03125]
    whole["equilibrium"]["jumped_along"] = {"betas": betas, "shares": shares}
    kinds = {"float32": closeness(0.02), "float64": closeness(0.0123)}
    whole["rules"]["eqprop"]["precisions"] = kinds
    caption = re.sub(r"\s+", " ", " ".join(show(fidelity_table(whole))))
    for words in (
        "sweep by sweep: one-sided 1.00 ± 0.00 (theory 1); centered 2.00 ± 0.00 (theory 2).",
        "Relative error: eqprop 0.0200 in float32, 0.0123 in float64.",
        "none jumps up to β = 0.1, 3.1 % at 0.2, 25.0 % at 0.4",
    ):
        assert words in caption, words


def test_grids_of_several_rules_are_lines_of_their_own_and_a_runaway_is_left_out() -> None:
    whole, same = copy.deepcopy(FULL), {"varied": "beta", "estimator": "", "precision": "float64"}
    for beta, error in ((0.01, 1e-4), (0.1, 1e-2), (1.5, 1e88)):
        point = closeness(error, rule="dual_propagation", beta=beta, converged=1.0, **same)
        whole["grid"].append(point)
    whole["bias_order"]["dual_propagation"] = 2.0
    found = fidelity_results.Fidelity.parse(whole)
    lines = {line.label: line for part in grid_lines(found, "beta").values() for line in part}
    assert set(lines) == {*(f"eqprop {name}" for name in ORDERS), "dual_propagation"}
    assert lines["dual_propagation"].drawn.tolist() == [True, True, False]
    assert "dual_propagation 2.00" in grid_panels(found)[0].alt
    caption = re.sub(r"\s+", " ", " ".join(show(fidelity_table(whole))))
    assert "left out of the plots: dual_propagation float64 at β = 1.5." in caption
