"""Released model of a command: a folder, a version of MLflow's registry, or a folder in an S3 store."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.cli import mlflow_access
from onnx_release.cli.mlflow_access import Version
from onnx_release.errors import CommandRefused, Refused
from onnx_release.limits import REPORT_FILE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from onnx_release.records import OnnxArtifact, ReleaseReport


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleasedSource:
    """Files of a released model in a local folder. Nothing of them is verified.

    Attributes:
        name: The name for people, such as ``net v3``.
        folder: The folder.
        version: The entry of the registry; None for a folder.
        report: The report of its release.
        artifact: The record of its files, from the report.
    """

    name: str
    folder: Path
    version: Version | None
    report: ReleaseReport
    artifact: OnnxArtifact


def open_released(uri: str, scratch: Path, sources: Sequence[str]) -> ReleasedSource:
    """Return a released model. Files that are not in a local folder are downloaded.

    Args:
        uri: ``models:/name/3``, ``models:/name@alias``, ``s3://bucket/prefix`` or a path.
        scratch: A new folder for the files.
        sources: As for `mlflow_access.download`.

    Raises:
        CommandRefused: It does not exist, or has no report of a release.
        Transient: A server does not answer.
    """
    from onnx_release.report.release_report import read_report

    version = mlflow_access.find_version(uri)
    if "://" in uri or uri.startswith(mlflow_access.URIS):
        folder = mlflow_access.download(uri, scratch, sources)
    else:
        folder = Path(uri)
        if not folder.is_dir():
            raise CommandRefused(
                f"The model {uri!r:.200}",
                "is neither a folder nor a URI",
                "Give a folder, models:/name/3, models:/name@alias or s3://….",
                code="model_not_found",
            )
    try:
        report = read_report(folder / REPORT_FILE)
    except Refused as refusal:
        raise _no_release(uri, f"has no usable report of a release: {refusal.problem}") from refusal
    if report.artifact is None:
        raise _no_release(uri, "has the report of a release without a model")
    name = f"{version.name} v{version.version}" if version else uri.rstrip("/").rpartition("/")[2] or uri
    return ReleasedSource(name=name, folder=folder, version=version, report=report, artifact=report.artifact)


def _no_release(uri: str, problem: str) -> CommandRefused:
    action = "Choose a version that a release registered, or a folder of onnx-release export."
    return CommandRefused(f"The model {uri:.200}", problem, action, code="no_release")
