"""Measures with their values, the limit that each was compared with, and differences on both sides of a limit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from onnx_release.limits import ParityLimits
from onnx_release.parity.measures import Array, ColumnScale, Compared, compare_arrays, root_mean_square
from onnx_release.parity.scales import output_scales
from onnx_release.samples.sample import Sample

WAVE = np.array([[1.0], [-1.0]] * 4)
# Columns with a spread of 1 and of 10.
UNLIKE = np.concatenate([WAVE, 10 * WAVE], axis=1)


def _compared(reference: Array, candidate: Array, **limits: Any) -> Compared:
    sample = Sample(name="example", inputs={}, batch_size=len(reference))
    scales = output_scales([(sample, {"y": reference})])["y"]
    return compare_arrays(reference, candidate, ParityLimits(**limits).to_dict(), scales)


NAN, INF = float("nan"), float("inf")
UNLIMITED: dict[str, Any] = {"mae_max": None, "sqnr_min_db": None}


def _scale(*spread: float, rounding: Sequence[float] | float = 0.0, axis: int | None = -1) -> ColumnScale:
    values = np.array(spread)
    return ColumnScale(axis=axis, spread=values, scale=values, rounding=np.broadcast_to(rounding, values.shape))


def _apart(difference: Any, *scales: ColumnScale, uncertainty: Any = None, **limits: Any) -> Compared:
    """Compare an array of zeros with one of differences, by given scales. The differences are exact."""
    candidate = np.array(difference)
    resolved = ParityLimits(**UNLIMITED).replace(**limits).to_dict()
    deviations = None if uncertainty is None else np.array(uncertainty)
    return compare_arrays(np.zeros_like(candidate), candidate, resolved, scales, deviations)


def _exact(reference: Any, candidate: Any, **limits: Any) -> Compared:
    """Compare integers."""
    arrays = (np.array(values, np.int64) for values in (reference, candidate))
    return compare_arrays(*arrays, ParityLimits(**limits).to_dict(), [])


def test_every_limit_is_listed_with_the_measured_value() -> None:
    found = _compared(
        UNLIKE, UNLIKE + 0.1, mae_max=0.5, sqnr_min_db=10.0, max_abs=0.1, cosine_min=0.9, atol=0.05, rtol=0.15
    )
    ratio_db = -20 * math.log10(math.sqrt((0.1**2 + 0.01**2) / 2))
    expected = {
        # The least ratio is that of the first column: 0.1 of 0.05 + 0.15 * 1.
        "max_abs": (0.1, 0.1),
        "cosine": (found.measures["cosine"], 0.9),
        "tolerance": (0.5, 1.0),
        "mae": (0.1, 0.5),
        "sqnr_db": (ratio_db, 10.0),
    }
    assert {one["name"]: (one["measured"], one["limit"]) for one in found.applied} == {
        name: (pytest.approx(measured), limit) for name, (measured, limit) in expected.items()
    }
    assert found.measures["sqnr_db"] == pytest.approx(ratio_db)
    assert found.measures["mae"] == pytest.approx(0.1)
    assert [one["name"] for one in found.applied if not one["passed"]] == ["max_abs"]
    # The largest difference is a rounding step above 0.1.
    assert [failure.partition(" is ")[0] for failure in found.failures] == ["largest absolute difference 0.1"]


def test_the_worst_column_uses_most_of_its_limits() -> None:
    worst = _compared(UNLIKE, UNLIKE + 0.1, mae_max=0.5, sqnr_min_db=10.0).worst_column
    assert worst is not None
    assert (worst.axis, worst.index) == (-1, 0)
    assert (worst.mae, worst.scale, worst.share) == pytest.approx((0.1, 1.0, 0.2))
    assert worst.sqnr_db == pytest.approx(20.0)
    for mae_max, share in ((0.5, 2.0 / (0.5 * 10)), (None, 2.0 / (10 * 10 ** ((6 - 10) / 20)))):
        other = _compared(UNLIKE, UNLIKE + np.array([0.1, 2.0]), mae_max=mae_max, sqnr_min_db=10.0).worst_column
        assert other is not None
        assert (other.index, other.share) == (1, pytest.approx(share))


def test_without_limits_the_worst_column_has_the_largest_relative_difference() -> None:
    found = _compared(UNLIKE, UNLIKE + np.array([0.1, 2.0]), mae_max=None, sqnr_min_db=None)
    assert found.worst_column is not None
    assert (found.worst_column.index, found.worst_column.share, found.applied) == (1, 0.0, [])


@pytest.mark.parametrize(("allowance_db", "passes"), [(5.9, True), (6.1, False)])
def test_one_column_may_miss_the_ratio_by_its_allowance(allowance_db: float, passes: bool) -> None:
    reference = np.tile(WAVE, (1, 8))
    off = np.zeros(8)
    off[3] = 10 ** ((allowance_db - 60) / 20)
    found = _compared(reference, reference + off, mae_max=None)
    assert (not found.failures) is passes
    if not passes:
        assert found.failures[0].endswith("in column 3 is above 0.002, 54 dB below its scale")
        assert found.applied[-1]["name"] == "column_sqnr_db"
        assert found.applied[-1]["measured"] == pytest.approx(60 - allowance_db)
        assert found.applied[-1]["limit"] == 54.0


@pytest.mark.parametrize(("share", "passes"), [(0.99, True), (1.01, False)])
def test_the_mean_difference_of_a_column_is_relative_to_its_spread(share: float, passes: bool) -> None:
    found = _compared(UNLIKE, UNLIKE + np.array([0.0, share * 10 * 1e-3]), mae_max=1e-3, sqnr_min_db=None)
    assert (not found.failures) is passes
    if not passes:
        assert found.failures == ["MAE 0.0101 in column 1 is not below 0.001 times its spread 10"]


def test_a_difference_of_the_whole_tolerance_passes() -> None:
    unlimited: dict[str, Any] = {"mae_max": None, "sqnr_min_db": None}
    reference, candidate = np.array([[2.0], [0.0]]), np.array([[3.25], [-0.25]])
    assert not _compared(reference, candidate, rtol=0.5, atol=0.25, **unlimited).failures
    [failure] = _compared(reference, candidate, rtol=0.5, atol=0.2, **unlimited).failures
    assert failure == "2 of 2 values lie outside atol 0.2 + rtol 0.5 * |PyTorch's|"


@pytest.mark.parametrize(
    ("values", "expected"),
    [([0.0, 0.0], 0.0), ([3.0, -4.0], math.sqrt(12.5)), ([1e200, 1e200], 1e200), ([1e-200], 1e-200)],
)
def test_the_root_mean_square(values: list[float], expected: float) -> None:
    assert root_mean_square(np.array(values)) == pytest.approx(expected)


def test_only_values_that_are_finite_on_both_sides_have_measures() -> None:
    found = _compared(np.array([INF, 1.0, NAN]), np.array([1.0, 1.5, NAN]))
    assert (found.measures["mae"], found.measures["max_abs"]) == (0.5, 0.5)
    column_of_nan = np.array([[NAN, 1.0], [NAN, -1.0]])
    assert _compared(column_of_nan, column_of_nan).failures == []
    nothing = np.ones((0, 2), np.int64)
    assert _exact(nothing, nothing) == Compared()


def test_the_places_of_nan_are_counted() -> None:
    [failure] = _compared(np.array([NAN, 1.0, 1.0]), np.array([1.0, NAN, NAN]), **UNLIMITED).failures
    assert failure == "NaN at 2 places, PyTorch's at 1; 3 differ"


def test_a_wider_dtype_of_the_reference_is_another_dtype() -> None:
    found = _compared(np.ones(2), np.ones(2, np.float32))
    assert found.failures == ["dtype is float32, PyTorch's is float64"]


def test_the_measures_of_negative_values() -> None:
    found = _compared(np.array([-1.0, 2.0]), np.array([-2.0, 2.0]), **UNLIMITED)
    assert found.measures["max_rel"] == 1.0
    assert _compared(np.array([1.0, 2.0]), np.array([-1.0, -2.0]), **UNLIMITED).measures["cosine"] == pytest.approx(-1)


def test_the_cosine_is_within_its_bounds_for_values_of_any_size() -> None:
    found = _compared(np.array([1e200, 1e200]), np.array([1e-200, 5e-201]), **UNLIMITED)
    assert found.measures["cosine"] == pytest.approx(1.5 / math.sqrt(2 * 1.25))
    random = np.random.default_rng(0)
    for count in range(2, 60):
        values = random.standard_normal(count)
        for factor in (3.0, -3.0):
            cosine = _compared(values, factor * values, **UNLIMITED).measures["cosine"]
            assert cosine is not None
            assert abs(cosine) <= 1.0
    assert not _compared(WAVE, WAVE, cosine_min=1.0, **UNLIMITED).failures


@pytest.mark.parametrize(
    ("reference", "candidate", "agreement_min", "failures"),
    [
        ([1, 2, 3], [1, 2, 3], None, []),
        ([1, 2, 3], [1, 2, 2], None, ["1 of 3 int64 values differ, and all must be equal"]),
        ([1, 2, 3], [1, 2, 4], 1.0, ["1 of 3 int64 values differ, and all must be equal"]),
        ([1, 2, 3], [1, 3, 4], 0.5, ["2 of 3 int64 values differ, and at least 50.00% must be equal"]),
        ([1, 2, 3], [1, 2, 3], 0.5, []),
    ],
)
def test_the_share_of_equal_integers(
    reference: list[int], candidate: list[int], agreement_min: float | None, failures: list[str]
) -> None:
    found = _exact(reference, candidate, agreement_min=agreement_min)
    assert found.failures == failures
    assert [one["limit"] for one in found.applied] == [1.0 if agreement_min is None else agreement_min]


@pytest.mark.parametrize("columns", [1, 3])
def test_another_number_of_columns_fails_and_the_other_axis_is_compared(columns: int) -> None:
    found = _apart(np.full((4, 2, 2), 0.1), _scale(*[1.0] * columns, axis=1), _scale(1.0, 1.0), mae_max=0.5)
    assert found.failures == [f"has another number of columns than on the other samples, {columns}"]
    assert found.worst_column is not None
    assert found.worst_column.axis == -1


@pytest.mark.parametrize(("spread", "axis"), [((1.0, 10.0), 1), ((10.0, 1.0), -1), ((1.0, 1.0), 1)])
def test_the_worst_column_is_that_of_the_axis_that_uses_more(spread: tuple[float, float], axis: int) -> None:
    first, second = spread
    scales = (_scale(first, first, axis=1), _scale(second, second))
    worst = _apart(np.full((4, 2, 2), 0.1), *scales, mae_max=0.5).worst_column
    assert worst is not None
    assert worst.axis == axis


def test_the_worst_column_is_not_that_of_the_largest_relative_difference_when_there_are_limits() -> None:
    worst = _apart([[0.004, 0.3]], _scale(0.01, 1.0), mae_max=0.5).worst_column
    assert worst is not None
    assert (worst.index, worst.share) == (1, pytest.approx(0.6))


def test_the_ratio_of_a_column_is_that_of_its_root_mean_square() -> None:
    worst = _apart([[0.1], [0.05]], _scale(1.0)).worst_column
    assert worst is not None
    assert worst.sqnr_db == pytest.approx(-10 * math.log10((0.1**2 + 0.05**2) / 2))


@pytest.mark.parametrize(
    ("difference", "column"),
    [([0.5, 0.25], 0), ([0.5, 1.0], 1), ([0.75, 1.0, 0.5], 1)],
)
def test_the_column_that_uses_most_of_the_limit_is_named(difference: list[float], column: int) -> None:
    found = _apart([difference], _scale(*[1.0] * len(difference)), mae_max=0.5)
    assert found.failures == [f"MAE {max(difference):.3g} in column {column} is not below 0.5"]


@pytest.mark.parametrize(
    ("spread", "rounding", "mae_max", "limit"),
    [
        (0.5, 0.0, 0.001, "0.001"),
        (1.0, 0.0, 0.001, "0.001"),
        (1.5, 0.0, 0.001, "0.001 times its spread 1.5"),
        (10.0, 0.5, 0.001, "0.5, the rounding of its values"),
        (1.0, 0.0015, 0.001, "0.0015, the rounding of its values"),
        (0.5, 0.0007, 0.001, "0.001"),
        (2.0, 1.0, 0.5, "0.5 times its spread 2"),
    ],
)
def test_the_limit_of_the_mean_difference_is_explained(
    spread: float, rounding: float, mae_max: float, limit: str
) -> None:
    found = _apart([[3.0]], _scale(spread, rounding=rounding), mae_max=mae_max)
    assert found.failures == [f"MAE 3 is not below {limit}"]


def test_a_difference_of_the_rounding_passes_and_hides_no_other_column() -> None:
    assert not _apart([[0.5, 0.5]], _scale(1.0, 1.0, rounding=0.5), sqnr_min_db=60.0).failures
    off = 10 ** ((6.1 - 60) / 20)
    others = [0.0] * 6
    scale = _scale(*[1.0] * 8, rounding=[0.5, 0.0, *others])
    [failure] = _apart([[0.5, off, *others]], scale, sqnr_min_db=60.0).failures
    assert "in column 1 is above" in failure


def test_a_ratio_of_the_limit_passes() -> None:
    assert not _apart([[0.1, 0.1]], _scale(1.0, 1.0), sqnr_min_db=20.0).failures
    assert _apart([[0.1, 0.1]], _scale(1.0, 1.0), sqnr_min_db=20.1).failures


def test_values_too_far_apart_for_a_float_have_no_signal() -> None:
    found = compare_arrays(
        np.array([1.7e308]), np.array([-1.7e308]), ParityLimits(mae_max=None).to_dict(), [_scale(1.0, axis=None)]
    )
    assert found.failures == ["signal to noise ratio -inf dB is below 60 dB"]


@pytest.mark.parametrize(
    ("difference", "deviation", "ratio", "passes"),
    [
        # Rounding is not compared with the uncertainty.
        (0.5, 1e-9, 0.0, True),
        (1.0, 4.0, 0.25, True),
        (1.0, 2.0, 0.5, False),
        (1.0, 0.0, None, False),
        (1.0, -4.0, None, False),
    ],
)
def test_a_difference_is_compared_with_the_uncertainty(
    difference: float, deviation: float, ratio: float | None, passes: bool
) -> None:
    # A division by zero would be a warning in the task's log.
    with np.errstate(divide="raise"):
        scale = _scale(1.0, 1.0, rounding=0.5)
        found = _apart([[difference, 0.0]], scale, uncertainty=[[deviation, 1.0]], uncertainty_max=0.5)
    assert found.measures["uncertainty_ratio"] == ratio
    assert (not found.failures) is passes


def test_without_columns_of_the_last_axis_no_difference_is_rounding() -> None:
    scale = _scale(1.0, 1.0, rounding=0.5, axis=1)
    found = _apart(np.full((2, 2, 3), 0.1), scale, uncertainty=np.ones((2, 2, 3)), uncertainty_max=0.5)
    assert found.measures["uncertainty_ratio"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("reference", "candidate", "limits", "share"),
    [
        (10.0, 10.1, {"atol": 0.2}, 0.5),
        (10.0, 10.3, {"atol": 0.2}, 1.5),
        (2.0, 2.5, {"rtol": 0.5}, 0.5),
        (0.0, 0.0, {"rtol": 0.5}, 0.0),
        (0.0, 0.1, {"rtol": 0.5}, INF),
        (10.0, 10.25, {"max_abs": 0.5}, 0.25),
    ],
)
def test_the_measured_part_of_a_tolerance(
    reference: float, candidate: float, limits: dict[str, float], share: float
) -> None:
    found = _compared(np.array([reference]), np.array([candidate]), **UNLIMITED, **limits)
    assert [one["measured"] for one in found.applied] == [pytest.approx(share)]
    assert (not found.failures) is (share <= 1.0)
