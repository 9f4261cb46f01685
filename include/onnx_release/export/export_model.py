"""The export as one call: a trained model in, an artifact folder out."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx_release.artifact.digests import Digests, describe_folder, folder_sha256, fresh_folder
from onnx_release.artifact.mlflow_package import PackageSpec, write_package
from onnx_release.export import diagnostics
from onnx_release.export.fallback import ExportOptions, ExportResult, export_onnx, require_exportable, tool_versions
from onnx_release.export.strategies import ModelContract
from onnx_release.export.verify import ExportVerifier
from onnx_release.limits import EXPORT_BATCH_SIZE, EXTERNAL_DATA_FILE, VARYING_DIMENSION_SIZE
from onnx_release.records import FileDigest, Finding, OnnxArtifact
from onnx_release.records.base import Record
from onnx_release.runners.onnxruntime import CPU_PROVIDERS, CUDA_PROVIDERS, cuda_available
from onnx_release.runners.pytorch import PyTorchOptions
from onnx_release.samples.generate import batch_names, make_samples, seeded_arrays, varying_sizes
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_spec import parse_input_spec
from onnx_release.trained.load import LoadedModel, load_trained
from onnx_release.trained.mlflow_model import TrainedPackage, read_trained
from onnx_release.trained.model_factory import FactoryOptions


class ExportStepOptions(Record):
    """As in `ExportOptions`; `allow_pickle` is the deployment's word on the training runs' own code.

    `factory` makes the model that a state dict belongs to, and `input_spec` describes the inputs (see `InputSpec`).
    """

    opset: int | None = None
    device: str = "auto"
    allow_pickle: bool = False
    factory: FactoryOptions | None = None
    input_spec: Any = None


def export_trained(trained: Path, out: Path, options: ExportStepOptions) -> OnnxArtifact:
    """Export the trained model to the artifact folder `out`, which appears whole or not at all.

    The folder holds ``model.onnx``, its external data, ``MLmodel``, requirements and the input example.

    :param trained: the folder of an MLflow model, or a file of a model or of weights.
    :raises Refused: when the model cannot be read, loaded or exported; the message names what to change.
    """
    package = read_trained(trained, parse_input_spec(options.input_spec))
    model = load_trained(package, allow_pickle=options.allow_pickle, factory=options.factory)
    contract = contract_of(package)
    require_exportable(model, contract)
    probe = ExportVerifier(model, torch_options(package), contract)
    contract = dataclasses.replace(contract, output_names=probe.output_names, output_axes=probe.output_axes())
    with fresh_folder(out) as folder, probe:
        to_write, digests = ExportOptions(opset=options.opset, device=options.device), Digests()
        result = export_onnx(model, folder, contract, to_write, partial(_probed, probe, digests))
        versions = tool_versions() | {
            tool: version(tool) for tool in ("mlflow", "numpy", "onnx", "onnxruntime", "onnxscript")
        }
        write_package(
            folder,
            PackageSpec(
                inputs=result.inputs,
                outputs=result.outputs,
                example=contract.example,
                providers=_providers(result),
                tool_versions=versions,
            ),
        )
        files = describe_folder(folder, digests)
        stamps = digests.stamps(folder, files)
    artifact = _artifact(files, result, package, versions).replace(stamps=stamps)
    return artifact.replace(findings=tuple(_findings(package, model, result)))


def _probed(probe: ExportVerifier, digests: Digests, folder: Path, result: ExportResult) -> str:
    """Run the probe, which waits for another process, and read the weights for their digests meanwhile."""
    weights = folder / EXTERNAL_DATA_FILE
    takes = (digests.take, digests.take_etag) if weights.exists() else ()
    with ThreadPoolExecutor(2) as beside:
        taken = [beside.submit(take, weights) for take in takes]
        unfit = probe(folder, result)
        for one in taken:
            one.result()
    return unfit


def contract_of(package: TrainedPackage) -> ModelContract:
    """Return what the model takes and gives, and the sample that it is traced with."""
    return ModelContract(
        inputs=package.inputs, outputs=package.outputs, example=_export_example(package), ranges=package.ranges
    )


def torch_options(package: TrainedPackage) -> PyTorchOptions:
    """Return how PyTorch's side of this model is run on the CPU."""
    return PyTorchOptions(
        input_names=tuple(spec.name for spec in package.inputs),
        output_names=tuple(spec.name for spec in package.outputs) or None,
    )


def _export_example(package: TrainedPackage) -> Arrays:
    """Return the run's example with exactly the rows that the exporter needs, or a seeded sample.

    Where another dimension that varies has a size of 1 in the example, torch would take it for a constant.
    """
    sizes = varying_sizes(package.inputs, package.example)
    batches = batch_names(package.inputs)
    short = {name: VARYING_DIMENSION_SIZE for name, size in sizes.items() if size < 2 and name not in batches}
    samples = make_samples(package.inputs, package.example, (EXPORT_BATCH_SIZE,), package.ranges)
    if short:
        sizes |= short | dict.fromkeys(batches, EXPORT_BATCH_SIZE)
        return seeded_arrays(package.inputs, sizes, 0, package.example, package.ranges)
    return next(sample.inputs for sample in samples if sample.batch_size == EXPORT_BATCH_SIZE)


def _findings(package: TrainedPackage, model: LoadedModel, result: ExportResult) -> list[Finding]:
    return [*diagnostics.of_source(package, model), *diagnostics.of_export(result)]


def _providers(result: ExportResult) -> tuple[str, ...]:
    """Return what a consumer's session asks for: the release tests with the same, so a GPU only where both have it."""
    return CUDA_PROVIDERS if result.device == "cuda" and cuda_available() else CPU_PROVIDERS


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
        strategy=result.strategy,
        trained_format=package.kind,
        device=result.device,
        providers=_providers(result),
        export_batch_size=result.export_batch_size,
        export_wall_s=round(result.wall_s, 3),
        tool_versions=versions,
        attempts=result.attempts,
    )
