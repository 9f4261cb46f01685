from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from onnx_release.errors import ParityRefused
from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs, evaluate_parity
from onnx_release.parity.limits import require_limits, resolve_limits
from onnx_release.parity.scales import output_scales
from onnx_release.records import Measures, OutputParity, TensorSpec
from onnx_release.samples.sample import Sample
from tests.core import records
from tests.refusals import refused

SAMPLE = Sample(name="example", inputs={}, batch_size=2)
NAN, INF = float("nan"), float("inf")
LOOSE = ParityLimits(mae_max=1e9, sqnr_min_db=None)


def _one(reference: Any, candidate: Any, limits: ParityLimits | None = None, dtype: str = "float32") -> OutputParity:
    sides = ({"y": np.asarray(values, dtype=dtype)} for values in (reference, candidate))
    (result,) = compare_outputs(*sides, SAMPLE, limits or ParityLimits())
    return result


def _failure(result: OutputParity) -> str:
    assert not result.passed
    return "; ".join(result.failures)


def test_equal_outputs_pass_with_every_measure() -> None:
    result = _one([[1.0, -2.0], [3.0, -2.0]], [[1.0, -2.0], [3.0, -2.0]])
    assert result.passed
    assert result.measures == Measures(mae=0.0, max_abs=0.0, max_rel=0.0, cosine=1.0)
    assert (result.dtype, result.shape, result.batch_size) == ("float32", (2, 2), 2)


def test_each_measure_has_its_value() -> None:
    result = _one([1.0, 2.0, 4.0, 0.0], [1.0, 3.0, 3.0, 0.5], LOOSE)
    assert result.measures.mae == pytest.approx(0.625)
    assert result.measures.max_abs == 1.0
    assert result.measures.max_rel == 0.5
    assert result.measures.cosine == pytest.approx(19 / np.sqrt(21 * 19.25))


@pytest.mark.parametrize(("reference", "candidate"), [(1.0, NAN), (NAN, 1.0), (INF, 1.0), (1.0, -INF), (INF, -INF)])
def test_a_special_value_on_one_side_fails(reference: float, candidate: float) -> None:
    result = _one([reference, 1.0], [candidate, 1.0], LOOSE)
    assert "differ" in _failure(result)


def test_special_values_at_the_same_places_pass_and_the_rest_is_compared() -> None:
    assert _one([NAN, INF, -INF, 1.0], [NAN, INF, -INF, 1.0]).passed
    assert "MAE 0.5 is not below" in _failure(_one([NAN, INF, -INF, 1.0], [NAN, INF, -INF, 1.5]))


@pytest.mark.parametrize("values", [[NAN, NAN], [INF, -INF], np.ones((0, 2))])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_outputs_without_a_finite_value_pass_if_another_sample_has_values(values: Any, dtype: str) -> None:
    result = _one(values, values, dtype=dtype)
    assert (result.passed, result.has_values) == (True, False)
    other = records.comparison(batch_size=3)
    assert evaluate_parity(records.artifact(), [result, other], ParityLimits()).passed
    alone = evaluate_parity(records.artifact(), [result], ParityLimits())
    assert "has no finite value on any sample" in "; ".join(alone.failures)
    assert "inputs_uri" in "; ".join(alone.failures)


def test_empty_outputs_of_different_shapes_fail() -> None:
    assert "shape is [0, 3]" in _failure(_one(np.ones((0, 2)), np.ones((0, 3))))
    assert "shape is [0, 2]" in _failure(_one(np.ones((1, 2)), np.ones((0, 2))))


def test_shapes_that_would_broadcast_fail() -> None:
    result = _one(np.ones((3, 1)), np.ones((1, 3)), LOOSE)
    assert "shape is [1, 3], PyTorch's is [3, 1]" in _failure(result)
    assert result.measures.mae is None


def test_another_dtype_fails() -> None:
    (result,) = compare_outputs({"y": np.ones(2, np.float32)}, {"y": np.ones(2, np.float64)}, SAMPLE, LOOSE)
    assert "dtype is float64, PyTorch's is float32" in _failure(result)


@pytest.mark.parametrize("dtype", ["uint8", "int64", "bool"])
def test_integers_and_booleans_must_be_equal_under_any_float_limit(dtype: str) -> None:
    limits = ParityLimits(mae_max=100.0, per_output={"y": {"max_abs": 100.0}})
    assert _one([1, 0, 1], [1, 0, 1], limits, dtype).passed
    assert "1 of 3" in _failure(_one([1, 0, 1], [1, 1, 1], limits, dtype))


