"""Buckets of the releases: those that the deployment or a DAG file names, not those that a form names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from airflow_onnx.deployment import settings
from airflow_onnx.errors import StorageRefused


def in_dag_file(bucket: Any) -> str:
    """Return the bucket of an operator's argument, or an empty text for a template or an output of a task."""
    return bucket if isinstance(bucket, str) and "{" not in bucket else ""


def allowed(dag_bucket: str = "") -> Collection[str]:
    """Return the buckets of the options `bucket` and `release_buckets`, and the one that the DAG file names."""
    return {*settings.release_buckets(), *filter(None, [dag_bucket])}


def require_allowed(bucket: str, dag_bucket: str) -> None:
    """Refuse a bucket of a form. The worker's account may write to more buckets than a user of Airflow may.

    :param dag_bucket: the bucket that the DAG file names, an empty text for none.
    :raises StorageRefused: ``bucket_not_allowed``.
    """
    names = allowed(dag_bucket)
    # An empty bucket has a refusal of its own.
    if bucket and bucket not in names:
        raise StorageRefused(
            f"The bucket {bucket!r:.80}",
            f"is not one of those that the deployment allows for releases ({', '.join(sorted(names)) or 'none'})",
            "Choose one of these, or let the deployment add the bucket to [onnx_release] release_buckets.",
            code="bucket_not_allowed",
        )
