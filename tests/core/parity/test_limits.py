"""Limits of parity: the values that each may have, and a difference on both sides of each default."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from onnx_release.limits import PRECISION_LIMITS, ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.parity.limits import limits_for_weights, require_limits, resolve_limits
from onnx_release.parity.measures import compare_arrays
from onnx_release.parity.scales import output_scales
from onnx_release.records import TensorSpec
from onnx_release.samples.sample import Sample
from tests.refusals import refused

OUTPUTS = [TensorSpec(name="y", dtype="float32", shape=()), TensorSpec(name="n", dtype="int64", shape=())]
SAMPLE = Sample(name="example", inputs={}, batch_size=2)
NAN, INF = float("nan"), float("inf")
UNLIMITED = {"mae_max": None, "sqnr_min_db": None}


@pytest.mark.parametrize(
    ("name", "allowed", "refusals", "bounds"),
    [
        ("mae_max", [1e-300, 5.0], [0.0, -0.1, NAN, INF], "a number above 0"),
        ("uncertainty_max", [1e-9, 0.5], [0.0, -0.1], "a number above 0"),
        ("sqnr_min_db", [0.0, 0.5], [-0.1, INF], "a number from 0"),
        ("max_abs", [0.0, 0.5], [-0.1], "a number from 0"),
        ("rtol", [0.0, 0.5], [-0.1], "a number from 0"),
        ("atol", [0.0, 0.5], [-0.1], "a number from 0"),
        ("agreement_min", [0.0, 1.0], [-0.1, 1.1], "a number from 0 to 1"),
        ("cosine_min", [-1.0, 1.0], [-1.1, 1.1], "a number from -1 to 1"),
    ],
)
def test_a_limit_may_have_the_values_within_its_bounds(
    name: str, allowed: list[float], refusals: list[float], bounds: str
) -> None:
    for value in allowed:
        require_limits(ParityLimits(**{name: value}), OUTPUTS)
    for value in refusals:
        with refused("wrong_limits", f"{name} is {value}, not {bounds}"):
            require_limits(ParityLimits(**{name: value}), OUTPUTS)
    with refused("wrong_limits", f"per_dtype['float32'] {name} is {refusals[0]}, not {bounds}"):
        require_limits(ParityLimits(per_dtype={"float32": {name: refusals[0]}}), OUTPUTS)


def test_every_mistake_is_named() -> None:
    wrong = ParityLimits(
        per_output={"z": {}},
        per_dtype={"int7": {}, "float": {}, "longlong": {}, "float32": {"mae": 1.0}},
        uncertainty_of={"n": "n"},
    )
    parts = (
        "per_output has 'z'",
        "'int7', which",
        "'float', which",
        "'longlong', which",
        "per_dtype['float32'] has 'mae', and the limits",
    )
    with refused("wrong_limits", *parts, "'n' as its own uncertainty", "the outputs of floats are ['y']"):
        require_limits(wrong, OUTPUTS)


def test_an_uncertainty_may_be_any_other_output_of_floats() -> None:
    outputs = [TensorSpec(name=name, dtype="float32", shape=()) for name in ("a", "b")]
    require_limits(ParityLimits(uncertainty_of={"a": "b", "b": "a"}), outputs)


def test_integers_need_a_limit_on_agreement_and_floats_another_one() -> None:
    with refused("wrong_limits", "output 'n' is left without any limit") as caught:
        require_limits(ParityLimits(agreement_min=None), OUTPUTS)
    assert "'y'" not in caught.value.problem
    # `uncertainty_max` alone leaves an output without a limit where no output has its deviations.
    with refused("wrong_limits", "output 'y' is left without any limit"):
        require_limits(ParityLimits(**UNLIMITED, agreement_min=1.0, uncertainty_max=0.1), OUTPUTS)


def test_half_precision_weights_widen_the_limits_of_wider_outputs_only() -> None:
    given = ParityLimits(per_dtype={"float64": {"mae_max": 1e-7}, "int64": {"agreement_min": 0.5}})
    assert limits_for_weights(given, {"float32"}) is given
    for weights, mae_max, sqnr_min_db in (({"float16"}, 2e-3, 40.0), ({"float16", "bfloat16"}, 1.6e-2, 25.0)):
        widened = limits_for_weights(given, weights)
        found = [resolve_limits(widened, "y", dtype) for dtype in ("float32", "float64", "int64")]
        assert [limits.mae_max for limits in found] == [mae_max, 1e-7, 1e-5]
        assert [limits.sqnr_min_db for limits in found] == [sqnr_min_db, sqnr_min_db, 60.0]
        assert found[2].agreement_min == 0.5


def _failures(reference: Any, candidate: Any, limits: ParityLimits, dtype: str, **changes: Any) -> list[str]:
    """Compare float64 arrays by the limits of a dtype, where `changes` replace some of them."""
    ours, theirs = np.asarray(reference, np.float64), np.asarray(candidate, np.float64)
    resolved = resolve_limits(limits, "y", dtype).model_dump() | changes
    return compare_arrays(ours, theirs, resolved, output_scales([(SAMPLE, {"y": ours})])["y"]).failures


EXACT = ParityLimits()
INT8, FLOAT16 = (ParityLimits(**PRECISION_LIMITS[name]) for name in ("int8", "float16"))  # type: ignore[arg-type]
WAVE = np.array([1.0, -1.0] * 50)


@pytest.mark.parametrize(
    ("dtype", "mae_max"), [("float32", 1e-5), ("float64", 1e-5), ("float16", 2e-3), ("bfloat16", 1.6e-2)]
)
def test_the_default_mean_difference_of_a_dtype(dtype: str, mae_max: float) -> None:
    for share, passes in ((0.99, True), (1.01, False)):
        off = WAVE + share * mae_max
        assert (not _failures(WAVE, off, EXACT, dtype, sqnr_min_db=None)) is passes


@pytest.mark.parametrize(
    ("limits", "dtype", "least_db"),
    [
        (EXACT, "float32", 60.0),
        (EXACT, "float16", 40.0),
        (EXACT, "bfloat16", 25.0),
        (INT8, "float32", 20.0),
        (FLOAT16, "float32", 40.0),
    ],
)
def test_the_default_signal_to_noise_ratio(limits: ParityLimits, dtype: str, least_db: float) -> None:
    for ratio_db, passes in ((least_db + 0.1, True), (least_db - 0.1, False)):
        off = WAVE + 10 ** (-ratio_db / 20)
        assert (not _failures(WAVE, off, limits, dtype, mae_max=None, cosine_min=None)) is passes


@pytest.mark.parametrize(("limits", "cosine_min"), [(INT8, 0.999), (FLOAT16, 0.9999)])
def test_the_least_cosine_of_a_precision(limits: ParityLimits, cosine_min: float) -> None:
    for angle, passes in ((0.99, True), (1.01, False)):
        turned = angle * math.acos(cosine_min)
        candidate = [math.cos(turned), math.sin(turned)]
        assert (not _failures([1.0, 0.0], candidate, limits, "float32", sqnr_min_db=None)) is passes


@pytest.mark.parametrize(("limits", "allowed"), [(EXACT, 0), (INT8, 10), (FLOAT16, 1)])
def test_the_least_agreement_of_1000_integers(limits: ParityLimits, allowed: int) -> None:
    for differing, passes in ((allowed, True), (allowed + 1, False)):
        candidate = np.arange(1000) + (np.arange(1000) < differing)
        (result,) = compare_outputs({"y": np.arange(1000)}, {"y": candidate}, SAMPLE, limits)
        assert result.passed is passes


@pytest.mark.parametrize(("limits", "uncertainty_max"), [(EXACT, 0.01), (INT8, 0.5), (FLOAT16, 0.1)])
def test_the_largest_part_of_the_uncertainty(limits: ParityLimits, uncertainty_max: float) -> None:
    limits = limits.replace(uncertainty_of={"y": "sigma"}, mae_max=None, sqnr_min_db=None, cosine_min=None)
    sigma = np.full(100, 0.25)
    for share, passes in ((0.99, True), (1.01, False)):
        candidate = {"y": WAVE + share * uncertainty_max * 0.25, "sigma": sigma}
        result = compare_outputs({"y": WAVE, "sigma": sigma}, candidate, SAMPLE, limits)[0]
        assert result.passed is passes
