"""Checks before the export: all faults in one refusal, and modules whose mode is their own behaviour."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from tests.core.judging import judge, log_model
from tests.core.models import save, signature

IMAGE = [("image", "float32", (-1, 3, 8, 8))]


def _image(batch: int) -> Any:
    return np.random.default_rng(2).standard_normal((batch, 3, 8, 8)).astype(np.float32)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.dropout, self.linear = nn.Embedding(9, 4), nn.Dropout(0.5), nn.Linear(20, 2)

    def forward(self, tokens: Tensor) -> Tensor:
        result: Tensor = self.linear(self.dropout(self.embedding(tokens)).flatten(1))
        return result


def test_all_faults_are_listed_with_the_models_own_signature(tmp_path: Path) -> None:
    model = Words().train()
    with torch.no_grad():
        model.linear.bias[0] = torch.nan
    program = torch.export.export(model, (torch.zeros(1, 5, dtype=torch.int64),))
    trained = log_model(
        Words(), tmp_path / "t", [("tokens", "int64", (-1, 5))], None, np.zeros((1, 5), int), form="pt2"
    )
    torch.export.save(program, trained / "data" / "model.pt2")
    judged = judge(trained, tmp_path / "onnx")
    assert judged.code == "nan_weights"
    for part in (
        "has 3 faults",
        "linear.bias has 1 of 2",
        "training mode: dropout",
        "'batch' (dimension 0) frozen at 1",
    ):
        assert part in judged.text
    for part in ("model.eval()", "TensorSpec(np.dtype('int64'), (-1, 5), 'tokens')", "does not describe the outputs"):
        assert part in judged.text
    assert "image" not in judged.text
    assert judged.text.count("model_failed") == 0


def test_a_batch_norm_without_statistics_is_released_with_a_warning(tmp_path: Path) -> None:
    for form in ("pickle", "pt2"):
        model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.BatchNorm2d(2, track_running_stats=False)).eval()
        trained = log_model(model, tmp_path / form, IMAGE, [("y", "float32", (-1, 2, 6, 6))], _image(3), form=form)
        judged = judge(trained, tmp_path / f"{form}-onnx")
        for batch in (1, 4):
            expected = model(torch.from_numpy(_image(batch))).detach().numpy()
            np.testing.assert_allclose(judged.run(image=_image(batch))["y"], expected, atol=1e-5)
        assert judged.artifact is not None
        assert "batch_statistics" in [finding.code for finding in judged.artifact.findings]


def test_a_batch_norm_that_is_forced_into_training_mode_is_refused_with_its_own_advice(tmp_path: Path) -> None:
    class Forced(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm2d(3)

        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.batch_norm(image, self.norm.running_mean, self.norm.running_var, training=True)

    trained = log_model(Forced(), tmp_path / "t", IMAGE, [("y", "float32", (-1, 3, 8, 8))], _image(3))
    judged = judge(trained, tmp_path / "onnx")
    assert judged.code == "train_mode"
    assert all(part in judged.text for part in ("stays in training mode", "training=self.training")), judged.text


def test_a_pickle_in_training_mode_runs_in_evaluation_mode_with_a_warning(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.Dropout(0.5)).train()
    spec = signature(inputs={"image": (-1, 3, 8, 8)}, outputs={"y": (-1, 2, 6, 6)})
    trained = save(model, tmp_path / "t", signature=spec, input_example=_image(2), serialization_format="pickle")
    judged = judge(trained, tmp_path / "onnx")
    expected = model.eval()(torch.from_numpy(_image(3))).detach().numpy()
    np.testing.assert_allclose(judged.run(image=_image(3))["y"], expected, atol=1e-5)
    assert judged.artifact is not None
    assert "logged_in_training" in [finding.code for finding in judged.artifact.findings]
