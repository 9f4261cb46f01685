"""Measures of two arrays, and the limits on them, in float64.

Values that cannot be compared fail. NaN passes any test of the form ``difference >= limit``, (3, 1) broadcasts against
(1, 3) to a difference of zero, and unsigned integers wrap around.

A reproduction bundle contains a copy of this file, so it imports only numpy. Measures, limits and their
results are mappings here, with the fields of `records.Measures`, `limits.OutputLimits` and `records.AppliedLimit`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Measured = dict[str, "float | None"]
Limits = Mapping[str, "float | None"]

# The default of `mae_max`. Only a person sets a lower one, who then means the number.
MAE_MAX_LITERAL_BELOW = 1e-5
# A single column may miss the limit on the signal to noise ratio by this much: in one row, it is a single value.
COLUMN_ALLOWANCE_DB = 6.0


@dataclass(frozen=True, slots=True)
class ColumnScale:
    """Scale of an output's columns along one axis, one value per column.

    Attributes:
        axis: The axis whose indices are the columns: -1, or 1 (channels); None when the whole output is one column.
        spread: The standard deviation of the column's values about their mean, over all samples.
        scale: The spread, or the root mean square of a column that is constant.
        rounding: The difference that rounding alone can cause.
    """

    axis: int | None
    spread: Array
    scale: Array
    rounding: Array


@dataclass(frozen=True, slots=True)
class WorstColumn:
    """Column that uses most of its limits.

    Attributes:
        axis: The axis of the columns, or None: see `ColumnScale`.
        index: The index of the column.
        mae: The mean absolute difference of the column.
        scale: As in `ColumnScale`.
        sqnr_db: The scale of the column over the root mean square of its difference, in dB; None without a difference.
        share: The part of its limit that the difference uses; the limit is exceeded above 1.
    """

    axis: int | None
    index: int
    mae: float
    scale: float
    sqnr_db: float | None
    share: float


@dataclass(slots=True)
class Compared:
    """Measures that have a value, the applied limits, the failures, and the worst column of a float output."""

    measures: Measured = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    applied: list[Mapping[str, Any]] = field(default_factory=list)
    worst_column: WorstColumn | None = None

    def judge(self, name: str, measured: float | None, limit: float, failure: str | None) -> None:
        """Add the result of one limit. It is kept when there is no failure."""
        self.applied.append({"name": name, "measured": measured, "limit": limit, "passed": failure is None})
        if failure is not None:
            self.failures.append(failure)


def columns(array: Array, axis: int | None) -> Array:
    """Return an array as (values, columns), where the columns are the indices of `axis`."""
    return array.reshape(-1, 1) if axis is None else np.moveaxis(array, axis, -1).reshape(-1, array.shape[axis])


def root_mean_square(values: Array) -> float:
    """Return the root mean square of float64 values; there must be at least one."""
    largest = float(np.abs(values).max())
    # Scaled first, so that squares neither overflow nor vanish.
    return largest * float(np.sqrt(np.mean((values / largest) ** 2))) if largest else 0.0


def compare_arrays(
    reference: Array,
    candidate: Array,
    limits: Limits,
    scales: Sequence[ColumnScale],
    uncertainty: Array | None = None,
) -> Compared:
    """Compare one output of both sides.

    Without a finite value on either side, or without any value, equal arrays have no measures and no failures.

    Args:
        reference: PyTorch's array.
        candidate: ONNX Runtime's array.
        limits: every field of `OutputLimits`.
        scales: the scales of the output's columns over all samples.
        uncertainty: PyTorch's standard deviations of this output, if another output contains them.

    Returns:
        The result. Its failures are dtype, shape, places of NaN and infinity, and exceeded limits.
    """
    if failures := _structure_failures(reference, candidate):
        return Compared(failures=failures)
    if not reference.size:
        return Compared()
    if reference.dtype.kind in "iub":
        return _compare_exact(reference, candidate, limits)
    wide, other = reference.astype(np.float64), candidate.astype(np.float64)
    failures = _misplaced(wide, other)
    finite = np.isfinite(wide) & np.isfinite(other)
    if not finite.any():
        return Compared(failures=failures)
    # Two finite values can differ by infinity; no limit lets that pass.
    with np.errstate(over="ignore", invalid="ignore"):
        compared = Compared(_measure(wide[finite], other[finite]), failures)
        _judge_measures(compared, limits)
        _judge_tolerance(compared, wide[finite], other[finite], limits)
        difference = np.where(finite, np.abs(wide - other), 0.0)
        for scale in scales:
            if columns(difference, scale.axis).shape[1] != scale.spread.size:
                compared.failures.append(
                    f"has another number of columns than on the other samples, {scale.spread.size}"
                )
                continue
            sqnr_db, worst = _judge_columns(compared, difference, finite, scale, limits)
            ratios = [ratio for ratio in (compared.measures.get("sqnr_db"), sqnr_db) if ratio is not None]
            compared.measures["sqnr_db"] = min(ratios, default=None)
            if compared.worst_column is None or worst.share > compared.worst_column.share:
                compared.worst_column = worst
        if uncertainty is not None:
            _judge_uncertainty(compared, difference, uncertainty, scales, limits["uncertainty_max"])
    return compared


def _misplaced(reference: Array, candidate: Array) -> list[str]:
    """Return a failure for NaN and for each infinity that is not at the same places on both sides."""
    # NaN and infinity at the same places are values of the model.
    kinds = {
        "NaN": (np.isnan(reference), np.isnan(candidate)),
        "+infinity": (np.isposinf(reference), np.isposinf(candidate)),
        "-infinity": (np.isneginf(reference), np.isneginf(candidate)),
    }
    return [
        f"{kind} at {int(there.sum())} places, PyTorch's at {int(here.sum())}; {int((here != there).sum())} differ"
        for kind, (here, there) in kinds.items()
        if (here != there).any()
    ]


def _structure_failures(reference: Array, candidate: Array) -> list[str]:
    failures = []
    if reference.dtype != candidate.dtype:
        failures.append(f"dtype is {candidate.dtype}, PyTorch's is {reference.dtype}")
    if reference.shape != candidate.shape:
        failures.append(f"shape is {list(candidate.shape)}, PyTorch's is {list(reference.shape)}")
    if failures:
        return failures
    return [] if reference.dtype.kind in "fiub" else [f"dtype {reference.dtype} cannot be compared"]


def _compare_exact(reference: Array, candidate: Array, limits: Limits) -> Compared:
    """Compare integers and booleans by their share of equal values: a class index one off is as wrong as any other."""
    equal = reference == candidate
    agreement = float(equal.mean())
    difference = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
    measures: Measured = {
        "mae": float(difference.mean()),
        "max_abs": float(difference.max()),
        "agreement": agreement,
    }
    least = 1.0 if limits["agreement_min"] is None else limits["agreement_min"]
    must = "all must" if least == 1.0 else f"at least {least:.2%} must"
    failure = f"{int((~equal).sum())} of {equal.size} {reference.dtype} values differ, and {must} be equal"
    compared = Compared(measures)
    compared.judge("agreement", agreement, least, None if agreement >= least else failure)
    return compared


def _measure(reference: Array, candidate: Array) -> Measured:
    difference = np.abs(reference - candidate)
    nonzero = reference != 0.0
    return {
        "mae": float(difference.mean()),
        "max_abs": float(difference.max()),
        "max_rel": float((difference[nonzero] / np.abs(reference[nonzero])).max()) if nonzero.any() else None,
        "cosine": _cosine(reference, candidate),
    }


def _judge_columns(
    compared: Compared, difference: Array, finite: Array, scale: ColumnScale, limits: Limits
) -> tuple[float | None, WorstColumn]:
    """Compare the difference of each column with its limits.

    The mean difference of a column must be below `mae_max` times its spread (at least 1). The root mean square of its
    difference, relative to its scale, must be `sqnr_min_db` lower on average over the columns. A single column may be
    `COLUMN_ALLOWANCE_DB` worse. A difference up to the column's rounding passes, unless `mae_max` is below
    its default.

    Returns:
        The signal to noise ratio of all columns in dB, and the worst column.
    """
    count = np.maximum(columns(finite, scale.axis).sum(axis=0), 1)
    values = columns(difference, scale.axis)
    largest = float(values.max()) or 1.0
    mae = values.sum(axis=0) / count
    error = np.sqrt(((values / largest) ** 2).sum(axis=0) / count) * largest if math.isfinite(largest) else mae
    relative = np.divide(error, scale.scale, out=np.zeros_like(error), where=scale.scale > 0)
    shares: list[Array] = []
    kept = True
    if (mae_max := limits["mae_max"]) is not None:
        most = np.maximum(mae_max * np.maximum(1.0, scale.spread), _rounding(mae_max, scale))
        shares.append(used := mae / most)
        index, column = _most_used(used, scale.axis)
        kept = bool(mae[index] < most[index])
        failure = f"MAE {mae[index]:.3g}{column} is not below {_mae_limit(mae_max, scale, index)}"
        compared.judge("mae", float(mae[index]), float(most[index]), None if kept else failure)
    if (sqnr_min_db := limits["sqnr_min_db"]) is not None:
        most = np.maximum(scale.scale * 10 ** ((COLUMN_ALLOWANCE_DB - sqnr_min_db) / 20), scale.rounding)
        # In an output of zeros there is no such ratio; `mae_max` still applies.
        shares.append(used := np.divide(error, most, out=np.zeros_like(error), where=most > 0))
        together = _decibels(1.0, root_mean_square(np.where(error > scale.rounding, relative, 0.0)))
        low = together is not None and not together >= sqnr_min_db
        failure = f"signal to noise ratio {_text(together)} dB is below {sqnr_min_db:g} dB"
        compared.judge("sqnr_db", together, sqnr_min_db, failure if low else None)
        index, column = _most_used(used, scale.axis)
        if kept and not low and not used[index] <= 1.0:
            least_db = sqnr_min_db - COLUMN_ALLOWANCE_DB
            failure = f"difference {error[index]:.3g} (root mean square){column} is above {most[index]:.3g}, "
            failure += f"{least_db:g} dB below its scale"
            compared.judge("column_sqnr_db", _decibels(scale.scale[index], error[index]), least_db, failure)
    share = np.max(shares, axis=0) if shares else np.zeros_like(mae)
    index = int(np.argmax(share if shares else relative))
    worst = WorstColumn(
        axis=scale.axis,
        index=index,
        mae=float(mae[index]),
        scale=float(scale.scale[index]),
        sqnr_db=_decibels(scale.scale[index], error[index]),
        share=float(share[index]),
    )
    return _decibels(1.0, root_mean_square(relative)), worst


def _judge_uncertainty(
    compared: Compared,
    difference: Array,
    uncertainty: Array,
    scales: Sequence[ColumnScale],
    most: float | None,
) -> None:
    """Compare each difference that is more than rounding with the model's own uncertainty of the value."""
    # One deviation for a whole row is as usual as one for each value.
    shape = uncertainty.shape if uncertainty.ndim == difference.ndim else (*uncertainty.shape, 1)
    try:
        deviations = np.broadcast_to(uncertainty.reshape(shape).astype(np.float64), difference.shape)
    except ValueError:
        compared.failures.append(f"its uncertainty has shape {list(uncertainty.shape)}, not {list(difference.shape)}")
        return
    rounding = next((scale.rounding for scale in scales if scale.axis in (-1, None)), np.zeros(1))
    beyond = difference > rounding
    # A difference where the uncertainty is zero or NaN has no finite ratio.
    ratios = np.divide(difference, deviations, out=np.full_like(difference, np.inf), where=deviations > 0)
    ratio = float(ratios[beyond].max()) if beyond.any() else 0.0
    compared.measures["uncertainty_ratio"] = ratio if math.isfinite(ratio) else None
    if most is not None:
        failure = f"largest difference is {ratio:.3g} of the model's own uncertainty, not below {most:g}"
        compared.judge("uncertainty_ratio", ratio, most, None if ratio < most else failure)


