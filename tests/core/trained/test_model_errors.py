"""Advice for the errors that a model raises in PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from torch import Tensor, nn

from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from tests.refusals import refused


class Model(nn.Module):
    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(4, 4), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def _in_range(model: Any, x: Tensor) -> Any:
    assert x.min() >= 0, "the image must be positive"
    return model.linear(x)


def _of_size(model: Any, x: Tensor) -> Any:
    if x.shape[1] != 224:
        raise ValueError(f"expected 224 columns, got shape {tuple(x.shape)}")
    return model.linear(x)


F64, F32, NEGATIVE = np.ones((2, 4)), np.ones((2, 4), np.float32), -np.ones((2, 4), np.float32)
INT = np.full((2, 4), 9)


@pytest.mark.parametrize(
    ("function", "array", "code", "parts"),
    [
        (
            lambda m, x: m.linear(x),
            F64,
            "dtype_mismatch",
            ("'x' float64", "weights are float32", "Write the dtype"),
        ),
        (lambda m, x: m.half().linear(x), F32, "dtype_mismatch", ("'x' float32", "the weights are float16")),
        (lambda m, x: nn.functional.conv1d(x[:, None], m.linear.weight[:, None]), F64, "dtype_mismatch", ("float64",)),
        (lambda m, x: m.linear(x), INT, "dtype_mismatch", ("'x' int64",)),
        (_in_range, NEGATIVE, "rejected_values", ("`assert x.min() >= 0", "`low` and `high`", "test_model_errors.py")),
        (lambda m, x: m.linear.weight[x], INT, "rejected_values", ("vocabulary_size",)),
        (_of_size, F32, "model_failed", ("Write -1 in the signature only", "got shape (2, 4)")),
        (lambda m, x: m.linear(x[:, :3]), F32, "model_failed", ("Write -1 in the signature only",)),
        (lambda m, x: m.missing, F32, "model_failed", ("in a shell",)),
        (lambda m, x: nn.BatchNorm1d(4)(x[:1]), F32, "model_failed", ("track_running_stats",)),
    ],
    ids=["double", "half", "convolution", "int", "range", "index", "size", "matrix", "other", "batch norm"],
)
def test_the_advice_fits_the_error(
    function: Callable[[nn.Module, Tensor], Any], array: Any, code: str, parts: tuple[str, ...]
) -> None:
    options = PyTorchOptions(input_names=("x",), output_names=None)
    with PyTorchRunner(Model(function), options) as runner, refused(code, *parts) as refusal:
        runner.run({"x": array})
    assert "dynamic batch" not in str(refusal.value)
