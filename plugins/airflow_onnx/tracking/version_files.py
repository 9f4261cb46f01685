"""Files of a registered version: downloaded from its source and compared with its sha256."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.storage import s3
from onnx_release.limits import REPORT_FILE
from onnx_release.records import OnnxArtifact, ReleaseReport
from onnx_release.training_runs import tags

_REPORT_MAX_BYTES = 2**26


def fetch_version(
    s3_conn_id: str, version: Any, folder: Path, buckets: Collection[str]
) -> tuple[OnnxArtifact, ReleaseReport]:
    """Download the files of a version that this package released, and compare every byte with the version's sha256.

    :param s3_conn_id: an Airflow connection of type `s3store` or `aws`.
    :param version: MLflow's `ModelVersion`.
    :param folder: an empty folder for the files.
    :param buckets: the buckets that the files may be in, because a registry can name any place.
    :return: the artifact and the report of its release.
    :raises TrackingRefused: ``not_verifiable`` if the version has no sha256 or no files in an S3 store.
    :raises StorageRefused: if a file is missing or has other bytes.
    :raises ArtifactRefused: if the digests of the files do not give the version's sha256.
    """
    from onnx_release.artifact.digests import require_bytes
    from onnx_release.report.release_report import read_report

    sha256 = version.tags.get(tags.VERSION_SHA256)
    if not sha256 or not version.source.startswith("s3://"):
        raise not_verifiable(version, "has no sha256 or no folder in an S3 store")
    source = s3.folder_at(s3_conn_id, version.source, rerun=None)
    if source.bucket not in buckets:
        raise TrackingRefused(
            f"Version {version.version} of model '{version.name}'",
            f"has its files in the bucket {source.bucket!r:.80}, outside of the allowed buckets "
            f"({', '.join(sorted(buckets)) or 'none'}), so they are not read",
            "Choose another version, or let the deployment add the bucket to [onnx_release] release_buckets. "
            "A DAG with a parameter buckets takes it there too.",
            code="version_bucket",
        )
    report = read_report(s3.fetch_one(source, REPORT_FILE, folder, _REPORT_MAX_BYTES))
    artifact = report.artifact
    if artifact is None or artifact.sha256 != sha256:
        raise not_verifiable(version, f"has the sha256 {sha256}, and its report belongs to another artifact")
    if outside := [file.path for file in artifact.files if not _is_inside(file.path)]:
        raise not_verifiable(version, f"has a report with paths outside of its folder: {', '.join(outside):.200}")
    s3.fetch(source, artifact.files, folder)
    require_bytes(folder, artifact)
    return artifact, report


def not_verifiable(version: Any, problem: str) -> TrackingRefused:
    """Return the refusal of a version whose files cannot be compared with a sha256."""
    return TrackingRefused(
        f"Version {version.version} of model '{version.name}'",
        f"{problem}, so its files cannot be verified",
        "Choose a version that a release of this package registered.",
        code="not_verifiable",
    )


def _is_inside(path: str) -> bool:
    """Return True for a relative path that stays in its folder. The report is read before it is verified."""
    parts = PurePosixPath(path).parts
    return bool(parts) and not path.startswith("/") and ".." not in parts and "\0" not in path