def _most_used(share: Array, axis: int | None) -> tuple[int, str]:
    """Return the column that uses most of its limit, with its name for a message. NaN is more than any number."""
    index = int(np.argmax(share))
    kind = "column" if axis == -1 else "channel"
    return index, f" in {kind} {index}" if share.size > 1 else ""


def _rounding(mae_max: float, scale: ColumnScale) -> Array:
    """Return the allowance for rounding; a limit below `MAE_MAX_LITERAL_BELOW` has none."""
    return scale.rounding if mae_max >= MAE_MAX_LITERAL_BELOW else np.zeros_like(scale.rounding)


def _mae_limit(mae_max: float, scale: ColumnScale, index: int) -> str:
    spread, rounding = scale.spread[index], _rounding(mae_max, scale)[index]
    if rounding > mae_max * max(1.0, spread):
        return f"{rounding:.3g}, the rounding of its values"
    return f"{mae_max:g} times its spread {spread:.3g}" if spread > 1.0 else f"{mae_max:g}"


def _decibels(scale: float, error: float) -> float | None:
    """Return the ratio in dB; None when a side is zero. The square of a very large difference is infinite."""
    if error == 0.0 or scale == 0.0:
        return None
    return 20.0 * math.log10(scale / error) if math.isfinite(error) else -math.inf


