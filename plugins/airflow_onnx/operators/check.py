"""Operator of the static checks."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from airflow_onnx import params
from airflow_onnx.operators.release_step import ReleaseStepOperator, StepRun
from airflow_onnx.storage import staging
from onnx_release.errors import ReportRefused
from onnx_release.records import CheckReport, OnnxArtifact


class OnnxCheckOperator(ReleaseStepOperator):
    """Runs `onnx.checker` and further static checks, and returns a passed `CheckReport`.

    :param artifact: the `OnnxArtifact` that the tuning returned.
    :param allowed_domains: custom operator domains that the serving runtime supports, besides ONNX's own.
    """

    template_fields: Sequence[str] = (*ReleaseStepOperator.template_fields, "artifact", "allowed_domains")
    ui_color = "#dcfce7"

    def __init__(self, *, artifact: Any, allowed_domains: Any = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.allowed_domains = allowed_domains

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
        for finding in report.findings:
            level = logging.ERROR if finding.severity == "error" else logging.INFO
            self.log.log(level, "%s %s: %s", finding.severity, finding.code, finding.message)
        if not report.passed:
            errors = "; ".join(f.message for f in report.findings if f.severity == "error")
            raise ReportRefused(
                f"The artifact {artifact.sha256}",
                f"failed its checks: {errors}",
                "The report on the training run lists every finding.",
                code="check_failed",
            )
        return report
