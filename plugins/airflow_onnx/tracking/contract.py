"""Contract of a model version: names, dtypes and fixed dimensions of its inputs and outputs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.storage import s3
from onnx_release.errors import Refused
from onnx_release.limits import REPORT_FILE
from onnx_release.records import Contract, TensorSpec
from onnx_release.scratch import scratch_folder
from onnx_release.text import shorten
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

_FILE_MAX_BYTES = 2**24
# The text of a version's source that is a path on the worker's own disk. It is not read.
_LOCAL = ("file:", "/", ".")


def contract_of(hook: MlflowHook, s3_conn_id: str, version: Any) -> Contract:
    """Return the contract of a registered version: of the report beside its model, else of its model signature.

    :param version: MLflow's `ModelVersion`.
    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`, for a version whose files are in an S3 store.
    :raises TrackingRefused: ``contract_unknown`` if the version has neither.
    :raises Transient: if a server does not answer.
    """
    try:
        if tags.VERSION_SHA256 in version.tags:
            return _of_report(s3_conn_id, version)
    except Refused:
        pass  # The report is of another version of this program.
    try:
        return _of_signature(_signature(hook, s3_conn_id, version))
    except Refused as error:
        raise TrackingRefused(
            f"Version {version.version} of model '{version.name}'",
            f"has unknown inputs and outputs: {shorten(error)}",
            f"Set contract_change to allow if clients can use the new model, or name a model of its own by the tag "
            f"{tags.MODEL_NAME}.",
            code="contract_unknown",
        ) from error


def _of_report(s3_conn_id: str, version: Any) -> Contract:
    """Return the contract in the report of a release."""
    from onnx_release.report.release_report import read_report

    subject = f"Version {version.version} of model '{version.name}'"
    if not str(version.source).startswith("s3://"):
        raise _unreadable(subject, "its files are not in an S3 store")
    folder = s3.folder_at(s3_conn_id, version.source, rerun=None)
    with scratch_folder() as scratch:
        report = read_report(s3.fetch_one(folder, REPORT_FILE, scratch, _FILE_MAX_BYTES))
    if report.artifact is None or report.artifact.sha256 != version.tags[tags.VERSION_SHA256]:
        raise _unreadable(subject, "the report beside it belongs to other bytes")
    return Contract.of_artifact(report.artifact)


def _signature(hook: MlflowHook, s3_conn_id: str, version: Any) -> Any:
    """Return the model signature of a version of another program."""
    from mlflow.models import Model

    subject = f"Version {version.version} of model '{version.name}'"
    with hook.mlflow_errors(subject):
        uri = str(hook.client.get_model_version_download_uri(version.name, version.version)).rstrip("/")
    if uri.startswith(_LOCAL):
        raise _unreadable(subject, "its files are on a local disk")
    with scratch_folder() as scratch:
        folder = scratch / "model"
        if uri.startswith("s3://"):
            folder.mkdir()
            path = s3.fetch_one(s3.folder_at(s3_conn_id, uri, rerun=None), "MLmodel", folder, _FILE_MAX_BYTES)
        else:
            path = hook.download(f"{uri}/MLmodel", folder)
        try:
            return Model.load(str(path)).signature
        except Exception as error:  # a foreign file: its parser raises errors of any kind
            raise _unreadable(subject, f"its MLmodel cannot be read: {shorten(error)}") from error


def _of_signature(signature: Any) -> Contract:
    if signature is None:
        raise _unreadable("The model", "has no signature")
    return Contract(inputs=_specs(signature.inputs), outputs=_specs(signature.outputs))


def _specs(schema: Any) -> tuple[TensorSpec, ...]:
    from mlflow.types import TensorSpec as SignatureTensor

    if schema is None or not all(isinstance(spec, SignatureTensor) for spec in schema.inputs):
        raise _unreadable("The model signature", "has values other than tensors")
    return tuple(
        TensorSpec(
            name=spec.name or f"#{number}",
            dtype=str(spec.type),
            shape=tuple("free" if size < 0 else int(size) for size in spec.shape),
        )
        for number, spec in enumerate(schema.inputs)
    )


def _unreadable(subject: str, problem: str) -> TrackingRefused:
    return TrackingRefused(subject, problem, "Log it with a signature of tensors.", code="contract_unknown")
