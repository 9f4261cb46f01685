"""Operator of the approval between registration and promotion."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from airflow_onnx import params
from airflow_onnx.links import ModelVersionLink, release_links
from airflow_onnx.operators import approval
from airflow_onnx.operators.acceptance import require_same_version
from airflow_onnx.operators.approval import Approval
from airflow_onnx.operators.release_step import AcceptedStepOperator, StepRun
from airflow_onnx.tracking import model_registry, promotion, run_log
from airflow_onnx.tracking.promotion_policy import PromotionPolicy
from airflow_onnx.tracking.run_description import escaped
from onnx_release.errors import Refused
from onnx_release.records import Contract, ModelVersion, ReleaseReport
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow.sdk import BaseOperatorLink, Context


class OnnxApproveVersionOperator(AcceptedStepOperator):
    """Waits until a person approves the registered version, if one of its aliases needs that; returns an `Approval`.

    No alias moves before the answer. After a rejection, or without an answer in time, the release is refused; the
    version stays registered and has no alias of this release.

    :param version: the `ModelVersion` that the registration returned.
    :param policy: fields of `PromotionPolicy`.
    :param rules: fields of `MoveRules`, each a value or its JSON.
    :param timeout_h: the longest wait in hours.
    """

    template_fields: Sequence[str] = (
        *AcceptedStepOperator.template_fields,
        "version",
        "policy",
        "rules",
        "timeout_h",
    )
    operator_extra_links: Sequence[BaseOperatorLink] = (*release_links(), ModelVersionLink())
    ui_color = "#fef3c7"

    def __init__(
        self,
        *,
        version: Any,
        policy: dict[str, Any],
        rules: dict[str, Any] | None = None,
        timeout_h: Any,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.version = version
        self.policy = policy
        self.rules = rules
        self.timeout_h = timeout_h

    def release(self, run: StepRun) -> Approval:
        """Show the question in Airflow and wait. Return an approval of no alias if none needs one."""
        version, report = self._version(run)
        reasons = self._reasons(run, version, report)
        requested = Approval(
            model_name=version.name, version=version.version, sha256=version.sha256, aliases=tuple(reasons)
        )
        if not reasons:
            self.log.info("No alias that moves needs an approval.")
            return requested
        if self.log_to_run:
            run_log.log_waiting(run.hook, run.context, version.training_run_id)
        body = "\n".join(_question(run, version, report, reasons))
        raise approval.awaiting_answer(run.context, requested, body, float(params.value(self.timeout_h)))

    def execute_complete(self, context: Context, event: dict[str, Any], requested: dict[str, Any]) -> dict[str, Any]:
        """Return the approval, or refuse the release."""

        def answer(run: StepRun) -> Approval:
            # A refusal has the report.
            version, _ = self._version(run)
            try:
                given = approval.approved(Approval.from_dict(requested), event)
            except Refused as refusal:
                texts = {tags.APPROVAL: refusal.problem}
                # An earlier release of the same bytes may have moved an alias that needed no approval: it stays.
                if not model_registry.get_version(run.hook, version.name, version.version).aliases:
                    texts[tags.VERSION_STATUS] = refusal.code.replace("_", " ")
                self._tag_version(run, version, texts)
                raise
            text = f"was approved by {given.by}{f': {given.comment}' if given.comment else ''}"
            self._tag_version(run, version, {tags.APPROVAL: text})
            self.log.info("Version %d %s.", version.version, text)
            return given

        return self.run_step(context, answer)

    def _tag_version(self, run: StepRun, version: ModelVersion, texts: dict[str, str]) -> None:
        for key, text in texts.items():
            model_registry.set_version_tag(run.hook, version.name, version.version, key, text)

    def _version(self, run: StepRun) -> tuple[ModelVersion, ReleaseReport]:
        version = params.record(ModelVersion, self.version, "register")
        judged, report = self.accepted_report(run)
        require_same_version(judged.artifact, version)
        self.link_urls[ModelVersionLink.name] = run.hook.server.version_url(version.name, version.version)
        return version, report

    def _reasons(self, run: StepRun, version: ModelVersion, report: ReleaseReport) -> dict[str, list[str]]:
        """Return the reasons for an approval by alias, for the aliases that move and need one."""
        policy, artifact = PromotionPolicy.read(self.policy), run.evidence["artifact"]
        candidate = promotion.registered(run.hook, version, Contract.of_artifact(artifact))
        moves = run.promoter(self.s3_conn_id, self.rules).moves(candidate, policy, artifact.precision, report.benchmark)
        return {alias: found for alias, move in moves.items() if (found := policy.reasons(alias, move, report))}


def _question(
    run: StepRun, version: ModelVersion, report: ReleaseReport, reasons: dict[str, list[str]]
) -> Iterator[str]:
    """Yield the lines of the question in Markdown: the result, the reasons, the champion, and the gates."""
    from onnx_release.report.gates import TITLES
    from onnx_release.report.numbers import limit_text, measured_text

    run_id = version.training_run_id
    name = run.trained_model.run_name or run_id
    run_url = run.hook.server.run_url(run.trained_model.experiment_id, run_id)
    version_url = run.hook.server.version_url(version.name, version.version)
    # The report's sentence is that of a finished release.
    yield f"**{escaped(report.headline.replace('Released', 'Tested', 1))}**\n"
    for alias, found in reasons.items():
        yield f"- the alias `{alias}` moves to version {version.version} after an approval: {escaped('; '.join(found))}"
    yield f"- training run [{escaped(name)}]({run_url}), [version {version.version}]({version_url})"
    yield f"- sha256 `{version.sha256}`"
    if compared := report.benchmark and report.benchmark.champion:
        for output, worst in compared.agreement.items():
            difference = f"its outputs differ from version {compared.version}: {output} by MAE {worst.texts()['mae']}"
            yield f"- {escaped(difference)}"
        yield from (f"- {escaped(warning)}" for warning in compared.warnings)
    yield ""
    if report.next_step:
        yield f"{escaped(report.next_step)}\n"
    yield "| gate | of | measured | limit | result |"
    yield "|---|---|---|---|---|"
    for gate in sorted(report.gates, key=lambda gate: gate.verdict == "passed"):
        cells = (TITLES.get(gate.name, gate.name), gate.subject, measured_text(gate), limit_text(gate), gate.verdict)
        yield f"| {' | '.join(map(escaped, cells))} |"
