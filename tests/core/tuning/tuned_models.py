"""A model for tunings: linear layers with a layer scale after them, and a small head."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.export.export_model import ExportStepOptions, export_trained
from onnx_release.latency.rounds import Block, Round
from onnx_release.limits import MODEL_FILE, LatencyBudget, MeasurePlan
from onnx_release.records import OnnxArtifact
from onnx_release.runners import Runner
from onnx_release.runners.onnxruntime import OnnxRuntimeRunner
from onnx_release.samples.sample import Sample
from tests.core.models import save, signature

WIDTH = 64
QUICK = MeasurePlan(rounds_min=10, measure_min_s=0.1, measure_max_s=1.0)
BENCHMARK = BenchmarkOptions(batch_sizes=(1, 4), latency_budget=LatencyBudget(on_miss="warn"), measure_plan=QUICK)


class Scaled(nn.Module):
    """(B, 4, 64) to (B, 3); seeded."""

    def __init__(self, hidden: int = 256) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.expand, self.contract = nn.Linear(WIDTH, hidden), nn.Linear(hidden, WIDTH)
        self.layer_scale = nn.Parameter(torch.empty(WIDTH))
        self.head, self.last = nn.Linear(WIDTH, 16), nn.Linear(16, 3)
        for tensor in self.parameters():
            nn.init.normal_(tensor, std=tensor.shape[-1] ** -0.5, generator=generator)
        nn.init.uniform_(self.layer_scale, 0.5, 2.0, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        branch = self.contract(nn.functional.gelu(self.expand(x))) * self.layer_scale
        result: Tensor = self.last(torch.relu(self.head((x + branch).mean(dim=1))))
        return result


def rows(count: int, seed: int = 1) -> np.ndarray[tuple[int, int, int], np.dtype[np.float32]]:
    return np.random.default_rng(seed).standard_normal((count, 4, WIDTH)).astype(np.float32)


def export(folder: Path, model: nn.Module | None = None) -> tuple[Path, Path, OnnxArtifact]:
    """Return the trained model's folder, the artifact's, and its record."""
    trained = save(
        (model or Scaled()).eval(),
        folder / "trained",
        signature=signature({"x": (-1, 4, WIDTH)}, {"y": (-1, 3)}),
        input_example=rows(4),
    )
    artifact = export_trained(trained, folder / "artifact", ExportStepOptions(device="cpu"))
    return trained, folder / "artifact", artifact


def time_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the clock of a race: a call takes 1 ms per MB of the model's files, and PyTorch's takes 1 s.

    The models run, but the choice among them depends on no speed of this machine.
    """

    def call_s(runner: Runner) -> float:
        if not isinstance(runner, OnnxRuntimeRunner):
            return 1.0
        return sum(file.stat().st_size for file in runner._path.parent.glob(f"{MODEL_FILE}*")) / 1e9

    def run_round(runners: Sequence[Runner], sample: Sample, calls: Sequence[int], first: int) -> Round:
        for runner in runners:
            runner.run(sample.inputs)
        times = [(call_s(runner), count) for runner, count in zip(runners, calls, strict=True)]
        blocks = tuple(Block(wall_s=(one,) * count, cpu_s=one) for one, count in times)
        return Round(blocks=blocks, cpu_wait_share=0.0)

    monkeypatch.setattr("onnx_release.tuning.race.run_round", run_round)
