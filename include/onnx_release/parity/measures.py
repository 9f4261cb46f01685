"""Measures of two arrays, and the limits on them, in float64.

Values that cannot be compared fail. NaN passes any test of the form ``difference >= limit``, (3, 1) broadcasts against
(1, 3) to a difference of zero, and unsigned integers wrap around.

A reproduction bundle contains a copy of this file, so it imports only numpy. Measures and limits are mappings here;
their fields are those of `records.Measures` and `limits.OutputLimits`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Measured = dict[str, "float | None"]
Limits = Mapping[str, "float | None"]


def root_mean_square(values: Array) -> float:
    """Return the root mean square of float64 values; there must be at least one."""
    largest = float(np.abs(values).max())
    # Scaled first, so that squares neither overflow nor vanish.
    return largest * float(np.sqrt(np.mean((values / largest) ** 2))) if largest else 0.0


def compare_arrays(
    reference: Array, candidate: Array, limits: Limits, scale: float | None = None
) -> tuple[Measured, list[str]]:
    """Compare one output of both sides.

    Args:
        reference: PyTorch's array.
        candidate: ONNX Runtime's array.
        limits: every field of `OutputLimits`.
        scale: the output's largest root mean square over all samples; without it, that of `reference`.

    Returns:
        The measures that have a value, and the failures: dtype, shape, places of NaN and infinity, exceeded limits.
    """
    if failures := _structure_failures(reference, candidate):
        return {}, failures
    if reference.dtype.kind in "iub":
        return _compare_exact(reference, candidate, limits)
    wide, other = reference.astype(np.float64), candidate.astype(np.float64)
    # NaN and infinity at the same places are values of the model.
    kinds = {
        "NaN": (np.isnan(wide), np.isnan(other)),
        "+infinity": (np.isposinf(wide), np.isposinf(other)),
        "-infinity": (np.isneginf(wide), np.isneginf(other)),
    }
    failures = [
        f"{kind} at {int(there.sum())} places, PyTorch's at {int(here.sum())}; {int((here != there).sum())} differ"
        for kind, (here, there) in kinds.items()
        if (here != there).any()
    ]
    finite = np.isfinite(wide) & np.isfinite(other)
    if not finite.any():
        return {}, [*failures, "has no finite value on both sides, so nothing was compared"]
    # Two finite values can differ by infinity; no limit lets that pass.
    with np.errstate(over="ignore", invalid="ignore"):
        measures = _measure(wide[finite], other[finite], scale)
        failures += _limit_failures(measures, limits)
        failures += _tolerance_failures(wide[finite], other[finite], limits)
    return measures, failures


def _structure_failures(reference: Array, candidate: Array) -> list[str]:
    failures = []
    if reference.dtype != candidate.dtype:
        failures.append(f"dtype is {candidate.dtype}, PyTorch's is {reference.dtype}")
    if reference.shape != candidate.shape:
        failures.append(f"shape is {list(candidate.shape)}, PyTorch's is {list(reference.shape)}")
    if failures:
        return failures
    if reference.dtype.kind not in "fiub":
        return [f"dtype {reference.dtype} cannot be compared"]
    if reference.size == 0:
        return [f"has no values (shape {list(reference.shape)}), so nothing was compared"]
    return []


def _compare_exact(reference: Array, candidate: Array, limits: Limits) -> tuple[Measured, list[str]]:
    """Compare integers and booleans by their share of equal values: a class index one off is as wrong as any other."""
    equal = reference == candidate
    agreement = float(equal.mean())
    difference = np.abs(reference.astype(np.float64) - candidate.astype(np.float64))
    measures: Measured = {
        "mae": float(difference.mean()),
        "max_abs": float(difference.max()),
        "agreement": agreement,
    }
    least = limits["agreement_min"]
    if least is not None and agreement >= least:
        return measures, []
    must = "all must" if least in (None, 1.0) else f"at least {least:.2%} must"
    return measures, [f"{int((~equal).sum())} of {equal.size} {reference.dtype} values differ, and {must} be equal"]


def _measure(reference: Array, candidate: Array, scale: float | None) -> Measured:
    difference = np.abs(reference - candidate)
    nonzero = reference != 0.0
    scale = root_mean_square(reference) if scale is None else scale
    error = root_mean_square(difference)
    sqnr_db = None
    if error != 0.0 and scale != 0.0:
        # The square of a very large difference is infinite.
        sqnr_db = 20.0 * math.log10(scale / error) if math.isfinite(error) else -math.inf
    return {
        "mae": float(difference.mean()),
        "max_abs": float(difference.max()),
        "max_rel": float((difference[nonzero] / np.abs(reference[nonzero])).max()) if nonzero.any() else None,
        "cosine": _cosine(reference, candidate),
        "scale": scale,
        "sqnr_db": sqnr_db,
    }


def _cosine(reference: Array, candidate: Array) -> float | None:
    if np.array_equal(reference, candidate):
        return 1.0
    # Scaled to a largest value of 1 first, so that squares neither overflow nor vanish.
    scales = float(np.abs(reference).max()), float(np.abs(candidate).max())
    if 0.0 in scales:
        return None
    a, b = reference / scales[0], candidate / scales[1]
    return float(np.clip(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)), -1.0, 1.0))


def _limit_failures(measures: Measured, limits: Limits) -> list[str]:
    """Compare the measures with the limits; a NaN or a missing measure fails its limit."""
    failures = []
    scale = max(1.0, measures["scale"] or 0.0)
    mae, mae_max = measures["mae"], limits["mae_max"]
    if mae_max is not None and not (mae is not None and mae < mae_max * scale):
        of_scale = f" times the output's scale {scale:.3g}" if scale > 1.0 else ""
        failures.append(f"MAE {_text(mae)} is not below {mae_max:g}{of_scale}")
    largest, max_abs = measures["max_abs"], limits["max_abs"]
    if max_abs is not None and not (largest is not None and largest <= max_abs):
        failures.append(f"largest absolute difference {_text(largest)} is above {max_abs:g}")
    cosine, cosine_min = measures["cosine"], limits["cosine_min"]
    if cosine_min is not None and not (cosine is not None and cosine >= cosine_min):
        failures.append(f"cosine similarity {_text(cosine)} is below {cosine_min:g}")
    # Without a difference, or in an output of zeros, there is no such ratio; `mae_max` still applies.
    sqnr_db, sqnr_min_db = measures["sqnr_db"], limits["sqnr_min_db"]
    if sqnr_min_db is not None and sqnr_db is not None and not sqnr_db >= sqnr_min_db:
        failures.append(f"signal to noise ratio {sqnr_db:.3g} dB is below {sqnr_min_db:g} dB")
    return failures


def _tolerance_failures(reference: Array, candidate: Array, limits: Limits) -> list[str]:
    if limits["rtol"] is None and limits["atol"] is None:
        return []
    rtol, atol = limits["rtol"] or 0.0, limits["atol"] or 0.0
    within = np.abs(reference - candidate) <= atol + rtol * np.abs(reference)
    if within.all():
        return []
    return [f"{int((~within).sum())} of {within.size} values lie outside atol {atol:g} + rtol {rtol:g} * |PyTorch's|"]


def _text(value: float | None) -> str:
    return "has no value and" if value is None else f"{value:.3g}"