def test_unsigned_differences_do_not_wrap() -> None:
    assert _one([5], [6], dtype="uint8").measures.max_abs == 1.0


def test_large_integers_that_are_equal_as_floats_differ() -> None:
    assert not _one([2**60], [2**60 + 1], dtype="int64").passed


def test_an_output_of_only_one_side_fails_and_the_others_are_compared() -> None:
    one = np.ones(1, np.float32)
    results = compare_outputs({"a": one, "b": one}, {"b": one, "c": one}, SAMPLE, LOOSE)
    assert [(r.output, r.passed) for r in results] == [("a", False), ("b", True), ("c", False)]
    assert "ONNX Runtime does not" in _failure(results[0])
    assert "PyTorch does not" in _failure(results[2])


def test_texts_cannot_be_compared() -> None:
    assert "cannot be compared" in _failure(_one(["a"], ["a"], dtype="str"))


def test_mae_must_be_strictly_below_and_max_abs_may_reach_its_limit() -> None:
    assert not _one([0.0], [0.5], ParityLimits(mae_max=0.5, sqnr_min_db=None)).passed
    assert _one([0.0], [0.5], ParityLimits(mae_max=None, sqnr_min_db=None, max_abs=0.5)).passed
    assert not _one([0.0], [0.75], ParityLimits(mae_max=None, sqnr_min_db=None, max_abs=0.5)).passed


def test_max_abs_finds_one_wrong_element_that_the_mean_hides() -> None:
    candidate = np.zeros(10**5)
    candidate[7] = 0.5
    assert _one(np.zeros(10**5), candidate).passed
    assert not _one(np.zeros(10**5), candidate, ParityLimits(max_abs=1e-3)).passed


def test_rtol_and_atol_apply_together_to_each_element() -> None:
    limits = ParityLimits(mae_max=None, sqnr_min_db=None, rtol=0.1, atol=0.01)
    assert _one([100.0, 0.0], [109.0, 0.005], limits).passed
    assert "1 of 2 values" in _failure(_one([100.0, 0.0], [109.0, 0.02], limits))
    assert not _one([0.0], [0.001], ParityLimits(mae_max=None, sqnr_min_db=None, rtol=0.1)).passed


def test_a_cosine_without_a_value_fails_only_its_own_limit() -> None:
    zeros, ones = np.zeros(3), np.full(3, 1e-7)
    assert _one(zeros, ones).passed
    assert _one(zeros, ones).measures.cosine is None
    assert "has no value" in _failure(_one(zeros, ones, ParityLimits(cosine_min=0.9)))
    assert _one(zeros, zeros, ParityLimits(cosine_min=0.9)).passed


def test_the_cosine_is_right_for_values_whose_squares_overflow() -> None:
    result = _one(
        [1e200, 1e200], [1e200, 0.9e200], ParityLimits(mae_max=None, sqnr_min_db=None, cosine_min=0.99), "float64"
    )
    assert result.passed


def test_finite_values_too_far_apart_for_a_float_fail() -> None:
    assert not _one([1.7e308], [-1.7e308], LOOSE, "float64").passed


def test_an_outputs_own_limit_wins_over_its_dtypes_and_that_over_the_general() -> None:
    limits = ParityLimits(
        mae_max=1.0,
        max_abs=1.0,
        per_dtype={"float16": {"mae_max": 2.0, "max_abs": 2.0}},
        per_output={"y": {"mae_max": 3.0}},
    )
    resolved = resolve_limits(limits, "y", "float16")
    assert (resolved.mae_max, resolved.max_abs) == (3.0, 2.0)
    assert [resolve_limits(limits, "z", dtype).mae_max for dtype in ("float32", "float16")] == [1.0, 2.0]


def test_an_override_loosens_only_its_own_output() -> None:
    sides: list[dict[str, npt.NDArray[Any]]] = [
        {"y": np.full(2, value, np.float32), "z": np.full(2, value, np.float32)} for value in (0.0, 1e-3)
    ]
    results = compare_outputs(
        sides[0], sides[1], SAMPLE, ParityLimits(per_output={"y": {"mae_max": 1e-2, "sqnr_min_db": 20.0}})
    )
    assert {r.output: r.passed for r in results} == {"y": True, "z": False}


