"""What a release's export costs beside the bare exporter."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench.results import Result
from bench.speed import INPUTS, OUTPUTS, contract, reference_model
from onnx_release.export import ExportOptions, export_onnx
from onnx_release.limits import EXPORT_BATCH_SIZE, MODEL_FILE
from onnx_release.strategies import quiet_exporter

_PAIRS = 3
_GOAL = 1.25


def export_wall_ratio() -> Result:
    """Wall time of `export_onnx` over that of `torch.onnx.export`, by turns, after one of each that is not counted."""
    model = reference_model()
    _timed(_ours, model)
    _timed(_bare, model)
    pairs = []
    for pair in range(_PAIRS):
        order = (_ours, _bare) if pair % 2 == 0 else (_bare, _ours)
        taken = {export: _timed(export, model) for export in order}
        pairs.append((taken[_ours], taken[_bare]))
    ratios = [ours / bare for ours, bare in pairs]
    value = statistics.median(ratios)
    return Result(
        name="export_wall_ratio",
        value=value,
        unit="x",
        goal=f"<= {_GOAL:g}",
        met=value <= _GOAL,
        n=_PAIRS,
        spread=(min(ratios), max(ratios)),
        detail={"ours_s": [ours for ours, _ in pairs], "bare_s": [bare for _, bare in pairs]},
    )


def _timed(export: Callable[[torch.nn.Module, Path], None], model: torch.nn.Module) -> float:
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, quiet_exporter():
        begin = time.perf_counter()
        export(model, Path(folder))
        return time.perf_counter() - begin


def _ours(model: torch.nn.Module, folder: Path) -> None:
    export_onnx(model, folder, contract(), ExportOptions(device="cpu"))


def _bare(model: torch.nn.Module, folder: Path) -> None:
    torch.onnx.export(
        model,
        (torch.randn(EXPORT_BATCH_SIZE, 3, 128, 32),),
        folder / MODEL_FILE,
        input_names=[spec.name for spec in INPUTS],
        output_names=[spec.name for spec in OUTPUTS],
        dynamic_shapes=({0: torch.export.Dim("batch")},),
        dynamo=True,
        verbose=False,
    )
