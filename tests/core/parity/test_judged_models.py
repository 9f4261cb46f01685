"""Releases of small models with outputs that are hard to compare: offsets, empty and infinite values, ties, ranges."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnx_release.benchmark.benchmark_model import compare_artifact
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.limits import ParityLimits
from tests.core.judging import Judged, assert_equals_pytorch, judge, log_model, values

MAP_ORIGIN = (432000.0, 5021000.0)


def _released(model: nn.Module, tmp_path: Path, inputs: Any, outputs: Any, example: Any) -> Judged:
    """Release a model, and compare the released file with PyTorch on its own example."""
    trained = log_model(model, tmp_path / "trained", inputs, outputs, example)
    judged = judge(trained, tmp_path / "onnx")
    feed = example if isinstance(example, dict) else {inputs[0][0]: example}
    assert list(judged.run(**feed)) == [name for name, _, _ in outputs]
    assert_equals_pytorch(judged, model, atol=1e-6, **feed)
    return judged


class Located(nn.Module):
    """Map coordinates within `reach` of a distant origin, beside a spread."""

    def __init__(self, reach: float = 10.0) -> None:
        super().__init__()
        self.hidden, self.head, self.reach = nn.Linear(4, 16), nn.Linear(16, 3), reach
        self.register_buffer("origin", torch.tensor(MAP_ORIGIN))

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(torch.tanh(self.hidden(x)))
        return torch.cat([self.origin + self.reach * torch.tanh(y[:, :2]), y[:, 2:].exp()], 1)


def test_a_large_offset_hides_no_error_and_a_right_model_is_released(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model, inputs, outputs, example = (
        Located(),
        [("x", "float32", (-1, 4))],
        [("fix", "float32", (-1, 3))],
        values(4, 4),
    )
    judged = _released(model, tmp_path, inputs, outputs, example)
    assert judged.artifact is not None
    # The same weights within another reach: an error of 2 m where the values are five million.
    model.reach = 12.0
    other = log_model(model, tmp_path / "other", inputs, outputs, example)
    options = BenchmarkOptions(batch_sizes=(1, 5), allow_pickle=True)
    parity = compare_artifact(other, judged.folder, judged.artifact, options)
    assert not parity.passed
    worst = parity.worst_columns()["fix"].worst_column
    assert worst is not None
    assert (worst.axis, worst.index in (0, 1)) == (-1, True)


class Kept(nn.Module):
    """The rows above a threshold; a small batch may have none."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y[y[:, 0] > 0.4]


class Policy(nn.Module):
    """Logits that are -inf for illegal moves."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 6)

    def forward(self, x: Tensor, legal: Tensor) -> Tensor:
        return self.layer(x).masked_fill(~legal, float("-inf"))


class Standardized(nn.Module):
    """Features over their own deviation: on constant inputs, both are rounding."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        hidden = self.layer(image)
        hidden = (hidden - hidden.mean((2, 3), keepdim=True)) / (hidden.std((2, 3), keepdim=True) + 1e-6)
        return hidden.flatten(1).mean(1)


class Peaks(nn.Module):
    """The five best places of a map: all places of a constant image tie."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        scores, places = torch.sigmoid(self.layer(image)).flatten(1).topk(5)
        return scores, places


class Logarithm(nn.Module):
    """A logarithm of inputs that are positive in the example."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.log(x))


LEGAL = np.ones((3, 6), bool)
LEGAL[:, 0] = False
IMAGE = [("image", "float32", (-1, 3, 8, 8))]


@pytest.mark.parametrize(
    ("model", "inputs", "outputs", "example"),
    [
        (Kept, [("x", "float32", (-1, 8))], [("kept", "float32", (-1, 5))], 3 * values(6, 8)),
        (
            Policy,
            [("x", "float32", (-1, 8)), ("legal", "bool", (-1, 6))],
            [("logits", "float32", (-1, 6))],
            {"x": values(3, 8), "legal": LEGAL},
        ),
        (Standardized, IMAGE, [("y", "float32", (-1,))], values(3, 3, 8, 8)),
        (Peaks, IMAGE, [("scores", "float32", (-1, 5)), ("places", "int64", (-1, 5))], values(3, 3, 8, 8)),
        (Logarithm, [("x", "float32", (-1, 8))], [("y", "float32", (-1, 3))], np.abs(values(3, 8)) + 0.1),
    ],
)
def test_a_right_model_is_released_though_invented_inputs_differ(
    model: Callable[[], nn.Module], inputs: Any, outputs: Any, example: Any, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    judged = _released(model(), tmp_path, inputs, outputs, example)
    assert judged.parity is not None
    assert judged.parity.unseen_batch_sizes


class HalfInside(nn.Module):
    """Weights in float16 with float32 inputs and outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3).half()

    def forward(self, row: Tensor) -> Tensor:
        scores: Tensor = self.linear(row.half()).float()
        return scores


def test_outputs_of_half_precision_weights_have_the_limits_of_their_dtype(tmp_path: Path) -> None:
    torch.manual_seed(0)
    row, specs = values(4, 8), ([("row", "float32", (-1, 8))], [("scores", "float32", (-1, 3))])
    model = HalfInside()
    judged = judge(log_model(model, tmp_path / "trained", *specs, row), tmp_path / "out")
    expected = model(torch.from_numpy(row)).detach().numpy()
    np.testing.assert_allclose(judged.run(row=row)["scores"], expected, atol=4e-3)
    own = ParityLimits(per_output={"scores": {"max_abs": 1e-9}})
    assert "largest absolute difference" in judge(tmp_path / "trained", tmp_path / "out", parity_limits=own).text
