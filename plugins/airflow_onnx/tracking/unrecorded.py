"""Release whose alias has moved and whose record on the training run is missing: an outage came between the two."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from airflow_onnx import airflow_urls
from airflow_onnx.storage import s3
from airflow_onnx.tracking import model_registry, run_log
from airflow_onnx.tracking.run_log import ReleasedVersion
from onnx_release.errors import Refused
from onnx_release.limits import REPORT_FILE
from onnx_release.records import ModelVersion, ReleaseReport, TrainedModel
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import tags
from onnx_release.training_runs.names import validate_run_id

if TYPE_CHECKING:
    from airflow.sdk import Context

    from airflow_onnx.hooks.mlflow import MlflowHook

log = logging.getLogger(__name__)

_REPORT_MAX_BYTES = 2**26


def record_release(
    hook: MlflowHook, context: Context, trained_model: TrainedModel, folder: s3.S3Folder, reason: str
) -> tuple[ModelVersion, ReleaseReport] | None:
    """Record an unfinished release as released, if this DAG run has published its version and moved an alias to it.

    The promotion writes the report beside the objects and the tags of the version before it moves an alias.

    :param folder: the objects of the release.
    :param reason: the reason why the promotion did not end.
    :return: the version and its report. None if it has no alias, was published by another DAG run, or cannot be
        recorded.
    :raises Transient: if a server does not answer.
    """
    try:
        return _record(hook, context, trained_model, folder, reason)
    except Refused as refusal:
        log.warning("The version of the unfinished promotion is not recorded in MLflow: %s", refusal)
        return None


def published_version(hook: MlflowHook, context: Context, training_run_id: str) -> Any:
    """Return MLflow's version of a training run that a DAG run has published and given an alias, else None.

    :param context: has the DAG run.
    """
    with hook.mlflow_errors(f"The training run {training_run_id}"):
        found = hook.client.search_model_versions(f"run_id='{validate_run_id(training_run_id)}'")
    for one in found:
        if one.tags.get(tags.VERSION_DAG_RUN) == _url(context):
            # A search returns no aliases.
            version = model_registry.get_version(hook, one.name, int(one.version))
            if version.aliases:
                return version
    return None


def _record(
    hook: MlflowHook, context: Context, trained_model: TrainedModel, folder: s3.S3Folder, reason: str
) -> tuple[ModelVersion, ReleaseReport] | None:
    from onnx_release.report.release_report import read_report

    name, run_id = trained_model.model_name or "", trained_model.training_run_id
    version = model_registry.of_source(hook, name, run_id, folder.uri)
    if version is None or not version.aliases or version.tags.get(tags.VERSION_DAG_RUN) != _url(context):
        return None
    with scratch_folder() as scratch:
        report = read_report(s3.fetch_one(folder, REPORT_FILE, scratch, _REPORT_MAX_BYTES))
    released = ModelVersion(
        name=name,
        version=int(version.version),
        sha256=version.tags[tags.VERSION_SHA256],
        source=version.source,
        training_run_id=run_id,
        created=False,
        alias=", ".join(sorted(version.aliases)),
        alias_note=f"the promotion did not end: {reason}",
    )
    log.warning(
        "Version %d of '%s' has the alias %s. It is recorded as released.", released.version, name, released.alias
    )
    run_log.log_report(
        hook,
        context,
        report,
        released=ReleasedVersion(
            version=released.version,
            alias=released.alias or "",
            alias_note=released.alias_note or "",
            s3_uri=released.source,
        ),
    )
    return released, report


def _url(context: Context) -> str:
    run: Any = context["dag_run"]
    return airflow_urls.dag_run_url(run.dag_id, run.run_id)
