"""Setup of a benchmark: its options, and the trained model and the artifact ready to run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from onnx_release.artifact.digests import require_bytes
from onnx_release.errors import ParameterRefused, RunnerRefused
from onnx_release.latency.host import usable_cpus
from onnx_release.latency.host_lock import LockOptions
from onnx_release.limits import (
    BATCH_SIZES,
    CHAMPION_MARGIN,
    DTYPE_LIMITS,
    METRIC_LOSS_MAX,
    MODEL_FILE,
    PRECISION_LIMITS,
    UNSEEN_BATCH_SIZE,
    LatencyBudget,
    MeasurePlan,
    ParityLimits,
)
from onnx_release.parity.limits import limits_for_weights
from onnx_release.records import Measures, OnnxArtifact
from onnx_release.records.base import Record
from onnx_release.runners import onnxruntime, pytorch
from onnx_release.runners.onnxruntime import CUDA_PROVIDERS, OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from onnx_release.samples.edge_cases import probing_samples, read_npz
from onnx_release.samples.generate import make_samples
from onnx_release.samples.sample import Sample
from onnx_release.serving.runtime_environment import RuntimeEnvironment
from onnx_release.trained.example import bind_package
from onnx_release.trained.input_spec import parse_input_spec
from onnx_release.trained.load import LoadedModel, load_trained
from onnx_release.trained.mlflow_model import TrainedPackage, read_trained
from onnx_release.trained.model_errors import float_dtypes
from onnx_release.trained.model_factory import FactoryOptions


class ChampionOptions(Record):
    """Champion to measure beside the candidate.

    Attributes:
        alias: The alias of the champion.
        version: The version that has it.
        folder: The folder of its artifact, `artifact` the record. Both are empty with a `problem`.
        parity: Its worst differences from its own PyTorch model, by output.
        margin, metric_loss_max, on_worse, on_unsettled: As in `ChampionComparison`.
        problem: The reason why it cannot be measured, else empty.
    """

    alias: str
    version: int
    folder: str = ""
    artifact: OnnxArtifact | None = None
    parity: dict[str, Measures] = Field(default_factory=dict)
    margin: float = CHAMPION_MARGIN
    metric_loss_max: float = METRIC_LOSS_MAX
    on_worse: Literal["refuse", "warn"] = "refuse"
    on_unsettled: Literal["refuse", "warn"] = "refuse"
    problem: str = ""


class BenchmarkOptions(Record):
    """Options of a comparison and a measurement.

    The device is not an option: an artifact is tested on the execution providers of its package.

    Attributes:
        batch_sizes: The batch sizes to compare and to measure.
        parity_limits: The limits of an exact model.
        precision_limits: Fields that replace those of `PRECISION_LIMITS`, by precision.
        latency_budget: The limits on speed.
        measure_plan: The length of the measurement.
        inputs_path: A user's ``.npz`` file of inputs.
        reproduction_folder: The folder for the reproduction bundle of a parity failure.
        lock: The lock of the host during the measurement.
        champion: The champion to measure beside the artifact.
        evaluation_path: An ``.npz`` file of inputs and targets, for the task metric of artifact and champion.
        allow_pickle, pickle_memory_bytes, pickle_user, factory, input_spec: As for the export.
    """

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    parity_limits: ParityLimits = Field(default_factory=ParityLimits)
    precision_limits: dict[str, dict[str, Any]] = Field(default_factory=dict)
    latency_budget: LatencyBudget = Field(default_factory=LatencyBudget)
    measure_plan: MeasurePlan = Field(default_factory=MeasurePlan)
    allow_pickle: bool = False
    pickle_memory_bytes: int | None = None
    pickle_user: int | None = None
    factory: FactoryOptions | None = None
    input_spec: Any = None
    inputs_path: str | None = None
    reproduction_folder: str | None = None
    lock: LockOptions = Field(default_factory=LockOptions)
    champion: ChampionOptions | None = None
    target_runtimes: tuple[RuntimeEnvironment, ...] = ()
    evaluation_path: str | None = None

    def limits_for(self, precision: str) -> ParityLimits:
        """Return the parity limits of an artifact of this precision.

        Raises:
            ParameterRefused: when `precision_limits` has an unknown precision.
        """
        require_precisions(self.precision_limits)
        if precision not in PRECISION_LIMITS:
            return self.parity_limits
        changes = self.precision_limits.get(precision, {})
        general = PRECISION_LIMITS[precision] | {name: v for name, v in changes.items() if not name.startswith("per_")}
        # `DTYPE_LIMITS` are for exact models, so they must not tighten these.
        by_dtype = dict.fromkeys(DTYPE_LIMITS, general) | changes.get("per_dtype", {})
        uncertainty_of = {"uncertainty_of": self.parity_limits.uncertainty_of}
        return ParityLimits.from_dict(general | uncertainty_of | changes | {"per_dtype": by_dtype})


def require_precisions(limits: dict[str, dict[str, Any]]) -> None:
    """Raise `ParameterRefused` for limits of an unknown precision."""
    if unknown := sorted(set(limits) - set(PRECISION_LIMITS)):
        raise ParameterRefused(
            "The parameter `precision_limits`",
            f"has the unknown precision {', '.join(map(repr, unknown))}",
            f"Use {' or '.join(PRECISION_LIMITS)}; the limits of an exact model are parameters of the release.",
            code="unknown_precision",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSetup:
    """The trained model and the artifact of one benchmark. The artifact's bytes are those of its record.

    The parity limits in `options` are those for the dtype of the model's weights.
    """

    package: TrainedPackage
    model: LoadedModel
    folder: Path
    artifact: OnnxArtifact
    options: BenchmarkOptions
    device: str
    threads: int

    @classmethod
    def load(cls, trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions) -> BenchmarkSetup:
        """Compare the folder with its record, and load the trained model.

        Raises:
            Refused: when the bytes differ, the model cannot be loaded, or the worker lacks the artifact's GPU.
        """
        require_bytes(folder, artifact)
        on_cuda = artifact.providers[:1] == CUDA_PROVIDERS[:1]
        if on_cuda and not (pytorch.cuda_available() and onnxruntime.cuda_available()):
            needed = ", ".join(artifact.providers)
            raise RunnerRefused(
                f"The artifact {artifact.sha256}",
                f"is packaged for {needed}, and PyTorch or ONNX Runtime has no CUDA on this worker",
                "Run this task on a worker with a GPU, or export with device 'cpu'.",
                code="no_cuda",
            )
        package = read_trained(trained, parse_input_spec(options.input_spec))
        model = load_trained(package, allow_pickle=options.allow_pickle, factory=options.factory)
        package, _ = bind_package(package, model)
        return cls(
            package=package,
            model=model,
            folder=folder,
            artifact=artifact,
            options=options.replace(
                parity_limits=limits_for_weights(options.parity_limits, float_dtypes(model)),
            ),
            device="cuda" if on_cuda else "cpu",
            threads=options.measure_plan.threads or usable_cpus(),
        )

    def reference(self, *, mha_fastpath: bool | None = None) -> PyTorchRunner:
        """Return PyTorch's side, to be entered with ``with``."""
        options = PyTorchOptions(
            input_names=tuple(spec.name for spec in self.artifact.inputs),
            output_names=tuple(spec.name for spec in self.artifact.outputs),
            device=self.device,
            threads=self.threads,
            mha_fastpath=mha_fastpath,
        )
        return PyTorchRunner(self.model, options)

    def candidate(self) -> OnnxRuntimeRunner:
        """Open ONNX Runtime's side; raises `RunnerRefused` when its session does not open."""
        options = OnnxRuntimeOptions(
            threads=self.threads, providers=self.artifact.providers, session_options=self.artifact.session_options
        )
        return OnnxRuntimeRunner(self.folder / MODEL_FILE, options)

    def samples(self) -> list[Sample]:
        """Return the inputs of both sides: a user's, the example, seeded values, extreme values and other sizes.

        They fit the inputs of the graph: there, two dimensions that must be equal are one.
        """
        inputs, package = self.artifact.inputs, self.package
        exported, options = self.artifact.export_batch_size, self.options
        sizes = {*options.batch_sizes, options.latency_budget.batch_size}
        if sizes <= {exported}:
            sizes.add(UNSEEN_BATCH_SIZE if exported != UNSEEN_BATCH_SIZE else UNSEEN_BATCH_SIZE + 1)
        samples = make_samples(inputs, package.example, sorted(sizes), package.ranges)
        if options.inputs_path is not None:
            samples.insert(0, read_npz(Path(options.inputs_path), inputs, options.inputs_path))
        return [*samples, *probing_samples(inputs, package.example, package.ranges)]
