"""How far one intermediate value is from PyTorch's, and from where on that is no rounding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.parity.measures import root_mean_square

Array = npt.NDArray[Any]

# One node that is given PyTorch's own inputs. Measured over the test zoo's models: a faithful float32 node stays below
# 1e-6; sums of thousands of terms may reach ten times that. Half precision rounds each result to 1e-3 of itself.
# Integers and booleans must be equal.
NODE_ERROR_MAX = {"float16": 2e-2, "float32": 2e-5, "float64": 1e-10}
# The whole graph, where the rounding of all nodes adds up.
GRAPH_ERROR_MAX = {"float16": 5e-2, "float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """One value on both sides.

    `error` is the largest difference in units of the value's own size: ``|a - b| / (scale + |b|)`` with b PyTorch's
    value and `scale` the root mean square of all of them; infinite when the two cannot be compared, and `problem`
    then says why. `mae` and `max_abs` are in the value's own unit, over what is finite on both sides.
    """

    dtype: str
    error: float
    mae: float | None = None
    max_abs: float | None = None
    scale: float | None = None
    problem: str = ""

    def beyond(self, limits: dict[str, float]) -> bool:
        """Say whether this is more than rounding; integers and booleans have no rounding."""
        return not self.error <= limits.get(self.dtype, 0.0)


def distance(reference: Array, candidate: Array) -> Distance:
    """Measure ONNX Runtime's value against PyTorch's."""
    dtype = reference.dtype.name
    if problem := _misfit(reference, candidate):
        return Distance(dtype=dtype, error=float("inf"), problem=problem)
    wide, other = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(other)
    # NaN is no number equal to itself; a mask's infinities are values like any other.
    special = (wide != other) & ~(np.isnan(wide) & np.isnan(other)) & ~finite
    if special.any():
        problem = f"{int(special.sum())} of {special.size} places hold NaN or infinity on one side alone"
    wide, other = wide[finite], other[finite]
    if not wide.size:
        return Distance(dtype=dtype, error=float("inf") if problem else 0.0, problem=problem)
    return _measured(wide, other, dtype, problem)


def _misfit(reference: Array, candidate: Array) -> str:
    if reference.dtype != candidate.dtype:
        return f"it is {candidate.dtype}, PyTorch's is {reference.dtype}"
    if reference.shape != candidate.shape:
        return f"it is of shape {list(candidate.shape)}, PyTorch's of {list(reference.shape)}"
    return ""


def _measured(reference: Array, candidate: Array, dtype: str, problem: str) -> Distance:
    difference = np.abs(reference - candidate)
    scale = root_mean_square(reference)
    relative = float((difference / (scale + np.abs(reference) + _floor(dtype))).max())
    return Distance(
        dtype=dtype,
        error=float("inf") if problem else relative,
        mae=float(difference.mean()),
        max_abs=float(difference.max()),
        scale=scale,
        problem=problem,
    )


def _floor(dtype: str) -> float:
    """Return what counts as nothing: a value that is zero throughout has no scale to measure by."""
    return 0.1 * float(np.finfo(dtype).eps) if dtype.startswith("float") else 1e-300
