"""Results of a verification in MLflow: tags of the version, the log of its verdicts, and a tag of its training run."""

from __future__ import annotations

import logging
from typing import Any

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.log_lines import one_line
from airflow_onnx.tracking.released_versions import ReleasedVersion
from onnx_release.records.verification import Verification, VerificationReport
from onnx_release.training_runs import tags, verifications
from onnx_release.training_runs.records import key_values

log = logging.getLogger(__name__)

_REASON_MAX_CHARACTERS, _DAG_RUN_MAX_CHARACTERS = 500, 250


def write(rest: MlflowRest, version: ReleasedVersion, report: VerificationReport, dag_run: str) -> bool:
    """Write a result. The same verdict again adds nothing to the log.

    :param dag_run: the id of the DAG run.
    :return: True if this DAG run has changed the verdict, or if the first verdict is a failure.
    """
    result = Verification(
        version=version.version,
        verdict="passed" if report.passed else "failed",
        at=tags.now(),
        runtime=one_line(report.runtime, 50),
        reason=one_line(report.reason, _REASON_MAX_CHARACTERS),
        dag_run=one_line(dag_run, _DAG_RUN_MAX_CHARACTERS),
    )
    found = _tags_of(rest, version)
    changes = verifications.changes_in(found)
    if not changes or changes[-1].verdict != result.verdict:
        changes.append(result)
    texts = {
        # First: a later try of a killed task finds the entry, and adds none.
        tags.VERSION_VERIFICATION_LOG: verifications.changes_text(changes),
        tags.VERSION_VERIFIED_REASON: result.reason,
        tags.VERSION_VERIFIED_RUNTIME: result.runtime,
        tags.VERSION_VERIFIED_AT: result.at,
        tags.VERSION_VERIFIED: result.verdict,
    }
    place = {"name": version.name, "version": str(version.version)}
    for key, text in texts.items():
        if text and found.get(key) != text:
            rest.call("POST", "model-versions/set-tag", place | {"key": key, "value": text})
        elif not text and key in found:
            rest.call("DELETE", "model-versions/delete-tag", place | {"key": key})
    _tag_training_run(rest, version, result)
    is_of_this_run = changes[-1].dag_run == result.dag_run
    return is_of_this_run and (len(changes) > 1 or result.verdict == "failed")


def _tags_of(rest: MlflowRest, version: ReleasedVersion) -> dict[str, str]:
    place = {"name": version.name, "version": str(version.version)}
    answer: dict[str, Any] = rest.call("GET", "model-versions/get", place)
    return key_values(answer["model_version"].get("tags"))


def _tag_training_run(rest: MlflowRest, version: ReleasedVersion, result: Verification) -> None:
    """Write the result for the list of releases, if the version is the current release of its training run."""
    if not version.training_run_id:
        return
    try:
        found = rest.run(version.training_run_id).tags
        current = found.get(tags.REGISTERED_MODEL), found.get(tags.VERSION)
        if current == (version.name, str(version.version)):
            rest.set_tags(version.training_run_id, {tags.VERIFICATION: verifications.text_of(result)})
    except TrackingRefused as refusal:
        log.warning("The verification is not recorded on the training run: %s", refusal)
