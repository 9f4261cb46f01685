"""``nn.RNN`` with a varying length: exported as ONNX's operator, with PyTorch's values at every length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from tests.core.judging import judge, log_model


class Recurrent(nn.Module):
    def __init__(self, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.inner = nn.RNN(4, 3, **options)

    def forward(self, x: Tensor) -> Any:
        outputs, hidden = self.inner(x)
        return outputs, hidden.transpose(0, 1)


@pytest.mark.parametrize(
    "options",
    [
        {"batch_first": True},
        {"batch_first": True, "nonlinearity": "relu", "bidirectional": True, "num_layers": 2, "bias": False},
        {"batch_first": True, "bidirectional": True},
    ],
    ids=["tanh", "relu, two layers, both directions, no bias", "both directions"],
)
def test_an_rnn_is_exported_with_a_varying_length(options: dict[str, Any], tmp_path: Path) -> None:
    model = Recurrent(**options).eval()
    directions = 2 if options.get("bidirectional") else 1
    states = directions * options.get("num_layers", 1)
    outputs = [("y", "float32", (-1, -1, 3 * directions)), ("h", "float32", (-1, states, 3))]
    x = np.random.default_rng(0).standard_normal((3, 6, 4)).astype(np.float32)
    judged = judge(
        log_model(model, tmp_path / "trained", [("x", "float32", (-1, -1, 4))], outputs, x), tmp_path / "out"
    )
    for length in (1, 5, 19):
        x = np.random.default_rng(length).standard_normal((2, length, 4)).astype(np.float32)
        expected = model(torch.from_numpy(x))
        got = judged.run(x=x)
        for name, values in zip(("y", "h"), expected, strict=True):
            np.testing.assert_allclose(got[name], values.detach().numpy(), atol=1e-5)
    graph = onnx.load(tmp_path / "out" / "model.onnx", load_external_data=False).graph
    assert [node.op_type for node in graph.node].count("RNN") == options.get("num_layers", 1)


def test_a_pt2_program_with_a_fixed_length_is_advised_to_be_logged_otherwise(tmp_path: Path) -> None:
    outputs = [("y", "float32", (-1, -1, 3)), ("h", "float32", (-1, 1, 3))]
    x = np.ones((3, 6, 4), np.float32)
    spec = [("x", "float32", (-1, -1, 4))]
    trained = log_model(Recurrent(batch_first=True), tmp_path / "trained", spec, outputs, x, form="pt2")
    judged = judge(trained, tmp_path / "out")
    assert judged.code == "frozen_dimension"
    assert "serialization_format='pickle'" in judged.text


def test_a_loop_over_rnn_cells_is_refused_as_a_loop(tmp_path: Path) -> None:
    class Cells(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.cell = nn.RNNCell(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            hidden = x.new_zeros(x.shape[0], 3)
            for step in range(x.shape[1]):
                hidden = self.cell(x[:, step], hidden)
            return hidden

    spec, x = [("x", "float32", (-1, -1, 4))], np.ones((3, 6, 4), np.float32)
    judged = judge(log_model(Cells(), tmp_path / "trained", spec, [("y", "float32", (-1, 3))], x), tmp_path / "out")
    assert judged.code == "frozen_dimension", judged.text
    assert "nn.GRU" in judged.text
