"""Fitted exponents against closed forms: a known order, a floor, and curvature at large β."""

from __future__ import annotations

import numpy as np
import pytest

from bpeq.analysis.bias_order import bias_order, fit_grid
from bpeq.analysis.power_law import power_law

BETAS = np.logspace(0, -6, 25)


@pytest.mark.parametrize("order", [1, 2, 4])
@pytest.mark.parametrize("floor", ["constant", "round-off"])
def test_the_order_is_found_between_curvature_and_a_floor(order, floor):
    """e = c β^p (1 + a β) + floor: neighbouring slopes are p only in the middle."""
    noise = 1e-12 if floor == "constant" else 1e-13 / BETAS
    errors = 0.5 * BETAS**order * (1 + 4 * BETAS) + noise
    law = bias_order(BETAS, errors)
    assert abs(law.order - order) <= law.error <= 0.1
    noise = np.broadcast_to(noise, len(BETAS))
    share = dict(zip(BETAS, noise / errors, strict=True))
    assert max(share[beta] for beta in law.betas) < 0.05  # no point on the floor
    fitted = 10**law.intercept * np.asarray(law.betas) ** law.order
    truth = [errors[BETAS.tolist().index(beta)] for beta in law.betas]
    np.testing.assert_allclose(np.log10(truth / fitted), law.residuals, atol=1e-12)
    assert law.reason == ""


def test_a_lone_point_on_a_floor_is_left_out():
    """At β = 1e-5 the error is a floor of 3e-9, where the bias would be 3e-10."""
    betas = [0.3, 0.1, 0.03, 0.01, 1e-3, 1e-5]
    law = bias_order(betas, [2.6 * b**2 * (1 + b**2) + 3e-9 for b in betas])
    assert abs(law.order - 2) <= max(law.error, 1e-3) < 0.1
    assert law.betas == [0.1, 0.03, 0.01, 1e-3]


@pytest.mark.parametrize(
    "errors",
    [
        [3e-2, 2.9e-2, 3.1e-2, 3e-2],  # constant: a bias that no β removes
        [1e-8, 1e-7, 1e-6, 1e-5],  # round-off alone
        [1e-2, 1e-4, 1e-5, 0.9e-5],  # every slope is another
        [1e-2, 1e-4, np.nan, 0.0],  # two usable errors
        [0.9, 0.7, 0.5, 0.3],  # no error is small
    ],
)
def test_without_a_range_of_equal_slopes_there_is_no_order_but_a_reason(errors):
    law = bias_order([1e-1, 1e-2, 1e-3, 1e-4], errors)
    assert (law.order, law.error, law.intercept) == (None, None, None)
    assert (law.betas, law.residuals) == ([], [])
    assert law.reason


def test_a_range_covers_a_factor_of_three():
    betas = [0.010, 0.011, 0.012, 0.013]
    assert power_law(betas, [b**2 for b in betas]).order is None
    assert power_law([*betas, 0.031], [b**2 for b in [*betas, 0.031]]).order == pytest.approx(2)


def test_errors_near_their_known_floor_are_left_out():
    betas, floor = np.logspace(-1, -4, 7), 1e-6
    law = power_law(betas, betas**2 + floor, [floor] * 7)
    assert min(law.betas) > 10**-2.6
    assert abs(law.order - 2) <= law.error + 0.01


def row(varied: str, beta: float, error: float, **more: object) -> dict[str, object]:
    same = {"rule": "eqprop", "estimator": "", "precision": "float64", "points": None}
    return {**same, "varied": varied, "beta": beta, "relative_error": error, **more}


def test_the_grid_of_a_report_gives_order_theory_and_pole():
    """(β/R)^N has one slope in N. Its first point is bent, its last two lie on a floor."""
    errors = {2: 0.09, 4: 0.1**4, 6: 0.1**6, 8: 0.1**8, 10: 4e-10, 12: 4e-10}
    grid = [row("points", 0.05, error, points=n) for n, error in errors.items()]
    betas = [0.1, 0.03, 0.01, 3e-3]
    grid += [row("beta", b, 0.3 * b**2, estimator="centered", order=2) for b in betas]
    grid += [row("beta", b, 0.3, estimator="", rule="biased") for b in betas]
    result = fit_grid(grid)
    assert result["radius"] == pytest.approx(0.5)
    assert result["pole"]["points"] == [4, 6, 8]
    assert result["pole"]["error"] < 1e-6
    assert result["bias_order"] == {"centered": pytest.approx(2.0), "biased": None}
    assert result["fit"]["centered"]["betas"] == betas
    assert (result["fit"]["centered"]["theory"], result["fit"]["biased"]["theory"]) == (2, None)
    assert result["fit"]["biased"]["reason"]
    bent = fit_grid(
        [row("points", 0.05, e, points=n) for n, e in ((2, 1e-2), (4, 1e-6), (6, 1e-7))]
    )
    assert bent["radius"] is None
    assert bent["pole"]["reason"]
