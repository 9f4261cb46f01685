"""The export as one call: a trained model's folder in, an artifact folder out."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from onnx_release.artifact import describe_folder, folder_sha256, fresh_folder
from onnx_release.export import ExportOptions, ExportResult, ModelContract, export_onnx, tool_versions
from onnx_release.limits import EXPORT_BATCH_SIZE
from onnx_release.package import PackageSpec, TrainedPackage, read_trained, write_package
from onnx_release.records import FileDigest, OnnxArtifact
from onnx_release.runners.ort_runner import CPU_PROVIDERS, CUDA_PROVIDERS, cuda_available
from onnx_release.samples import Arrays, make_samples
from onnx_release.source import load_trained


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportStepOptions:
    """As in `ExportOptions`; `allow_pickle` is the deployment's word on pickled models."""

    opset: int | None = None
    device: str = "auto"
    allow_pickle: bool = False


def export_trained(trained: Path, out: Path, options: ExportStepOptions) -> OnnxArtifact:
    """Export the MLflow model in `trained` to the artifact folder `out`, which appears whole or not at all.

    The folder holds ``model.onnx``, its external data, ``MLmodel``, requirements and the input example.

    :raises Refused: when the model cannot be read, loaded or exported; the message names what to change.
    """
    package = read_trained(trained)
    model = load_trained(package, allow_pickle=options.allow_pickle)
    example = _export_example(package)
    contract = ModelContract(inputs=package.inputs, outputs=package.outputs, example=example)
    with fresh_folder(out) as folder:
        result = export_onnx(model, folder, contract, ExportOptions(opset=options.opset, device=options.device))
        versions = tool_versions() | {
            tool: version(tool) for tool in ("mlflow", "numpy", "onnx", "onnxruntime", "onnxscript")
        }
        write_package(
            folder,
            PackageSpec(
                inputs=result.inputs,
                outputs=result.outputs,
                example=example,
                providers=_providers(result),
                tool_versions=versions,
            ),
        )
        files = describe_folder(folder)
    return _artifact(files, result, package, versions)


def _providers(result: ExportResult) -> tuple[str, ...]:
    """Return what a consumer's session asks for: the release tests with the same, so a GPU only where both have it."""
    return CUDA_PROVIDERS if result.device == "cuda" and cuda_available() else CPU_PROVIDERS


def _export_example(package: TrainedPackage) -> Arrays:
    """Return the run's example with exactly the rows that the exporter needs, or a seeded sample without one."""
    samples = make_samples(package.inputs, package.example, (EXPORT_BATCH_SIZE,))
    return next(sample.inputs for sample in samples if sample.batch_size == EXPORT_BATCH_SIZE)


def _artifact(
    files: tuple[FileDigest, ...], result: ExportResult, package: TrainedPackage, versions: dict[str, str]
) -> OnnxArtifact:
    return OnnxArtifact(
        sha256=folder_sha256(files),
        size_bytes=sum(file.size_bytes for file in files),
        files=files,
        opset=result.opset,
        ir_version=result.ir_version,
        inputs=result.inputs,
        outputs=result.outputs,
        exporter=result.exporter,
        source=package.kind,
        device=result.device,
        providers=_providers(result),
        export_batch_size=result.export_batch_size,
        export_wall_s=round(result.wall_s, 3),
        tool_versions=versions,
    )
