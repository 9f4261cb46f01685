"""Operator of the static checks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from airflow_onnx import params, step_times, validation
from airflow_onnx.log_lines import wrapped
from airflow_onnx.operators.release_step import ReleaseStepOperator, StepRun
from airflow_onnx.storage import staging
from airflow_onnx.tracking import promotion
from airflow_onnx.tracking.promotion import Move
from airflow_onnx.tracking.promotion_policy import PromotionPolicy
from onnx_release.errors import ReportRefused
from onnx_release.records import CheckReport, Contract, OnnxArtifact


class OnnxCheckOperator(ReleaseStepOperator):
    """Runs `onnx.checker` and further static checks, and returns a passed `CheckReport`.

    :param artifact: the `OnnxArtifact` that the tuning returned.
    :param allowed_domains: custom operator domains that the serving runtime supports, besides ONNX's own.
    :param policy: fields of `PromotionPolicy`. A model that cannot have one of its aliases is refused here, before the
        measurements.
    :param stage: the legacy stage of the release.
    :param rules: fields of `MoveRules`, each a value or its JSON.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`, for a version of another program that has the
        alias.
    """

    template_fields: Sequence[str] = (
        *ReleaseStepOperator.template_fields,
        "artifact",
        "allowed_domains",
        "policy",
        "stage",
        "rules",
        "s3_conn_id",
    )
    ui_color = "#dcfce7"

    def __init__(
        self,
        *,
        artifact: Any,
        allowed_domains: Any = (),
        policy: dict[str, Any] | None = None,
        stage: str = "",
        rules: dict[str, Any] | None = None,
        s3_conn_id: str = "minio_default",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.allowed_domains = allowed_domains
        self.policy = policy
        self.stage = stage
        self.rules = rules
        self.s3_conn_id = s3_conn_id

    def release(self, run: StepRun) -> CheckReport:
        """Check the staged artifact.

        :raises ReportRefused: with every finding of the severity ``error``.
        """
        from onnx_release.check.static_checks import CheckOptions, check_artifact

        artifact = run.evidence["artifact"] = params.record(OnnxArtifact, self.artifact, "tune")
        domains = tuple(str(domain) for domain in params.value(self.allowed_domains) or ())
        with staging.open_staging(artifact.staging_uri).local_folder(artifact) as folder:
            report = check_artifact(folder, artifact, CheckOptions(allowed_domains=domains))
        run.evidence["check"] = report
        self._log(report)
        if not report.passed:
            errors = "; ".join(f.message for f in report.findings if f.severity == "error")
            raise ReportRefused(
                f"The artifact {artifact.sha256}",
                f"failed its checks: {errors}",
                "The report on the training run lists every finding.",
                code="check_failed",
            )
        self._require_move(run, artifact)
        step_times.log_queue(run.context)
        return report

    def _log(self, report: CheckReport) -> None:
        """Log the findings that do not refuse the model; the refusal has the others."""
        for finding in report.findings:
            level = {"warning": logging.WARNING, "info": logging.DEBUG}.get(finding.severity)
            for line in wrapped(f"{finding.code}: {finding.message}") if level else ():
                self.log.log(level, "%s", line)  # type: ignore[arg-type]
        if report.passed:
            self.log.info(
                "Checked %s nodes: opset %s, IR version %s.", report.node_count, report.opset, report.ir_version
            )

    def _require_move(self, run: StepRun, artifact: OnnxArtifact) -> None:
        """Refuse a model whose inputs or outputs are not those of the alias. The promotion decides again."""
        promoter = run.promoter(self.s3_conn_id, self.rules)
        candidate = promotion.unregistered(run.trained_model, run.model_name, Contract.of_artifact(artifact))
        moves: list[Move] = []
        if self.policy:
            policy = PromotionPolicy.read(self.policy)
            moves += promoter.moves(candidate, policy, artifact.precision).values()
        if stage := validation.stage_for(self.stage, artifact.precision):
            moves.append(promoter.stage_move(candidate, stage))
        for move in moves:
            if move.stays:
                for line in wrapped(f"{move.stays}."):
                    self.log.info("%s", line)
