"""Measures with their values, the limit that each was compared with, and differences on both sides of a limit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from onnx_release.limits import ParityLimits
from onnx_release.parity.measures import Array, Compared, compare_arrays, root_mean_square
from onnx_release.parity.scales import output_scales
from onnx_release.samples.sample import Sample

WAVE = np.array([[1.0], [-1.0]] * 4)
# Columns with a spread of 1 and of 10.
UNLIKE = np.concatenate([WAVE, 10 * WAVE], axis=1)


def _compared(reference: Array, candidate: Array, **limits: Any) -> Compared:
    sample = Sample(name="example", inputs={}, batch_size=len(reference))
    scales = output_scales([(sample, {"y": reference})])["y"]
    return compare_arrays(reference, candidate, ParityLimits(**limits).to_dict(), scales)


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
