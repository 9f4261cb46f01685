"""Whether a package that came from elsewhere runs: its own example, on ONNX Runtime alone.

Nothing here needs PyTorch, whose import takes longer than the whole test.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onnx_release.artifact.digests import require_bytes
from onnx_release.errors import Refused
from onnx_release.limits import MODEL_FILE
from onnx_release.parity.compare_model import not_finite, run
from onnx_release.records import OnnxArtifact, TensorSpec
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.generate import make_samples
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.mlflow_model import read_example


def smoke_test(folder: Path, artifact: OnnxArtifact) -> None:
    """Hold the folder against `artifact`, and run the package's example on it in ONNX Runtime alone, on the CPU.

    :raises Refused: naming every file that differs, or every output that is missing, too many, not finite, or of
        another dtype or shape than the artifact says.
    """
    require_bytes(folder, artifact)
    sample = make_samples(artifact.inputs, read_example(folder), (artifact.export_batch_size,))[0]
    with OnnxRuntimeRunner(folder / MODEL_FILE, OnnxRuntimeOptions(session_options=artifact.session_options)) as runner:
        outputs = run(runner, sample)
    wrong = [*_misfits(outputs, artifact.outputs, sample), *not_finite(outputs)]
    if wrong:
        raise Refused(
            f"artifact {artifact.sha256} on its {sample.name}",
            "; ".join(wrong),
            "Export the training run again; these bytes are not fit to be served.",
        )


def _misfits(outputs: Arrays, specs: Sequence[TensorSpec], sample: Sample) -> list[str]:
    wanted = {spec.name: spec for spec in specs}
    found = [f"output '{name}' is missing" for name in wanted if name not in outputs]
    found += [f"output '{name}' is not in the artifact's record" for name in outputs if name not in wanted]
    for name, array in outputs.items():
        spec = wanted.get(name)
        if spec is not None and array.dtype.name != spec.dtype:
            found.append(f"output '{name}' is {array.dtype}, not {spec.dtype}")
        if spec is not None and not _fits(array.shape, spec, sample.batch_size):
            found.append(f"output '{name}' is of shape {list(array.shape)}, not {list(spec.shape)}")
    return found


def _fits(shape: tuple[int, ...], spec: TensorSpec, batch_size: int) -> bool:
    return len(shape) == len(spec.shape) and all(
        size == batch_size if wanted == "batch" else isinstance(wanted, str) or size == wanted
        for size, wanted in zip(shape, spec.shape, strict=True)
    )
