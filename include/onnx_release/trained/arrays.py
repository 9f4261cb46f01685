"""Named arrays: the inputs or outputs of one model call."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt

Arrays = dict[str, npt.NDArray[Any]]
"""Arrays by the name of the model's input or output."""
