"""Built-in data: what is in it, and that splits are disjoint, complete, fixed, stratified."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpeq.data import Dataset, Splits, diabetes, digits, finish, folded, shuffled, single, xor
from bpeq.data._dataset import checksum
from bpeq.types import DataError

FOLDED = {"digits": digits, "diabetes": diabetes}


def splits_of(data: Dataset) -> Splits:
    return Splits(data.train, data.validation, data.test)


def assert_partitions(splits: Splits, n: int) -> None:
    """Every split has each of n rows just once, sorted within its parts, int32."""
    for part in splits:
        assert part.dtype == np.int32
        assert np.all(np.diff(part, axis=1) > 0)
    for parts in zip(*splits, strict=True):
        assert np.array_equal(np.sort(np.concatenate(parts)), np.arange(n))


def test_xor_is_its_truth_table() -> None:
    data = xor()
    assert data.x.tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert data.y.tolist() == [[0], [1], [1], [0]]
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.float32)
    assert (data.task, data.outputs, data.unit) == ("binary", 1, 1.0)
    for part in splits_of(data):
        assert part.tolist() == [[0, 1, 2, 3]]


def test_digits_are_sixteenths_with_their_labels() -> None:
    data = digits()
    assert data.x.shape == (1797, 8, 8, 1)
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.int32)
    assert np.array_equal(np.unique(data.x), np.arange(17) / 16)
    assert np.bincount(data.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert data.x[0, 0, :, 0].tolist() == [0, 0, 5 / 16, 13 / 16, 9 / 16, 1 / 16, 0, 0]
    assert (data.task, data.outputs, data.unit) == ("classification", 10, 1.0)


def test_diabetes_targets_times_unit_plus_150_are_the_scores() -> None:
    from sklearn.datasets import load_diabetes

    data = diabetes()
    scores = load_diabetes().target
    assert (data.task, data.outputs, data.unit) == ("regression", 1, 75.0)
    assert (data.x.shape, data.y.shape) == ((442, 10), (442, 1))
    assert (data.x.dtype, data.y.dtype) == (np.float32, np.float32)
    np.testing.assert_allclose(data.y[:, 0] * data.unit + 150, scores, rtol=1e-6)
    np.testing.assert_allclose(data.x.mean(axis=0, dtype=np.float64), 0, atol=1e-7)
    np.testing.assert_allclose(data.x.std(axis=0, dtype=np.float64), 1, rtol=1e-6)


def test_digits_splits_have_sizes_1294_144_359() -> None:
    assert [part.shape for part in splits_of(digits())] == [(5, 1294), (5, 144), (5, 359)]
    assert [part.shape for part in splits_of(digits(0))] == [(5, 1438), (5, 0), (5, 359)]


def test_diabetes_splits_have_sizes_319_35_88() -> None:
    assert [part.shape for part in splits_of(diabetes())] == [(5, 319), (5, 35), (5, 88)]


@pytest.mark.parametrize("name", FOLDED)
@pytest.mark.parametrize("validation", [0.0, 0.1, 0.5])
def test_splits_are_disjoint_and_complete(name: str, validation: float) -> None:
    data = FOLDED[name](validation)
    assert_partitions(splits_of(data), len(data.x))


@pytest.mark.parametrize(("name", "left_over"), [("digits", 2), ("diabetes", 2)])
def test_no_example_is_in_two_test_sets(name: str, left_over: int) -> None:
    data = FOLDED[name]()
    assert len(np.unique(data.test)) == data.test.size == len(data.x) - left_over


def test_digits_splits_are_stratified() -> None:
    """A part's count of a class is its share, give or take the rounding of folds and of parts."""
    data = digits()
    share = np.bincount(data.y) / len(data.y)
    for part in splits_of(data):
        for rows in part:
            counts = np.bincount(data.y[rows], minlength=10)
            assert np.abs(counts - share * len(rows)).max() < 2


@pytest.mark.parametrize(
    ("name", "pin"),
    [
        ("digits", "1685d06c1954bbc05ec131cc3586f392f4a1d1a92e76e3e222553048a4d6209d"),
        ("diabetes", "62f021b7a92c7596fd9ef901e6e005243a68fcb3b113db520b969afe00c5e83f"),
    ],
)
def test_splits_are_those_of_every_earlier_version(name: str, pin: str) -> None:
    assert checksum(*splits_of(FOLDED[name]())) == pin


def test_shuffled_splits_are_those_of_every_earlier_version() -> None:
    drawn = shuffled(30, 2, 0.25, 0.2, np.arange(30) % 3)
    assert checksum(*drawn) == "bb09496bfb1aed7df59160679c075d5afa2e232b724688874b3be1f4ebfcbd26"


@pytest.mark.parametrize("name", FOLDED)
def test_two_calls_give_the_same_checksum(name: str) -> None:
    assert FOLDED[name]().checksum == FOLDED[name]().checksum
    assert FOLDED[name]().checksum != FOLDED[name](0.2).checksum


def test_checksum_is_the_sha256_of_types_shapes_and_bytes() -> None:
    import hashlib

    expected = hashlib.sha256(b"<i4(2,)\x01\x00\x00\x00\x02\x00\x00\x00").hexdigest()
    assert checksum(np.array([1, 2], "<i4")) == expected
    assert checksum(np.array([1, 2], ">i4")) == expected
    assert checksum(np.array([[1, 2]], "<i4")) != expected
    assert checksum(np.array([1, 2], "<f4")) != expected
    assert checksum(np.zeros((0, 3), np.int32)) != checksum(np.zeros((3, 0), np.int32))


