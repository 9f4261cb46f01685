"""Error of one intermediate value, and the limits of rounding."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnx_release.parity.measures import root_mean_square

Array = npt.NDArray[Any]

# Limits for one node on PyTorch's inputs. Measured on the test zoo: a correct float32 node stays below 1e-6, and a sum
# of thousands of terms below ten times that. Half precision rounds each result to 1e-3 of its value. Integers and
# booleans must be equal.
NODE_ERROR_MAX = {"float16": 2e-2, "float32": 2e-5, "float64": 1e-10}
# Limits for the whole graph, in which the rounding of all nodes adds up.
GRAPH_ERROR_MAX = {"float16": 5e-2, "float32": 1e-4, "float64": 1e-9}


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """Difference of one value on both sides.

    Attributes:
        dtype: PyTorch's dtype.
        error: The largest of ``|a - b| / (scale + |b|)``, with b PyTorch's elements; infinite when the arrays cannot
            be compared.
        mae: The mean absolute difference of the elements that are finite on both sides.
        max_abs: The largest absolute difference of these elements.
        scale: The root mean square of PyTorch's elements.
        problem: The reason why the arrays cannot be compared, else empty.
    """

    dtype: str
    error: float
    mae: float | None = None
    max_abs: float | None = None
    scale: float | None = None
    problem: str = ""

    def beyond(self, limits: dict[str, float]) -> bool:
        """Return True when the error is more than rounding. Integers and booleans have no rounding."""
        return not self.error <= limits.get(self.dtype, 0.0)


def distance(reference: Array, candidate: Array, *, of: str = "PyTorch's") -> Distance:
    """Compare ONNX Runtime's array with the reference.

    Args:
        reference: The array of the reference.
        candidate: The array of ONNX Runtime.
        of: The owner of the reference, for messages.
    """
    dtype = reference.dtype.name
    if reference.dtype != candidate.dtype:
        problem = f"its dtype is {candidate.dtype}, {of} is {dtype}"
        return Distance(dtype=dtype, error=math.inf, problem=problem)
    if reference.shape != candidate.shape:
        problem = f"its shape is {list(candidate.shape)}, {of} is {list(reference.shape)}"
        return Distance(dtype=dtype, error=math.inf, problem=problem)
    wide, other = reference.astype(np.float64), candidate.astype(np.float64)
    finite = np.isfinite(wide) & np.isfinite(other)
    # NaN differs from itself. The infinities of a mask are ordinary values.
    special = (wide != other) & ~(np.isnan(wide) & np.isnan(other)) & ~finite
    problem = f"{int(special.sum())} of {special.size} elements are NaN or infinity on only one side"
    problem = problem if special.any() else ""
    wide, other = wide[finite], other[finite]
    if not wide.size:
        return Distance(dtype=dtype, error=math.inf if problem else 0.0, problem=problem)
    difference = np.abs(wide - other)
    scale = root_mean_square(wide)
    # An array of zeros has no scale, so this keeps the quotient finite.
    floor = 0.1 * float(np.finfo(dtype).eps) if dtype.startswith("float") else 1e-300
    return Distance(
        dtype=dtype,
        error=math.inf if problem else float((difference / (scale + np.abs(wide) + floor)).max()),
        mae=float(difference.mean()),
        max_abs=float(difference.max()),
        scale=scale,
        problem=problem,
    )
