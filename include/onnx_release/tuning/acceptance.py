"""Whether a candidate may be shipped: its outputs held against PyTorch's by its own limits, and so its metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_model import Comparison
from onnx_release.records import Measures, OnnxArtifact
from onnx_release.runners import Runner
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays
from onnx_release.tuning.task_metrics import Evaluation


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceResult:
    """Result of one acceptance test: `reasons` against the candidate, its worst measures and its task metrics."""

    reasons: tuple[str, ...]
    measures: Measures
    task_metrics: dict[str, float]


@dataclass(slots=True, kw_only=True)
class AcceptanceTest:
    """Holds PyTorch's outputs on the release's own samples, and its metrics on the run's evaluation sample.

    `blocked` says why nothing can pass: PyTorch itself does not run what the release will ask for.
    """

    artifact: OnnxArtifact
    evaluation: Evaluation | None = None
    metric_loss_max: float = 0.0
    expected: list[tuple[Sample, Arrays]] = field(default_factory=list)
    task_metrics: dict[str, float] = field(default_factory=dict)
    blocked: tuple[str, ...] = ()

    def run_reference(self, runner: Runner, samples: Sequence[Sample]) -> None:
        """Run PyTorch once; every candidate is compared with the same arrays."""
        reference = Comparison(artifact=self.artifact, limits=ParityLimits())
        reference.run_reference(runner, samples)
        self.expected, self.blocked = reference.expected, tuple(reference.failures)
        if self.evaluation is not None and not self.blocked:
            self.task_metrics = self.evaluation.measure(runner)

    def judge(self, candidate: Runner, limits: ParityLimits) -> AcceptanceResult:
        """Compare a candidate, and measure it; raises `Refused` when it does not run the evaluation sample."""
        comparison = Comparison(artifact=self.artifact, limits=limits, expected=self.expected)
        comparison.run_candidate(candidate)
        parity = comparison.report()
        reasons = list(parity.failures)
        metrics: dict[str, float] = {}
        # What disagrees with PyTorch is out already, and may not even run the whole sample.
        if self.evaluation is not None and parity.passed:
            metrics = self.evaluation.measure(candidate)
            reasons += self._losses(metrics)
        worst = Measures.worst(list(parity.worst_per_output().values()), skip_missing=True)
        return AcceptanceResult(reasons=tuple(reasons), measures=worst, task_metrics=metrics)

    def _losses(self, metrics: dict[str, float]) -> list[str]:
        assert self.evaluation is not None  # noqa: S101 - these are its metrics
        found = []
        for name, figure in metrics.items():
            metric, reference = self.evaluation.metrics[name], self.task_metrics[name]
            loss = metric.loss(reference, figure)
            if not loss <= self.metric_loss_max:
                found.append(
                    f"{metric.name} of '{name}' on the evaluation sample is {figure:.4g}, PyTorch's {reference:.4g}: "
                    f"worse by {loss:.2%}, more than {self.metric_loss_max:.2%}"
                )
        return found
