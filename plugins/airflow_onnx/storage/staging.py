"""Staging of artifacts between the tasks of a DAG run: the work folder and its URI."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from airflow_onnx.errors import StorageRefused
from airflow_onnx.storage.staging_base import Staging
from airflow_onnx.storage.staging_folder import FolderStaging
from airflow_onnx.storage.staging_s3 import S3Staging
from airflow_onnx.validation import validate_prefix

__all__ = ["ARTIFACT", "TUNED", "Staging", "open_staging", "staging_root_uri", "work_folder_uri"]

ARTIFACT = "artifact"
TUNED = "tuned"


def staging_root_uri(staging_uri: str, prefix: str) -> str:
    """Return the folder of all work folders of releases with this prefix.

    Deployments with prefixes of their own share no work folder, although their DAGs and DAG runs may have the same
    ids, and the removal of old folders stays below the prefix.

    :raises ParameterRefused: for a prefix that is not valid.
    """
    return "/".join(filter(None, (staging_uri.rstrip("/"), validate_prefix(prefix))))


def work_folder_uri(root_uri: str, dag_id: str, dag_run_id: str) -> str:
    """Return the URI of a DAG run's work folder. The ids are hashed, because DAG run ids are free text."""
    digest = hashlib.sha256(f"{dag_id}\0{dag_run_id}".encode()).hexdigest()
    return f"{root_uri.rstrip('/')}/{digest[:24]}"


def open_staging(uri: str | None) -> Staging:
    """Return the staging for the URI of a work folder, or of an artifact in a work folder.

    :raises StorageRefused: for another kind of URI, or an artifact that was never staged.
    """
    if uri is None:
        raise StorageRefused(
            "The artifact's record",
            "names no staged folder",
            "Clear the task 'export' with its downstream tasks.",
            code="not_staged",
        )
    staging = {"file": FolderStaging, "s3": S3Staging}.get(urlsplit(uri).scheme)
    if staging is None:
        raise StorageRefused(
            f"The staging folder {uri!r:.200}",
            "is neither a file:// nor an s3:// URI",
            "Set [onnx_release] staging_uri to s3://bucket/prefix, or to a folder that all workers share.",
            code="staging_uri",
        )
    return staging(uri)
