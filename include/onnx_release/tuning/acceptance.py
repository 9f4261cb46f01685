"""Acceptance test of a variant: its outputs against PyTorch's, and its task metric."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx_release.limits import ParityLimits
from onnx_release.parity.compare_model import Comparison
from onnx_release.parity.stored_reference import stored_failures
from onnx_release.parity.task_metrics import EvaluationSample
from onnx_release.records import Measures, OnnxArtifact
from onnx_release.runners import Runner
from onnx_release.samples.reference import Case
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptanceResult:
    """Result of one acceptance test: `reasons` against the variant, its worst measures and its task metrics."""

    reasons: tuple[str, ...]
    measures: Measures
    task_metrics: dict[str, float]


@dataclass(slots=True, kw_only=True)
class AcceptanceTest:
    """Acceptance test with PyTorch's outputs on the release's samples and its metrics on the evaluation sample.

    `metric_loss_max` is relative to PyTorch's metric. `blocked` are reasons why no variant can pass: PyTorch itself
    does not run the samples of the release. `stored` are the reference outputs that the package will have.
    """

    artifact: OnnxArtifact
    evaluation: EvaluationSample | None = None
    metric_loss_max: float = 0.0
    stored: Sequence[Case] = ()
    expected: list[tuple[Sample, Arrays]] = field(default_factory=list)
    task_metrics: dict[str, float] = field(default_factory=dict)
    blocked: tuple[str, ...] = ()

    def run_reference(self, runner: Runner, samples: Sequence[Sample]) -> None:
        """Run PyTorch once, for all variants."""
        comparison = Comparison(artifact=self.artifact, limits=ParityLimits())
        comparison.run_reference(runner, samples)
        self.expected, self.blocked = comparison.expected, tuple(comparison.failures)
        if self.evaluation is not None and not self.blocked:
            self.task_metrics = self.evaluation.measure(runner)

    def run(self, runner: Runner, limits: ParityLimits) -> AcceptanceResult:
        """Test a variant.

        Args:
            runner: the open variant.
            limits: the limits of its precision.

        Raises:
            RunnerRefused: the variant does not run the evaluation sample.
        """
        comparison = Comparison(artifact=self.artifact, limits=limits, expected=self.expected)
        comparison.run_candidate(runner)
        parity = comparison.report()
        reasons = [*parity.failures]
        if parity.passed:
            reasons += stored_failures(runner, self.stored, limits, self.expected)
        metrics: dict[str, float] = {}
        # A variant that fails parity may not run the whole evaluation sample.
        if self.evaluation is not None and parity.passed:
            metrics = self.evaluation.measure(runner)
            reasons += self._losses(self.evaluation, metrics)
        worst = Measures.worst(list(parity.worst_per_output().values()), skip_missing=True)
        return AcceptanceResult(reasons=tuple(reasons), measures=worst, task_metrics=metrics)

    def _losses(self, evaluation: EvaluationSample, metrics: dict[str, float]) -> list[str]:
        """Return the metrics that lose more than `metric_loss_max`."""
        found = []
        for name, value in metrics.items():
            metric, reference = evaluation.metrics[name], self.task_metrics[name]
            loss = metric.loss(reference, value)
            if not loss <= self.metric_loss_max:
                found.append(
                    f"{metric.name} of '{name}' on the evaluation sample is {value:.4g}, PyTorch's {reference:.4g}: "
                    f"worse by {loss:.2%}, more than {self.metric_loss_max:.2%}"
                )
        return found
