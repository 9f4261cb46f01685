"""Release of a small model by the core alone: saved, exported, checked and compared with PyTorch."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from mlflow import pytorch as mlflow_pytorch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from onnx_release.benchmark.benchmark_model import compare_artifact
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.check.static_checks import CheckOptions, check_artifact
from onnx_release.errors import Refused
from onnx_release.export.export_model import ExportStepOptions, export_trained
from onnx_release.records import OnnxArtifact, ParityReport
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.trained.model_factory import FactoryOptions

Specs = Sequence[tuple[str | None, str, tuple[int, ...]]]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """The end of a release in the core.

    Attributes:
        text: Every reason against the model; empty for a released one.
        code: The code of the refusal, or of the first failed check; None for a released model or failed parity.
        folder: The artifact folder.
        artifact: The record of the artifact; None when the export was refused.
        parity: The comparison; None when the export was refused.
    """

    text: str
    code: str | None
    folder: Path
    artifact: OnnxArtifact | None = None
    parity: ParityReport | None = None

    @property
    def released(self) -> bool:
        """True for a model that passed every check and comparison."""
        return not self.text

    def run(self, **feed: npt.NDArray[Any]) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs of the released file for inputs by name."""
        assert self.released, self.text
        with OnnxRuntimeRunner(self.folder / "model.onnx", OnnxRuntimeOptions()) as session:
            return dict(session.run(feed))


def values(*shape: int, seed: int = 0) -> npt.NDArray[np.float32]:
    """Return standard normal values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_equals_pytorch(judged: Judged, model: torch.nn.Module, *, atol: float = 1e-5, **feed: Any) -> None:
    """Compare the released file with PyTorch, output by output, on inputs in the order of `forward`."""
    outputs = judged.run(**feed)
    with torch.inference_mode():
        expected = model(*(torch.from_numpy(array) for array in feed.values()))
    expected = expected if isinstance(expected, tuple) else (expected,)
    assert len(outputs) == len(expected)
    for output, tensor in zip(outputs.values(), expected, strict=True):
        np.testing.assert_allclose(output, tensor.numpy(), rtol=1e-5, atol=atol)


def log_model(
    model: torch.nn.Module, path: Path, inputs: Specs, outputs: Specs | None, example: Any, *, form: str = "pickle"
) -> Path:
    """Save a model as a training script does. `inputs` and `outputs` are (name, dtype, shape); None for no schema."""

    def schema(specs: Specs) -> Schema:
        return Schema([TensorSpec(np.dtype(dtype), shape, name) for name, dtype, shape in specs])

    mlflow_pytorch.save_model(
        model.eval(),
        path,
        signature=ModelSignature(inputs=schema(inputs), outputs=schema(outputs) if outputs else None),
        pip_requirements=["torch"],
        serialization_format=form,
        input_example=example,
    )
    return path


def judge(
    trained: Path,
    out: Path,
    *,
    factory: str = "",
    input_spec: Any = None,
    allow_pickle: bool = True,
    batch_sizes: tuple[int, ...] = (1, 5),
    **more: Any,
) -> Judged:
    """Export, check and compare a trained model as a release does, without a measurement.

    Args:
        trained: The folder of an MLflow model, or a file of a model or of weights.
        out: The artifact folder to write.
        factory: ``package.module:name``; its package is allowed.
        input_spec: The description of the inputs, as a list.
        allow_pickle: True to allow pickles.
        batch_sizes: The batch sizes to compare.
        more: Further options of the comparison (`BenchmarkOptions`).
    """
    made = FactoryOptions(path=factory, allowed=(factory.partition(":")[0],)) if factory else None
    spec = json.dumps(input_spec) if input_spec else None
    try:
        options = ExportStepOptions(device="cpu", allow_pickle=allow_pickle, factory=made, input_spec=spec)
        artifact = export_trained(trained, out, options)
        errors = [f for f in check_artifact(out, artifact, CheckOptions()).findings if f.severity == "error"]
        comparison = BenchmarkOptions(
            batch_sizes=batch_sizes, allow_pickle=allow_pickle, factory=made, input_spec=spec, **more
        )
        parity = compare_artifact(trained, out, artifact, comparison)
    except Refused as refusal:
        return Judged(text=str(refusal), code=refusal.code, folder=out)
    return Judged(
        text="; ".join([*(finding.message for finding in errors), *parity.failures]),
        code=errors[0].code if errors else None,
        folder=out,
        artifact=artifact,
        parity=parity,
    )
