"""Paired differences: Student's test, Holm's verdicts, Bonferroni's intervals, and no verdict."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from bpeq.analysis.paired_differences import paired


def rows_of(metric: str, **values):
    return {name: {"metrics": {metric: {"values": v}}} for name, v in values.items()}


numbers = st.integers(3, 8).flatmap(
    lambda n: arrays(np.float64, (3, n), elements=st.floats(-10, 10, width=16), unique=True)
)


@settings(max_examples=50, deadline=None)
@given(values=numbers, level=st.sampled_from([0.5, 0.9, 0.95]))
def test_p_values_are_holms_and_intervals_bonferronis_for_any_values(values, level):
    if any(np.ptp(a - b) < 1e-3 for a, b in itertools.combinations(values, 2)):
        return
    rows = rows_of("test_error", **dict(zip("abc", values.tolist(), strict=True)))
    pairs = paired(rows, level)
    tests = [stats.ttest_rel(a, b) for a, b in itertools.combinations(values, 2)]
    p = np.array([test.pvalue for test in tests])
    for pair, test in zip(pairs, tests, strict=True):
        # Holm: the largest (m − rank) · p of all pairs with a p up to this one's
        steps = [min(1.0, (3 - np.sum(p < q)) * q) for q in p if q <= test.pvalue]
        assert pair["p_corrected"] == pytest.approx(max(steps), rel=1e-9)
        interval = test.confidence_interval(1 - (1 - level) / 3)
        assert (pair["low"], pair["high"]) == pytest.approx((interval.low, interval.high), rel=1e-9)
        assert (pair["comparisons"], pair["correction"], pair["level"]) == (3, "Holm", level)
        differs = pair["verdict"] in ("lower", "higher")
        assert differs == (pair["p_corrected"] <= 1.0 - level)
        if pair["low"] > 0 or pair["high"] < 0:  # Bonferroni implies Holm
            assert differs


def test_a_difference_that_one_test_resolves_is_not_resolved_among_many():
    """p = 0.03 alone; with three rows of noise the correction is for six comparisons."""
    a, b = [0.020, 0.021, 0.022, 0.024], [0.017, 0.020, 0.019, 0.020]
    noise = {"c": [0.02, 0.03, 0.01, 0.02], "d": [0.03, 0.02, 0.01, 0.03]}
    (alone,) = paired(rows_of("test_error", a=a, b=b))
    assert 0.01 < alone["p"] == alone["p_corrected"] < 0.05
    assert alone["verdict"] == "higher"
    many = paired(rows_of("test_error", a=a, b=b, **noise))
    assert many[0]["p"] == alone["p"]
    assert many[0]["verdict"] == "not distinguishable"
    assert (many[0]["comparisons"], many[0]["low"] < 0 < many[0]["high"]) == (6, True)


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        ([3.0], [1.0], "too few seeds"),
        ([0.05, 0.03], [0.06, 0.05], "too few seeds"),
        ([0.0305, 0.0500], [0.0500, 0.0695], "too few seeds"),  # both differences are equal
        ([0.03, 0.05, 0.04], [0.05, 0.07, 0.06], "no spread"),
        ([0.03, 0.05, 0.04], [0.03, 0.05, 0.04], "no spread"),
        ([0.03, 0.05, np.nan], [0.05, 0.07, 0.06], "not finite"),
    ],
)
def test_few_seeds_and_equal_differences_give_the_difference_and_no_verdict(a, b, verdict):
    (pair,) = paired(rows_of("test_rmse", a=a, b=b))
    assert pair["verdict"] == verdict
    assert (pair["low"], pair["high"], pair["p"], pair["p_corrected"]) == (None,) * 4
    assert (pair["n"], pair["comparisons"]) == (len(a), 0)
    np.testing.assert_allclose(pair["mean"], np.mean(a) - np.mean(b))


def test_pairs_without_a_verdict_are_no_comparisons():
    same = [0.02, 0.03, 0.01]
    rows = rows_of("test_error", a=same, b=same, c=[0.05, 0.04, 0.06])
    pairs = paired(rows)
    assert [pair["verdict"] == "no spread" for pair in pairs] == [True, False, False]
    assert {pair["comparisons"] for pair in pairs} == {2}


def test_rows_without_a_common_metric_are_not_paired():
    assert paired(rows_of("test_error", a=[0.1]) | rows_of("test_rmse", b=[1.0])) == []
