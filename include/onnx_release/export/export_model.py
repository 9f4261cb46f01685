"""Export step: reads a trained model and writes an artifact folder."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from pathlib import Path
from typing import Any

from onnx_release import limits
from onnx_release.artifact.digests import describe_file, describe_folder, folder_sha256, fresh_folder
from onnx_release.artifact.mlflow_package import PackageSpec, write_package
from onnx_release.export import diagnostics
from onnx_release.export.contract import ModelContract, more_general
from onnx_release.export.fallback import ExportOptions, ExportResult, export_onnx, tool_versions
from onnx_release.export.preflight import prepare
from onnx_release.export.reference_outputs import ReferenceOptions, write_reference_outputs
from onnx_release.records import OnnxArtifact
from onnx_release.records.base import Record
from onnx_release.runners.onnxruntime import CPU_PROVIDERS, CUDA_PROVIDERS, cuda_available
from onnx_release.trained.input_spec import parse_input_spec
from onnx_release.trained.load import load_unchecked
from onnx_release.trained.mlflow_model import read_trained
from onnx_release.trained.model_factory import FactoryOptions

# Packages whose versions the artifact records, besides those of `tool_versions`.
_TOOLS = ("mlflow", "numpy", "onnx", "onnxruntime", "onnxscript")


class ExportStepOptions(Record):
    """Options of the export step.

    Attributes:
        opset: The ONNX opset. None: the exporter's default.
        device: ``cpu``, ``cuda`` or ``auto`` (CUDA if it is available).
        allow_pickle: True if the deployment lets the training run's own code run.
        pickle_memory_bytes: The memory limit of that code; None: a share of the machine's memory.
        pickle_user: The user and group id of that code where this process is root; 0: root; None: `PICKLE_USER`.
        factory: The factory that builds the model of a state dict.
        input_spec: The inputs of a model without a signature (see `InputSpec`).
        single_file_max_bytes: The largest size of all weights for one file. 0: weights are always external.
        reference_max_bytes: The largest size of the reference outputs in the folder. 0: none are written.
        inputs_path: A user's ``.npz`` file of inputs, whose first rows are among the reference outputs.
        evaluation_path: An ``.npz`` file of inputs and targets, likewise.
    """

    opset: int | None = None
    device: str = "auto"
    allow_pickle: bool = False
    pickle_memory_bytes: int | None = None
    pickle_user: int | None = None
    factory: FactoryOptions | None = None
    input_spec: Any = None
    single_file_max_bytes: int = limits.SINGLE_FILE_MAX_BYTES
    reference_max_bytes: int = limits.REFERENCE_MAX_BYTES
    inputs_path: str | None = None
    evaluation_path: str | None = None

    @property
    def reference(self) -> ReferenceOptions:
        """The options of the reference outputs."""
        return ReferenceOptions(
            max_bytes=self.reference_max_bytes,
            inputs_path=self.inputs_path,
            evaluation_path=self.evaluation_path,
        )


def export_trained(trained: Path, out: Path, options: ExportStepOptions) -> OnnxArtifact:
    """Export a trained model to an artifact folder.

    The folder has ``model.onnx``, external data of a large model, ``MLmodel``, requirements and the input example. It
    appears when all files are complete.

    Args:
        trained: The folder of an MLflow model, or a file with a model or weights.
        out: The artifact folder. An existing one is replaced.
        options: Options of the step.

    Raises:
        Refused: If the model cannot be read, loaded or exported.
    """
    package = read_trained(trained, parse_input_spec(options.input_spec))
    model, loading_findings = load_unchecked(package, allow_pickle=options.allow_pickle, factory=options.factory)
    prepared = prepare(package, model)
    package, contract, verifier = prepared.package, prepared.contract, prepared.verifier
    with fresh_folder(out) as folder, verifier:
        export_options = ExportOptions(
            opset=options.opset, device=options.device, single_file_max_bytes=options.single_file_max_bytes
        )
        result = export_onnx(model, folder, contract, export_options, verifier)
        spec = _package_spec(contract, result)
        write_package(folder, spec)
        # PyTorch's reference outputs take one thread, so the hashes take no time of their own.
        with ThreadPoolExecutor(1) as beside:
            hashed = beside.submit(describe_folder, folder)
            reference_findings = write_reference_outputs(folder, verifier, package, result.inputs, options.reference)
            found = {file.path: file for file in hashed.result()}
        if (folder / limits.REFERENCE_FILE).exists():
            found[limits.REFERENCE_FILE] = describe_file(folder, limits.REFERENCE_FILE)
        files = tuple(found[path] for path in sorted(found))
    return OnnxArtifact(
        sha256=folder_sha256(files),
        size_bytes=sum(file.size_bytes for file in files),
        files=files,
        opset=result.opset,
        ir_version=result.ir_version,
        inputs=result.inputs,
        outputs=result.outputs,
        strategy=result.strategy,
        trained_format=package.format,
        device=result.device,
        providers=spec.providers,
        export_batch_size=result.export_batch_size,
        export_wall_s=round(result.wall_s, 3),
        tool_versions=spec.tool_versions,
        attempts=result.attempts,
        findings=(
            *diagnostics.training_findings(package, model, result.outputs),
            *loading_findings,
            *prepared.findings,
            *diagnostics.name_findings(package, prepared.binding, verifier.outputs),
            *diagnostics.dimension_findings(package, more_general(result.inputs, result.outputs, contract)),
            *diagnostics.export_findings(result, verifier.written, verifier.limited),
            *reference_findings,
        ),
    )


def _package_spec(contract: ModelContract, result: ExportResult) -> PackageSpec:
    # A session on the GPU needs both PyTorch's export and ONNX Runtime there.
    providers = CUDA_PROVIDERS if result.device == "cuda" and cuda_available() else CPU_PROVIDERS
    return PackageSpec(
        inputs=result.inputs,
        outputs=result.outputs,
        example=contract.example,
        providers=providers,
        tool_versions=tool_versions() | {tool: version(tool) for tool in _TOOLS},
    )
