"""Operator of the comparison and the latency measurement of PyTorch and ONNX Runtime."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from airflow_onnx import params, step_times
from airflow_onnx.deployment import buckets, settings
from airflow_onnx.log_lines import wrapped
from airflow_onnx.operators.measuring_step import MeasuringStepOperator
from airflow_onnx.operators.release_step import StepRun
from airflow_onnx.storage import staging, worker_cache
from airflow_onnx.tracking import promotion, report_files
from airflow_onnx.tracking.champion import find_champion
from airflow_onnx.tracking.promotion_policy import PromotionPolicy
from airflow_onnx.tracking.release_inputs import fetch_inputs
from onnx_release.errors import ReportRefused
from onnx_release.records import (
    BenchmarkReport,
    ChampionComparison,
    CheckReport,
    Contract,
    LatencyReport,
    OnnxArtifact,
    ParityReport,
)
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.serving.runtime_environment import RuntimeEnvironment


class OnnxParityLatencyOperator(MeasuringStepOperator):
    """Compares the outputs of both sides, times both sides, and returns a passed `BenchmarkReport`.

    Unless the policy is ``candidate``, the champion is measured in the same rounds: the version that has its alias.

    :param check: the `CheckReport` of the same artifact.
    :param target_runtimes: exact versions of ONNX Runtime in which the artifact is loaded and compared too.
    :param policy: fields of `PromotionPolicy`; empty for no champion.
    :param rules: fields of `MoveRules`, each a value or its JSON.
    :param margins: ``margin`` and ``metric_loss_max`` of `ChampionOptions`, each a value or its JSON.
    :param dag_bucket: a bucket that the champion may be in, besides those of the deployment.
    :param evaluation_uri: an ``.npz`` file of inputs and targets for the comparison with the champion; empty for the
        one in the run's tag.
    """

    template_fields: Sequence[str] = (
        *MeasuringStepOperator.template_fields,
        "check",
        "target_runtimes",
        "policy",
        "rules",
        "margins",
        "evaluation_uri",
    )
    ui_color = "#fef9c3"

    def __init__(
        self,
        *,
        check: Any,
        target_runtimes: Any = (),
        policy: dict[str, Any] | None = None,
        rules: dict[str, Any] | None = None,
        margins: dict[str, Any] | None = None,
        dag_bucket: str = "",
        evaluation_uri: str = "",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.check = check
        self.target_runtimes = target_runtimes
        self.policy = policy
        self.rules = rules
        self.margins = margins
        self.dag_bucket = dag_bucket
        self.evaluation_uri = evaluation_uri

    def release(self, run: StepRun) -> BenchmarkReport:
        """Compare and time.

        :raises ReportRefused: with every failed gate.
        """
        from onnx_release.report.acceptance import report_failures
        from onnx_release.run_step import benchmark

        step_times.log_wait(run.context)
        artifact = run.evidence["artifact"] = params.record(OnnxArtifact, self.artifact, "tune")
        run.evidence["check"] = params.record(CheckReport, self.check, "check")
        with scratch_folder() as scratch:
            options = self._with_champion(run, artifact, scratch).replace(target_runtimes=self._environments())
            with (
                staging.open_staging(artifact.staging_uri).local_folder(artifact) as folder,
                worker_cache.trained_model(run.hook, run.trained_model.model_uri, artifact.trained_sha256) as trained,
            ):
                report = benchmark(trained.path, folder, artifact, options)
            run.evidence["benchmark"] = report
            self._log_parity(report.parity)
            for runtime in report.runtimes:
                for text in (*runtime.failures, *runtime.warnings):
                    self._log_wrapped(logging.WARNING, f"ONNX Runtime {runtime.version}: {text}")
            if report.latency:
                step_times.leave_wait(run.context, report.latency.waited_s)
                self._log_latency(report.latency)
            if report.champion:
                self._log_champion(report, report.champion)
            if not report.passed:
                if self.log_to_run:
                    report_files.log_reproduction(run.hook, run.trained_model, scratch / "reproduction")
                raise _refusal(artifact, report, report_failures(None, report))
        return report

    def _environments(self) -> tuple[RuntimeEnvironment, ...]:
        """Return the environments of the target runtimes. They are made here: the benchmark may run without network."""
        versions = params.value(self.target_runtimes) or ()
        if not versions:
            return ()
        from onnx_release.serving.runtime_environment import prepare_environments, require_versions

        versions = require_versions([versions] if isinstance(versions, str) else versions)
        self.log.info("Preparing the environments of ONNX Runtime %s.", ", ".join(versions))
        return prepare_environments(versions, settings.runtimes_folder())

    def _with_champion(self, run: StepRun, artifact: OnnxArtifact, scratch: Path) -> BenchmarkOptions:
        """Return the options of the benchmark, with the champion unless its alias does not move."""
        source = self.release_inputs(run)
        options = self.benchmark_options(run, source, scratch)
        policy = PromotionPolicy.read(self.policy) if self.policy else None
        alias = policy.champion(artifact.precision) if policy else None
        if policy is None or alias is None:
            return options
        promoter = run.promoter(self.s3_conn_id, self.rules)
        candidate = promotion.unregistered(run.trained_model, run.model_name, Contract.of_artifact(artifact))
        folder = scratch / "champion"
        folder.mkdir()
        allowed = buckets.allowed(self.dag_bucket)
        champion = find_champion(promoter, candidate, alias, artifact.sha256, folder, allowed)
        if champion is None:
            return options
        refuses = policy.promotion == "auto"
        champion = champion.replace(
            **{name: float(params.value(margin)) for name, margin in (self.margins or {}).items()},
            on_worse="refuse" if refuses else "warn",
            on_unsettled="refuse" if refuses and options.latency_budget.on_miss == "refuse" else "warn",
        )
        uri = source.evaluation_uri(self.evaluation_uri)
        sample = fetch_inputs(run.hook, self.s3_conn_id, uri, scratch / "evaluation", "evaluation_uri")
        return options.replace(champion=champion, evaluation_path=sample)

    def _log_champion(self, report: BenchmarkReport, champion: ChampionComparison) -> None:
        from onnx_release.report.numbers import speedup_text, three_digits

        for b in report.latency.batches if report.latency else ():
            if b.champion:
                sides = [three_digits(side.p50_ms) for side in (b.champion.times, b.candidate)]
                speed = speedup_text(b.champion.speed, b.champion.speed_low, b.champion.speed_high)
                self.log.info("Batch %d: champion %s ms, candidate %s ms, %s.", b.batch_size, *sides, speed)
        for text in (*champion.failures, *champion.warnings):
            self._log_wrapped(logging.WARNING, f"Champion: {text}")

    def _log_parity(self, parity: ParityReport) -> None:
        for output, worst in parity.worst_per_output().items():
            mae, largest = (worst.texts()[name] for name in ("mae", "max_abs"))
            self.log.info("Parity of %s: MAE %s, largest difference %s.", output, mae, largest)
        for output, found in parity.worst_columns().items():
            place = f"on '{found.sample}' at batch {found.batch_size}"
            self._log_wrapped(logging.INFO, f"Worst column of {output} {place}: {found.worst_column}")
        for warning in parity.warnings:
            self._log_wrapped(logging.WARNING, f"Parity: {warning}")
        for note in parity.notes:
            self._log_wrapped(logging.INFO, f"Parity: {note}")
        if at := parity.divergence:
            where = f"node {at.node} ({at.op_type}) of module '{at.module}'" if at.node else "no single node"
            mae = "" if at.mae is None else f", MAE {at.mae:.2e}"
            self._log_wrapped(logging.WARNING, f"The difference begins at {where}{mae}. {at.note or ''}")

    def _log_latency(self, latency: LatencyReport) -> None:
        from onnx_release.report.gates import published_speedup
        from onnx_release.report.numbers import three_digits

        for b in latency.batches:
            sides = [three_digits(side.p50_ms) for side in (b.reference, b.candidate)]
            speedup = published_speedup(b, latency)
            self.log.info("Batch %d: PyTorch %s ms, ONNX Runtime %s ms, %s.", b.batch_size, *sides, speedup)
        for warning in latency.warnings:
            self._log_wrapped(logging.WARNING, warning)

    def _log_wrapped(self, level: int, text: str) -> None:
        for line in wrapped(text):
            self.log.log(level, "%s", line)


def _refusal(artifact: OnnxArtifact, report: BenchmarkReport, failures: Sequence[str]) -> ReportRefused:
    """Return the refusal of a model that did not pass. A failure only in target runtimes has a code of its own."""
    failed = [f"ONNX Runtime {runtime.version}" for runtime in report.runtimes if not runtime.passed]
    others = (report.parity, report.latency, report.champion)
    if failed and all(part.passed for part in others if part is not None):
        return ReportRefused(
            f"The artifact {artifact.sha256}",
            f"does not pass in {', '.join(failed)}: {'; '.join(failures)}",
            "Export with an older opset, or remove the version from the parameter 'target_runtimes'.",
            code="target_runtime_failed",
        )
    return ReportRefused(
        f"The artifact {artifact.sha256}",
        f"did not pass: {'; '.join(failures)}",
        "The report on the training run has every figure.",
        code="benchmark_failed",
    )
