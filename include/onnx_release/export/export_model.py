"""Export step: reads a trained model and writes an artifact folder."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
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
from onnx_release.export.reference_outputs import ReferenceOptions, ReferenceOutputs, reference_outputs
from onnx_release.export.verify import ExportVerifier
from onnx_release.records import FileDigest, OnnxArtifact
from onnx_release.records.base import Record
from onnx_release.runners.distribution import installed_distribution
from onnx_release.runners.onnxruntime import CPU_PROVIDERS, CUDA_PROVIDERS, cuda_available
from onnx_release.trained.input_spec import parse_input_spec
from onnx_release.trained.load import load_unchecked
from onnx_release.trained.mlflow_model import TrainedPackage, read_trained
from onnx_release.trained.model_factory import FactoryOptions

# Packages whose versions the artifact records, besides those of `tool_versions`.
_TOOLS = ("mlflow", "numpy", "onnx", "onnxscript")


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
        trial = _Trial(verifier, package, options.reference)
        result = export_onnx(model, folder, contract, export_options, trial.verify)
        spec = _package_spec(contract, result)
        write_package(folder, spec)
        reference, known = trial.results(folder, result)
        reference.write(folder)
        files = describe_folder(folder, known)
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
            *reference.findings,
        ),
    )


@dataclass
class _Trial:
    """Trial of a written graph in ONNX Runtime, and work for the artifact that the other process leaves time for.

    PyTorch's reference outputs take one thread, and the hash of the weights another one.
    """

    verifier: ExportVerifier
    package: TrainedPackage
    options: ReferenceOptions
    _done: tuple[Future[ReferenceOutputs], tuple[FileDigest, ...]] | None = None

    def verify(self, folder: Path, result: ExportResult) -> str | None:
        """Return why the graph is refused, or None."""
        self._done = None
        reason = self.verifier(folder, result, lambda: self._work(folder, result))
        if reason is not None:
            # Another graph will be written.
            self._done = None
        return reason

    def results(self, folder: Path, result: ExportResult) -> tuple[ReferenceOutputs, tuple[FileDigest, ...]]:
        """Return the reference outputs, and the digest of the external data if it was taken.

        Raises:
            SampleRefused: A file of inputs cannot be used.
        """
        reference, known = self._done or self._work(folder, result)
        return reference.result(), known

    def _work(self, folder: Path, result: ExportResult) -> tuple[Future[ReferenceOutputs], tuple[FileDigest, ...]]:
        # An error about the samples says nothing about the graph, so it waits for `results`.
        reference: Future[ReferenceOutputs] = Future()
        has_data = (folder / limits.EXTERNAL_DATA_FILE).exists()
        with ThreadPoolExecutor(1) as beside:
            hashed = beside.submit(describe_file, folder, limits.EXTERNAL_DATA_FILE) if has_data else None
            try:
                outputs = reference_outputs(folder, self.verifier, self.package, result.inputs, self.options)
                reference.set_result(outputs)
            except Exception as error:  # noqa: BLE001 - raised by `results`
                reference.set_exception(error)
            self._done = reference, (hashed.result(),) if hashed else ()
        return self._done


def _package_spec(contract: ModelContract, result: ExportResult) -> PackageSpec:
    # A session on the GPU needs both PyTorch's export and ONNX Runtime there.
    providers = CUDA_PROVIDERS if result.device == "cuda" and cuda_available() else CPU_PROVIDERS
    return PackageSpec(
        inputs=result.inputs,
        outputs=result.outputs,
        example=contract.example,
        providers=providers,
        tool_versions=tool_versions() | {tool: version(tool) for tool in _TOOLS} | installed_distribution(),
    )