@pytest.mark.parametrize(
    ("limits", "part"),
    [
        (
            ParityLimits(per_output={"posotions": {"max_abs": 1.0}}),
            "per_output has 'posotions', and the outputs are ['y', 'n']",
        ),
        (ParityLimits(per_output={"y": {"mae": 1.0}}), "has 'mae', and the limits are"),
        (ParityLimits(per_dtype={"float23": {"mae_max": 1.0}}), "'float23', which is not a dtype"),
        (ParityLimits(mae_max=NAN), "mae_max is nan"),
        (ParityLimits(max_abs=-1.0), "max_abs is -1.0"),
        (ParityLimits(cosine_min=2.0), "cosine_min is 2.0"),
        (ParityLimits(mae_max=None, sqnr_min_db=None), "output 'y' is left without any limit"),
        (
            ParityLimits(per_output={"y": {"mae_max": None, "sqnr_min_db": None}}),
            "output 'y' is left without any limit",
        ),
    ],
)
def test_wrong_limits_are_refused(limits: ParityLimits, part: str) -> None:
    outputs = [TensorSpec(name="y", dtype="float32", shape=()), TensorSpec(name="n", dtype="int64", shape=())]
    with pytest.raises(ParityRefused) as refusal:
        require_limits(limits, outputs)
    assert refusal.value.code == "wrong_limits"
    assert part in refusal.value.problem


def test_valid_limits_are_accepted() -> None:
    outputs = [TensorSpec(name="y", dtype="float32", shape=())]
    require_limits(ParityLimits(mae_max=None, sqnr_min_db=None, per_dtype={"float32": {"cosine_min": 0.9}}), outputs)


def test_a_report_of_passed_comparisons_passes() -> None:
    report = evaluate_parity(
        records.artifact(), [records.comparison(batch_size=size) for size in (2, 1, 3)], ParityLimits()
    )
    assert report.passed
    assert (report.batch_sizes, report.unseen_batch_sizes) == ((1, 2, 3), (1, 3))
    assert report.limits["mae_max"] == 1e-5


@pytest.mark.parametrize(
    ("comparisons", "part"),
    [
        ([], "nothing was compared"),
        ([records.comparison(batch_size=2)], "no batch size was compared but 2"),
        ([records.comparison(output="other")], "output 'y' was never compared"),
        (
            [records.comparison(), records.comparison(output="z"), records.comparison(output="z", batch_size=4)],
            "1 of 2",
        ),
        ([records.comparison(passed=False)], "did not pass"),
        (
            [records.comparison(), records.comparison(batch_size=4, passed=False, failures=("too far",))],
            "batch 4): too far",
        ),
    ],
)
def test_a_report_with_a_gap_or_a_failure_fails(comparisons: list[OutputParity], part: str) -> None:
    report = evaluate_parity(records.artifact(), comparisons, ParityLimits())
    assert not report.passed
    assert part in "; ".join(report.failures)


def test_each_failed_output_has_one_line_with_its_first_failed_sample_and_a_count() -> None:
    compared = [
        records.comparison(output=output, sample=sample, batch_size=size, passed=not failures, failures=failures)
        for output, sample, size, failures in (
            ("y", "example", 1, ()),
            ("y", "first", 2, ("too far", "rounded")),
            ("y", "second", 4, ("farther",)),
            ("a", "example", 1, ("far",)),
            ("z", "example", 1, ()),
        )
    ]
    lines = evaluate_parity(records.artifact(), compared, ParityLimits()).failures
    assert lines[:2] == (
        "output 'y' (first, batch 2): too far; rounded; 2 of 3 comparisons failed",
        "output 'a' (example, batch 1): far; 1 of 1 comparisons failed",
    )


def test_values_of_another_output_do_not_count_for_one_without_a_finite_value() -> None:
    empty = _one(np.ones((0, 2)), np.ones((0, 2)))
    others = [records.comparison(output=name, batch_size=size) for name in ("a", "z") for size in (2, 3)]
    report = evaluate_parity(records.artifact(), [empty, *others], ParityLimits())
    assert "output 'y' has no finite value" in report.failures[0]


def test_a_side_that_does_not_run_fails_the_report() -> None:
    report = evaluate_parity(records.artifact(), [records.comparison()], ParityLimits(), ["batch 8: it crashed"])
    assert not report.passed
    assert "batch 8: it crashed" in report.failures


def test_an_error_is_relative_to_the_scale_of_the_output() -> None:
    large = np.tile([1000.0, -1000.0], 50)
    assert _one(large, large + 0.001).passed
    assert "1e-05 times its spread 1e+03" in _failure(_one(large, large + 0.02))


def test_a_large_error_among_tiny_values_fails_below_the_absolute_limit() -> None:
    result = _one([1e-7, -1e-7], [2e-7, -1e-7])
    assert result.measures.mae is not None
    assert result.measures.mae < 1e-5
    assert "signal to noise ratio 3.01 dB is below 60 dB" in _failure(result)


