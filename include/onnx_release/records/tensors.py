"""Names, dtypes and shapes of tensors."""

from __future__ import annotations

from onnx_release.records.base import Record


class TensorSpec(Record):
    """A named tensor of a model: dtype in numpy's words, shape with a string for each dimension that may vary.

    The first varying dimension of a tensor is ``batch`` unless the model says otherwise.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
