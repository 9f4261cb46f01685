"""Sample beside a released model: its example, and the outputs of ONNX Runtime after the release accepted them.

Another host, or another version of ONNX Runtime, must return the same outputs within the limits of the release.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from onnx_release.errors import SampleRefused
from onnx_release.limits import MODEL_FILE, SAMPLE_FILE, SAMPLE_MAX_BYTES, ParityLimits
from onnx_release.parity.compare_model import run
from onnx_release.parity.compare_outputs import compare_outputs
from onnx_release.records import OnnxArtifact, OutputParity
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.generate import make_samples
from onnx_release.samples.npz_header import read_header
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.mlflow_model import read_example

_INPUT, _OUTPUT = "input:", "output:"
_ACTION = "Remove it, or export the model again."


def write_sample(folder: Path, artifact: OnnxArtifact) -> None:
    """Write `SAMPLE_FILE` into an artifact folder, unless its arrays are too large.

    Args:
        folder: The artifact folder.
        artifact: Its record.
    """
    sample = make_samples(artifact.inputs, read_example(folder), (artifact.export_batch_size,))[0]
    outputs = _run(folder, artifact, sample)
    arrays = {f"{_INPUT}{name}": array for name, array in sample.inputs.items()}
    arrays |= {f"{_OUTPUT}{name}": array for name, array in outputs.items()}
    if sum(array.nbytes for array in arrays.values()) <= SAMPLE_MAX_BYTES:
        with (folder / SAMPLE_FILE).open("wb") as file:
            np.savez(file, allow_pickle=False, **arrays)


def compare_sample(folder: Path, artifact: OnnxArtifact, limits: ParityLimits) -> list[OutputParity] | None:
    """Run the stored inputs, and compare the outputs with the stored ones.

    Args:
        folder: The artifact folder.
        artifact: Its record.
        limits: The limits of the release.

    Returns:
        One comparison for each output; None for a folder without a sample.

    Raises:
        SampleRefused: The sample cannot be read.
        RunnerRefused: ONNX Runtime does not run the model.
    """
    if not (folder / SAMPLE_FILE).is_file():
        return None
    inputs, stored = _read(folder / SAMPLE_FILE)
    sample = Sample(name="stored sample", inputs=inputs, batch_size=artifact.export_batch_size)
    return compare_outputs(stored, _run(folder, artifact, sample), sample, limits)


def _run(folder: Path, artifact: OnnxArtifact, sample: Sample) -> Arrays:
    options = OnnxRuntimeOptions(session_options=artifact.session_options)
    with OnnxRuntimeRunner(folder / MODEL_FILE, options) as runner:
        return run(runner, sample)


def _read(path: Path) -> tuple[Arrays, Arrays]:
    subject = f"The file {SAMPLE_FILE}"
    header = read_header(path, subject, _ACTION)
    size = sum(int(np.prod([int(n) for n in spec.shape])) * np.dtype(spec.dtype).itemsize for spec in header)
    if size > SAMPLE_MAX_BYTES:
        raise SampleRefused(subject, f"has {size} bytes of arrays", _ACTION, code="unreadable_npz")
    with np.load(path, allow_pickle=False) as archive:
        arrays = dict(archive)
    sides = [{n.removeprefix(side): a for n, a in arrays.items() if n.startswith(side)} for side in (_INPUT, _OUTPUT)]
    if not all(sides):
        raise SampleRefused(subject, "has no inputs or no outputs", _ACTION, code="unreadable_npz")
    return sides[0], sides[1]
