"""What is judged: the trained model and the artifact, and the conditions that both run under."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from onnx_release.artifact.digests import require_bytes
from onnx_release.errors import Refused
from onnx_release.latency.host import usable_cpus
from onnx_release.latency.host_lock import LockOptions
from onnx_release.limits import (
    BATCH_SIZES,
    DTYPE_LIMITS,
    MODEL_FILE,
    PRECISION_LIMITS,
    UNSEEN_BATCH_SIZE,
    LatencyBudget,
    MeasurePlan,
    ParityLimits,
)
from onnx_release.records import OnnxArtifact
from onnx_release.records.base import Record
from onnx_release.runners import onnxruntime, pytorch
from onnx_release.runners.onnxruntime import CUDA_PROVIDERS, OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from onnx_release.samples.edge_cases import probing_samples, read_npz
from onnx_release.samples.generate import make_samples
from onnx_release.samples.sample import Sample
from onnx_release.trained.input_spec import parse_input_spec
from onnx_release.trained.load import LoadedModel, load_trained
from onnx_release.trained.mlflow_model import TrainedPackage, read_trained
from onnx_release.trained.model_factory import FactoryOptions


class BenchmarkOptions(Record):
    """How to judge. The device is no choice here: the artifact is tested on the providers that its package names.

    `given_inputs` is the path of a user's ``.npz`` file, and `reproduction` that of a folder to leave what a person
    needs to see a parity failure again; empty for neither. `precision_limits` replaces fields of `PRECISION_LIMITS`,
    by precision. `lock` is held while anything is timed. The rest is as in the export.
    """

    batch_sizes: tuple[int, ...] = BATCH_SIZES
    limits: ParityLimits = Field(default_factory=ParityLimits)
    budget: LatencyBudget = Field(default_factory=LatencyBudget)
    plan: MeasurePlan = Field(default_factory=MeasurePlan)
    allow_pickle: bool = False
    factory: FactoryOptions | None = None
    input_spec: Any = None
    given_inputs: str = ""
    reproduction: str = ""
    precision_limits: dict[str, dict[str, Any]] = Field(default_factory=dict)
    lock: LockOptions = Field(default_factory=LockOptions)

    def limits_for(self, precision: str) -> ParityLimits:
        """Return what an artifact is held to: the release's own limits where it is exact, else its precision's."""
        require_precisions(self.precision_limits)
        if precision not in PRECISION_LIMITS:
            return self.limits
        given = self.precision_limits.get(precision, {})
        general = PRECISION_LIMITS[precision] | {name: v for name, v in given.items() if not name.startswith("per_")}
        # A dtype's own defaults speak of exact models, so they must not tighten these.
        by_dtype = dict.fromkeys(DTYPE_LIMITS, general) | given.get("per_dtype", {})
        return ParityLimits.from_dict(general | given | {"per_dtype": by_dtype})


def require_precisions(limits: dict[str, dict[str, Any]]) -> None:
    """Raise `Refused` for limits of a precision that has none of its own."""
    if unknown := sorted(set(limits) - set(PRECISION_LIMITS)):
        raise Refused(
            "The parameter `precision_limits`",
            f"names {', '.join(map(repr, unknown))}",
            f"Name {' or '.join(PRECISION_LIMITS)}; an exact model has the release's own limits.",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchmarkSetup:
    """Both sides, loaded or ready to be; the artifact's bytes are those of its record."""

    package: TrainedPackage
    model: LoadedModel
    folder: Path
    artifact: OnnxArtifact
    options: BenchmarkOptions
    device: str
    threads: int

    @classmethod
    def load(cls, trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions) -> BenchmarkSetup:
        """Hold the folder against its record, and load the trained model; raises `Refused` when either fails."""
        require_bytes(folder, artifact)
        device = _device(artifact)
        package = read_trained(trained, parse_input_spec(options.input_spec))
        return cls(
            package=package,
            model=load_trained(package, allow_pickle=options.allow_pickle, factory=options.factory),
            folder=folder,
            artifact=artifact,
            options=options,
            device=device,
            threads=options.plan.threads or usable_cpus(),
        )

    def reference(self, *, mha_fastpath: bool | None = None) -> PyTorchRunner:
        """Open PyTorch's side."""
        options = PyTorchOptions(
            input_names=tuple(spec.name for spec in self.artifact.inputs),
            output_names=tuple(spec.name for spec in self.artifact.outputs),
            device=self.device,
            threads=self.threads,
            mha_fastpath=mha_fastpath,
        )
        return PyTorchRunner(self.model, options)

    def candidate(self) -> OnnxRuntimeRunner:
        """Open ONNX Runtime's side; raises `Refused` when it does not take the model."""
        options = OnnxRuntimeOptions(
            threads=self.threads, providers=self.artifact.providers, session_options=self.artifact.session_options
        )
        return OnnxRuntimeRunner(self.folder / MODEL_FILE, options)

    def samples(self) -> list[Sample]:
        """Return what both sides are fed: the example, a user's own, seeded values, and what probes further.

        The graph's inputs are what is filled: there, two dimensions that must be equal are one.
        """
        inputs, package = self.artifact.inputs, self.package
        samples = make_samples(inputs, package.example, self._sizes(), package.ranges)
        if self.options.given_inputs:
            samples.insert(0, read_npz(Path(self.options.given_inputs), inputs, self.options.given_inputs))
        return [*samples, *probing_samples(inputs, package.example, package.ranges)]

    def _sizes(self) -> Sequence[int]:
        """Return every batch size to compare: those asked for, the served one, and one that the exporter never saw."""
        seen, options = self.artifact.export_batch_size, self.options
        sizes = {*options.batch_sizes, options.budget.batch_size}
        if sizes <= {seen}:
            sizes.add(UNSEEN_BATCH_SIZE if seen != UNSEEN_BATCH_SIZE else UNSEEN_BATCH_SIZE + 1)
        return sorted(sizes)


def _device(artifact: OnnxArtifact) -> str:
    on_cuda = artifact.providers[:1] == CUDA_PROVIDERS[:1]
    if on_cuda and not (pytorch.cuda_available() and onnxruntime.cuda_available()):
        raise Refused(
            f"artifact {artifact.sha256}",
            f"is packaged for {', '.join(artifact.providers)}, and PyTorch or ONNX Runtime has no CUDA here",
            "Run this task on a worker with a GPU, or export with device 'cpu'.",
        )
    return "cuda" if on_cuda else "cpu"
