"""Smoke test of an artifact folder: its own example in ONNX Runtime.

This module does not import PyTorch, whose import takes longer than the test.
"""

from __future__ import annotations

from pathlib import Path

from onnx_release.artifact.digests import require_bytes
from onnx_release.errors import CheckRefused
from onnx_release.limits import MODEL_FILE
from onnx_release.parity.compare_model import only_nan, run
from onnx_release.records import OnnxArtifact, TensorSpec
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.dimensions import sizes_of
from onnx_release.samples.generate import make_samples
from onnx_release.trained.mlflow_model import read_example


def smoke_test(folder: Path, artifact: OnnxArtifact) -> None:
    """Compare a folder with its record, and run its example in ONNX Runtime on the CPU.

    Args:
        folder: The artifact folder, which is only read.
        artifact: The record of the artifact.

    Raises:
        ArtifactRefused: A file differs from the record.
        RunnerRefused: ONNX Runtime does not run the model.
        CheckRefused: An output is missing or unknown, is NaN everywhere, or has another dtype or shape than recorded.
    """
    require_bytes(folder, artifact)
    with OnnxRuntimeRunner(folder / MODEL_FILE, OnnxRuntimeOptions(session_options=artifact.session_options)) as runner:
        run_example(runner, folder, artifact)


def run_example(runner: OnnxRuntimeRunner, folder: Path, artifact: OnnxArtifact) -> None:
    """Run the example of a folder whose files were compared with its record; see `smoke_test`.

    Args:
        runner: The open model of the folder.
        folder: The artifact folder.
        artifact: The record of the artifact.
    """
    sample = make_samples(artifact.inputs, read_example(folder), (artifact.export_batch_size,))[0]
    outputs = run(runner, sample)
    specs = {spec.name: spec for spec in artifact.outputs}
    problems = [f"output '{name}' is missing" for name in specs if name not in outputs]
    problems += [f"output '{name}' is not in the record" for name in outputs if name not in specs]
    for name in outputs.keys() & specs.keys():
        found = TensorSpec(name=name, dtype=outputs[name].dtype.name, shape=outputs[name].shape)
        mismatches = specs[name].mismatches(found, sizes=sizes_of(artifact.inputs, sample.inputs))
        problems += [f"output '{name}' {mismatch}" for mismatch in mismatches]
    problems += only_nan(outputs)
    if problems:
        raise CheckRefused(
            f"The artifact {artifact.sha256}",
            f"fails on its example: {'; '.join(problems)}",
            "Export the training run again. These bytes must not be served.",
            code="smoke_test",
        )
