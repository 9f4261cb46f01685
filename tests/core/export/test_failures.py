"""Advice of a refused export: it fits the failure, and the cause comes first."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.core.judging import Judged, judge, log_model

ROWS = [("x", "float32", (-1, 8))]
OUT = [("y", "float32", (-1, 8))]
LOOPS = "a loop"


class Model(nn.Module):
    """A linear layer behind a function."""

    def __init__(self, function: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.function = nn.Linear(8, 8), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def _values(*shape: int, dtype: Any = np.float32) -> Any:
    return np.random.default_rng(0).random(shape).astype(dtype)


def _squares(x: Tensor) -> Tensor:
    return x[:, :, None] * x[:, None, :] + torch.eye(8)


def _in_range(model: Any, x: Tensor) -> Any:
    assert bool((x >= 0).all()), "negative"
    return model.linear(x)


def _refused(model: nn.Module, folder: Path, inputs: Any, outputs: Any, example: Any) -> Judged:
    judged = judge(log_model(model, folder / "trained", inputs, outputs, example), folder / "onnx")
    assert not judged.released
    return judged


@pytest.mark.parametrize(
    ("function", "operator"),
    [
        (lambda m, x: torch.linalg.inv(_squares(x)), "linalg_inv"),
        (lambda m, x: torch.linalg.svd(_squares(x))[1], "_linalg_svd"),
        (lambda m, x: nn.functional.adaptive_max_pool2d(_squares(x)[:, None], (5, 3)), "adaptive_max_pool2d"),
    ],
    ids=["inverse", "svd", "adaptive max pooling"],
)
def test_an_operator_that_onnx_lacks_is_named_first(
    function: Callable[[nn.Module, Tensor], Any], operator: str, tmp_path: Path, capfd: Any
) -> None:
    shape = function(Model(function), torch.ones(2, 8)).shape[1:]
    judged = _refused(Model(function), tmp_path, ROWS, [("y", "float32", (-1, *shape))], _values(3, 8))
    assert judged.code == "unsupported_operator"
    assert judged.text.startswith(
        "The model cannot be exported to ONNX: ONNX has no translation of the operator aten::"
    )
    assert operator in judged.text.split(".")[0]
    assert LOOPS not in judged.text
    # The exporter of TorchScript prints the whole graph for such an operator.
    assert "graph(%" not in capfd.readouterr().out


@pytest.mark.parametrize(
    ("function", "code", "part"),
    [
        (lambda m, x: m.linear(x) if x.sum() > 0 else -m.linear(x), "data_dependent", "torch.where"),
        (_in_range, "data_dependent", "Remove the assert"),
        (lambda m, x: torch.stack([m.linear(row) for row in x]), "frozen_batch", "a Python loop over a dimension"),
    ],
    ids=["branch", "assert", "loop over the batch"],
)
def test_code_that_depends_on_values_or_fixes_a_size_is_located(
    function: Callable[[nn.Module, Tensor], Any], code: str, part: str, tmp_path: Path
) -> None:
    judged = _refused(Model(function), tmp_path, ROWS, OUT, _values(3, 8))
    assert judged.code == code, judged.text
    assert "test_failures.py, line" in judged.text.split("Attempts")[0]
    assert part in judged.text


def test_an_output_of_another_dtype_names_the_right_signature_after_one_attempt(tmp_path: Path) -> None:
    judged = _refused(nn.Linear(8, 8), tmp_path, ROWS, [("y", "float64", (-1, 8))], _values(3, 8))
    assert judged.code == "contract_mismatch"
    assert "TensorSpec(np.dtype('float32'), (-1, 8), 'y')" in judged.text
    assert "dynamo-auto" not in judged.text


class ReturnsDict(nn.Module):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"y": x + 1}


def test_a_script_that_returns_a_dict_is_released_or_advised_to_return_tensors(tmp_path: Path) -> None:
    trained = log_model(torch.jit.script(ReturnsDict().eval()), tmp_path / "trained", ROWS, OUT, _values(3, 8))
    judged = judge(trained, tmp_path / "onnx")
    if judged.released:
        x = _values(4, 8)
        np.testing.assert_allclose(judged.run(x=x)["y"], x + 1)
    else:
        assert judged.code == "unsupported_structure"
        assert "a tuple of tensors" in judged.text
        assert LOOPS not in judged.text