def _cosine(reference: Array, candidate: Array) -> float | None:
    if np.array_equal(reference, candidate):
        return 1.0
    # Scaled to a largest value of 1 first, so that squares neither overflow nor vanish.
    scales = float(np.abs(reference).max()), float(np.abs(candidate).max())
    if 0.0 in scales:
        return None
    a, b = reference / scales[0], candidate / scales[1]
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))


def _judge_measures(compared: Compared, limits: Limits) -> None:
    """Compare the measures of the whole output with their limits; a missing measure fails its limit."""
    largest, max_abs = compared.measures["max_abs"], limits["max_abs"]
    if max_abs is not None:
        failure = f"largest absolute difference {_text(largest)} is above {max_abs:g}"
        compared.judge("max_abs", largest, max_abs, None if largest is not None and largest <= max_abs else failure)
    cosine, cosine_min = compared.measures["cosine"], limits["cosine_min"]
    if cosine_min is not None:
        failure = f"cosine similarity {_text(cosine)} is below {cosine_min:g}"
        compared.judge("cosine", cosine, cosine_min, None if cosine is not None and cosine >= cosine_min else failure)


def _judge_tolerance(compared: Compared, reference: Array, candidate: Array, limits: Limits) -> None:
    if limits["rtol"] is None and limits["atol"] is None:
        return
    rtol, atol = limits["rtol"] or 0.0, limits["atol"] or 0.0
    difference, allowed = np.abs(reference - candidate), atol + rtol * np.abs(reference)
    within = difference <= allowed
    # Equal values keep a tolerance of zero.
    shares = np.divide(difference, allowed, out=np.where(within, 0.0, np.inf), where=allowed > 0)
    outside = f"{int((~within).sum())} of {within.size} values lie outside"
    failure = f"{outside} atol {atol:g} + rtol {rtol:g} * |PyTorch's|"
    compared.judge("tolerance", float(shares.max()), 1.0, None if within.all() else failure)


def _text(value: float | None) -> str:
    return "has no value and" if value is None else f"{value:.3g}"