@pytest.mark.parametrize("factory", [digits, diabetes])
@pytest.mark.parametrize("validation", [-0.1, 1.0, float("nan"), "0.1"])
def test_a_validation_fraction_outside_0_1_is_a_wrong_setting(factory, validation) -> None:
    with pytest.raises(ValueError, match=r"validation = .*must be") as refusal:
        factory(validation)
    assert not isinstance(refusal.value, DataError)


@pytest.mark.parametrize(
    ("factory", "validation", "reason"),
    [
        (digits, 0.001, "into 1437 and 1: fewer than the 10 classes"),
        (digits, 0.999, "into 1 and 1437: fewer than the 10 classes"),
        (diabetes, 0.999, "into 0 and 354: none are left to train on"),
    ],
)
def test_a_fraction_that_empties_a_part_is_a_wrong_setting(factory, validation, reason) -> None:
    with pytest.raises(ValueError, match=reason) as refusal:
        factory(validation)
    assert not isinstance(refusal.value, DataError)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(8, 30), min_size=2, max_size=4),
    count=st.integers(1, 3),
    folds=st.integers(2, 5),
    validation=st.sampled_from([0.0, 0.25, 0.4]),
    test=st.sampled_from([0.0, 0.25, 0.5]),
    stratified=st.booleans(),
)
def test_any_split_is_a_stratified_partition(
    counts, count, folds, validation, test, stratified
) -> None:
    labels = np.repeat(np.arange(len(counts)), counts)
    n, strata = len(labels), labels if stratified else None
    drawn = shuffled(n, count, validation, test, strata)
    assert drawn.test.shape == (count, round(test * n))
    assert drawn.validation.shape == (count, round(validation * (n - round(test * n))))
    cut = folded(n, folds, validation, strata)
    assert cut.test.shape[0] == folds
    assert len(np.unique(cut.test)) == cut.test.size
    for splits in (drawn, cut):
        assert_partitions(splits, n)
    if stratified:
        slack = {id(drawn): 2.0, id(cut): 1.0 + folds}  # a fold may give folds − 1 rows back
        for splits in (drawn, cut):
            for rows in splits.test:
                given_ = np.bincount(labels[rows], minlength=len(counts))
                expected = np.array(counts) / n * len(rows)
                assert np.abs(given_ - expected).max() < slack[id(splits)]


def test_splits_drawn_for_one_data_set_differ() -> None:
    drawn = shuffled(50, 4, 0.1, 0.2)
    assert len({rows.tobytes() for rows in drawn.test}) == 4


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda: folded(3, 5, 0.1), "5 folds of 3 examples"),
        (lambda: folded(20, 5, 0.1, np.repeat([0, 1], [17, 3])), "5 folds of 20 examples"),
        (lambda: shuffled(1, 1, 0.0, 0.5), "none are left to train on"),
        (lambda: shuffled(9, 1, 0.0, 0.3, np.repeat([0, 4], [8, 1])), "class 4 has one example"),
    ],
)
def test_too_few_examples_for_a_split_are_refused(make, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        make()


ROWS = np.arange(4)
GOOD = {
    "x": np.zeros((4, 2), np.float32),
    "y": np.array([0, 1, 0, 1], np.int32),
    "splits": single(ROWS[:2], ROWS[2:3], ROWS[3:]),
    "task": "classification",
    "outputs": 2,
}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"x": np.zeros((4, 2))}, "x is float64"),
        ({"x": np.zeros(4, np.float32)}, r"x is float32 \(4,\)"),
        ({"x": np.full((4, 2), np.nan, np.float32)}, r"x\[0, 0\] is nan"),
        ({"y": np.array([0, 1, 0], np.int32)}, r"y is int32 \(3,\): int32 \(4,\) is needed"),
        ({"y": np.array([0, 1, 0, 1])}, "y is int64"),
        ({"y": np.array([0, 1, 0, 2], np.int32)}, r"y\[3\] is 2, not below 2"),
        ({"y": np.array([0, -1, 0, 1], np.int32)}, r"y\[1\] is -1, negative"),
        ({"task": "regression"}, r"y is int32 \(4,\): float32 \(4, 2\) is needed"),
        ({"splits": single(ROWS[:2], ROWS[2:3], ROWS[2:3])}, "split 0 does not have each of 4"),
        ({"splits": single(ROWS[:2], ROWS[2:3], ROWS[2:2])}, "split 0 does not have each of 4"),
        ({"splits": single(ROWS[:2], ROWS[2:3], ROWS[3:] + 1)}, "split 0 does not have each of 4"),
        ({"splits": single(ROWS[:0], ROWS[:2], ROWS[2:])}, "train not empty"),
        (
            {
                "task": "binary",
                "outputs": 1,
                "y": np.array([[0], [1], [2], [0]], np.float32),
            },
            r"y\[2, 0\] is 2.0: a binary target is 0 or 1",
        ),
    ],
)
def test_finish_refuses_what_a_dataset_cannot_have(change, reason: str) -> None:
    assert finish("mine", **GOOD).checksum
    with pytest.raises(DataError, match=f"^mine: .*{reason}"):
        finish("mine", **{**GOOD, **change})


def test_importing_data_loads_no_heavy_module() -> None:
    code = (
        "import bpeq, sys; before = set(sys.modules); import bpeq.data; bpeq.data.xor();"
        "print(*sorted({'jax', 'sklearn', 'scipy', 'pooch', 'requests', 'matplotlib'}"
        " & (set(sys.modules) - before)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