def test_the_scale_is_that_of_all_samples_and_rounding_at_zero_passes() -> None:
    reference, candidate = ({"y": np.full(3, value, np.float32)} for value in (1e-9, -1e-9))
    scales = output_scales([(SAMPLE, reference), (SAMPLE, {"y": np.ones(3, np.float32)})])
    assert not compare_outputs(reference, candidate, SAMPLE, ParityLimits())[0].passed
    assert compare_outputs(reference, candidate, SAMPLE, ParityLimits(), scales)[0].passed


def test_half_precision_has_own_limits_which_an_override_replaces() -> None:
    values, off = np.linspace(-1, 1, 64), np.linspace(-1, 1, 64) + 1.5e-3
    assert _one(values, off, dtype="float16").passed
    assert not _one(values, off).passed
    assert not _one(values, off, ParityLimits(per_dtype={"float16": {"mae_max": 1e-4}}), "float16").passed


def test_integers_may_have_a_limit_on_agreement() -> None:
    limits = ParityLimits(per_output={"y": {"agreement_min": 0.75}})
    assert _one([1, 2, 3, 4], [1, 2, 3, 5], limits, "int64").passed
    failed = _one([1, 2, 3, 4], [1, 2, 5, 5], limits, "int64")
    assert "2 of 4 int64 values differ, and at least 75.00% must be equal" in _failure(failed)
    assert failed.measures.agreement == 0.5


def test_a_difference_on_a_sample_that_does_not_decide_is_a_warning() -> None:
    same = [records.comparison(), records.comparison(batch_size=2)]
    invented = records.comparison(sample="zeros", decides=False, passed=False, failures=("too far",), mae=1.0)
    report = evaluate_parity(records.artifact(), [*same, invented], ParityLimits())
    assert report.passed
    assert "zeros, batch 1): too far" in "; ".join(report.warnings)
    assert report.worst_per_output()["y"].mae == 1e-8


def test_samples_that_do_not_decide_are_not_enough() -> None:
    report = evaluate_parity(records.artifact(), [records.comparison(decides=False)], ParityLimits())
    assert "nothing was compared" in report.failures


UNCERTAIN = ParityLimits(mae_max=None, sqnr_min_db=20.0, uncertainty_of={"y": "sigma"})


def _uncertain(off: float, sigma: Any, limits: ParityLimits = UNCERTAIN) -> OutputParity:
    values = np.linspace(-1, 1, 8).reshape(4, 2).astype(np.float32)
    deviations = np.asarray(sigma, np.float32)
    reference = {"y": values, "sigma": deviations}
    results = compare_outputs(reference, {"y": values + np.float32(off), "sigma": deviations}, SAMPLE, limits)
    return results[0]


@pytest.mark.parametrize("sigma", [np.full((4, 2), 0.5), np.full((4, 1), 0.5), np.full(4, 0.5), np.full(2, 0.5)])
def test_a_difference_is_compared_with_the_models_own_uncertainty(sigma: Any) -> None:
    if sigma.shape == (2,):
        assert "its uncertainty has shape [2], not [4, 2]" in _failure(_uncertain(1e-3, sigma))
        return
    small = _uncertain(1e-3, sigma)
    assert small.passed
    assert small.measures.uncertainty_ratio == pytest.approx(2e-3, rel=1e-2)
    assert "0.02 of the model's own uncertainty, not below 0.01" in _failure(_uncertain(1e-2, sigma))
    assert _uncertain(1e-2, sigma, UNCERTAIN.replace(uncertainty_max=0.1)).passed


@pytest.mark.parametrize("sigma", [0.0, NAN, -1.0])
def test_an_uncertainty_without_a_size_allows_no_difference_but_rounding(sigma: float) -> None:
    assert not _uncertain(1e-3, np.full((4, 2), sigma)).passed
    assert "uncertainty" not in "; ".join(_uncertain(0.0, np.full((4, 2), sigma)).failures)


@pytest.mark.parametrize(
    ("pairs", "part"),
    [({"y": "n"}, "'n'"), ({"z": "y"}, "'z'"), ({"y": "y"}, "its own uncertainty"), ({"": ""}, "''")],
)
def test_an_uncertainty_that_is_not_another_output_of_floats_is_refused(pairs: dict[str, str], part: str) -> None:
    outputs = [TensorSpec(name="y", dtype="float32", shape=()), TensorSpec(name="n", dtype="int64", shape=())]
    with refused("wrong_limits", "uncertainty_of", part):
        require_limits(ParityLimits(uncertainty_of=pairs), outputs)
