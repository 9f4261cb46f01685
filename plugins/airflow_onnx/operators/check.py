"""Static checks of the staged ONNX file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from airflow_onnx import params
from airflow_onnx.operators.release_step import ReleaseStepOperator
from airflow_onnx.storage import staging
from onnx_release.errors import Refused
from onnx_release.records import CheckReport, OnnxArtifact

if TYPE_CHECKING:
    from airflow.sdk import Context


class OnnxCheckOperator(ReleaseStepOperator):
    """Runs `onnx.checker` and the checks around it; returns a `CheckReport` that passed, or fails with every finding.

    :param artifact: the `OnnxArtifact` that the tuning returned.
    :param allowed_domains: custom operator domains that the serving runtime knows, besides ONNX's own.
    """

    template_fields: Sequence[str] = (*ReleaseStepOperator.template_fields, "artifact", "allowed_domains")
    ui_color = "#dcfce7"

    def __init__(self, *, artifact: Any, allowed_domains: Any = (), **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.artifact = artifact
        self.allowed_domains = allowed_domains

    def release(self, context: Context) -> CheckReport:
        """Check, keep the report, raise last."""
        from onnx_release.check.static_checks import CheckOptions, check_artifact

        artifact = self.gathered["artifact"] = params.record(OnnxArtifact, self.artifact, "tune")
        domains = tuple(str(domain) for domain in params.value(self.allowed_domains) or ())
        with staging.open_staging(artifact.staging_uri).local_folder(artifact) as folder:
            report = check_artifact(folder, artifact, CheckOptions(allowed_domains=domains))
        self.gathered["check"] = report
        for finding in report.findings:
            self.log.info("%s %s: %s", finding.severity, finding.code, finding.message)
        if not report.passed:
            errors = "; ".join(f.message for f in report.findings if f.severity == "error")
            raise Refused(
                f"artifact {artifact.sha256}",
                f"failed its checks: {errors}",
                "The report on the training run lists every finding.",
            )
        return report
