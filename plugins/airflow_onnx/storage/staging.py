"""Where the tasks of one release hand the artifact to each other: a work folder behind a URI."""

from __future__ import annotations

import hashlib
from urllib.parse import urlsplit

from airflow_onnx.storage.staging_base import Staging
from airflow_onnx.storage.staging_folder import FolderStaging
from airflow_onnx.storage.staging_s3 import StoreStaging
from onnx_release.errors import Refused

__all__ = ["ARTIFACT", "TUNED", "Staging", "at", "work_uri"]

ARTIFACT = "artifact"
TUNED = "tuned"


def work_uri(root_uri: str, dag_id: str, dag_run_id: str) -> str:
    """Return the work folder of one DAG run. Run ids are free text, so they are hashed, never made a path."""
    digest = hashlib.sha256(f"{dag_id}\0{dag_run_id}".encode()).hexdigest()
    return f"{root_uri.rstrip('/')}/{digest[:24]}"


def at(uri: str) -> Staging:
    """Return the staging behind the URI of a work folder, or of an artifact in it.

    :raises Refused: for a URI of another kind.
    """
    kind = {"file": FolderStaging, "s3": StoreStaging}.get(urlsplit(uri).scheme)
    if kind is None:
        raise Refused(
            f"staging folder {uri!r:.200}",
            "is neither a file:// nor an s3:// URI",
            "Set [onnx_release] staging_uri to s3://bucket/prefix, or to a folder that every worker sees.",
        )
    return kind(uri)
