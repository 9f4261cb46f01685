"""Verification of one registered version: its objects in the store, and its model on this worker."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_onnx.deployment import settings, signing
from airflow_onnx.errors import TrackingRefused
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.storage import evidence, s3
from airflow_onnx.tracking.released_versions import ReleasedVersion
from airflow_onnx.verification import stored_files
from onnx_release.errors import Refused
from onnx_release.limits import REPORT_FILE, SIGNATURE_FILE
from onnx_release.records.verification import VerificationReport
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from onnx_release.latency.host_lock import LockOptions
    from onnx_release.provenance.signature import Trust
    from onnx_release.records import ReleaseReport

_REPORT_MAX_BYTES = 2**26


@dataclass(frozen=True, kw_only=True)
class Verifier:
    """Verification of versions with one account for the store.

    :param buckets: the buckets that the versions may have their files in. A version's source may name any bucket.
    :param measures: True to measure the latency of versions that pass.
    """

    rest: MlflowRest
    s3_conn_id: str
    buckets: Collection[str]
    measures: bool = False

    def verify(self, version: ReleasedVersion) -> tuple[VerificationReport, str]:
        """Download the objects of a version and verify them. Nothing is changed.

        :return: the result, and the latency as a sentence, empty if it was not measured.

        :raises Transient: if a server or the worker fails.
        :raises Refused: if the version cannot be verified here, for a reason of the deployment.
        """
        folder = self._folder(version)
        # A missing bucket is refused here: a mistake of the connection decides nothing about a version.
        sizes = s3.sizes(folder)
        with scratch_folder() as scratch:
            return self._verified(version, folder, sizes, scratch)

    def _verified(
        self, version: ReleasedVersion, folder: s3.S3Folder, sizes: dict[str, int], scratch: Path
    ) -> tuple[VerificationReport, str]:
        from onnx_release.verification.latency import latency_sentence
        from onnx_release.verification.verify_release import Expected, verify_release, without_report

        report, problem = _report(folder, sizes, scratch)
        artifact = report.artifact if report else None
        if report is None or artifact is None:
            return without_report(problem or f"{REPORT_FILE} is that of a release without a model"), ""
        if foreign := list(stored_files.outside(artifact.files)):
            problem = f"{REPORT_FILE} names paths outside of its folder: {', '.join(foreign):.200}"
            return without_report(problem), ""
        if version.sha256 != artifact.sha256:
            # A report of other bytes decides nothing about these objects, so they are not downloaded.
            tag = version.sha256 or "no sha256"
            return without_report(f"{REPORT_FILE} has the sha256 {artifact.sha256}, and the version has {tag}"), ""
        found = stored_files.download(folder, sizes, artifact.files, scratch)
        trust = self._trust(version, sizes)
        if trust:
            evidence.fetch_evidence(folder, scratch)
        expected = Expected(tag_sha256=version.sha256, found=tuple(found), trust=trust)
        verified = verify_release(scratch, report, artifact, expected)
        if not (self.measures and verified.passed):
            return verified, ""
        return verified, latency_sentence(scratch, report, artifact, _measuring_lock(version))

    def _folder(self, version: ReleasedVersion) -> s3.S3Folder:
        source = version.source
        if source.startswith("models:/"):
            # The version is a copy of another one.
            source = self.rest.version_files(version.name, str(version.version))
        bucket = source.removeprefix("s3://").partition("/")[0]
        if not source.startswith("s3://") or bucket not in self.buckets:
            raise TrackingRefused(
                f"The version {version.label}",
                f"has its files at {source:.200}, outside of the allowed buckets ({', '.join(sorted(self.buckets))})",
                "Give the parameter buckets the bucket of the releases.",
                code="not_verifiable",
            )
        return s3.folder_at(self.s3_conn_id, source, rerun=None)

    def _trust(self, version: ReleasedVersion, sizes: Collection[str]) -> Trust | None:
        """Return the signers that the version must have; None if it was never signed and needs no signature."""
        if not settings.signing_conn_id():
            return None
        was_signed = bool(version.signature) or SIGNATURE_FILE in sizes
        return signing.trust() if was_signed or settings.require_signature() else None


def _report(folder: s3.S3Folder, sizes: dict[str, int], scratch: Path) -> tuple[ReleaseReport | None, str]:
    """Return the report beside the model, or None and the reason against it."""
    from onnx_release.report.release_report import read_report

    size = sizes.get(REPORT_FILE, 0)
    if size > _REPORT_MAX_BYTES:
        return None, f"{REPORT_FILE} has {size} bytes; the limit is {_REPORT_MAX_BYTES}"
    if REPORT_FILE not in sizes or stored_files.fetch(folder, REPORT_FILE, size, scratch) is None:
        return None, f"{REPORT_FILE} is missing among {len(sizes)} objects"
    try:
        return read_report(scratch / REPORT_FILE), ""
    except Refused as refusal:
        if refusal.is_of_deployment:
            raise
        return None, f"{REPORT_FILE} cannot be used: {refusal.problem}"


def _measuring_lock(version: ReleasedVersion) -> LockOptions:
    from onnx_release.latency.host_lock import LockOptions

    return LockOptions(
        path=settings.measure_lock(),
        timeout_s=settings.measure_lock_timeout_s(),
        holder=f"the verification of {version.label}",
    )
