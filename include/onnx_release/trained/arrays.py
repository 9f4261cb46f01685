"""Named arrays: the inputs or outputs of one model call."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
"""Arrays by the name of the model's input or output."""


def describe_arrays(arrays: Arrays) -> str:
    """Return names, dtypes and shapes for a message, such as ``x float32 [2, 3], mask bool [2]``."""
    return ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in arrays.items())
