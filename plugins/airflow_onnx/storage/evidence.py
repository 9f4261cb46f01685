"""Evidence for other tools in the folder of a release: bill of materials, provenance statement and signature."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_onnx.deployment import settings, signing
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.storage import s3
from airflow_onnx.storage.object_metadata import object_metadata
from onnx_release.errors import Refused
from onnx_release.limits import BILL_FILE, EVIDENCE, SIGNATURE_FILE, STATEMENT_FILE
from onnx_release.records import OnnxArtifact, ReleaseReport
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow_server import MlflowServer
    from onnx_release.provenance.signature import SigningKey

log = logging.getLogger(__name__)
_EVIDENCE_MAX_BYTES = 2**24


def put_evidence(
    target: s3.S3Folder,
    local: Path,
    report: ReleaseReport,
    artifact: OnnxArtifact,
    server: MlflowServer,
) -> str:
    """Put the evidence of an artifact beside it, unless valid evidence of the same bytes is there.

    :param target: the folder of the uploaded artifact.
    :param local: the same folder, downloaded and verified. The evidence is written there first.
    :param server: the MLflow server, which has the facts of the training run.
    :return: the fingerprint of the key that signed the folder; empty for a folder without a signature.
    """
    key = signing.signing_key()
    if key is None:
        signer = ""
    else:
        from onnx_release.provenance import signature

        signer = signature.fingerprint(key)
    if _is_there(target, local, artifact, key):
        return signer
    from onnx_release.artifact.digests import describe_file
    from onnx_release.provenance.evidence import write_evidence

    training_run_id = report.trained_model.training_run_id
    with MlflowRest(server) as rest:
        facts = rest.facts(training_run_id)
    metadata = object_metadata(server, training_run_id, artifact.sha256)
    # The signature is the last one: the store never has that of files that it does not have yet.
    for name in write_evidence(local, report, artifact, facts, key):
        s3.put(target, local, describe_file(local, name), metadata)
    if key is None:
        s3.remove(target, [SIGNATURE_FILE])
    return signer


def require_signed(folder: s3.S3Folder, local: Path) -> None:
    """Verify the signature of a released folder if the option `require_signature` is set.

    :param folder: the folder in the store.
    :param local: the files of its artifact, downloaded. The evidence is downloaded to them.
    :raises SignatureRefused: without a signature of the deployment's signer over these bytes.
    :raises DeploymentRefused: if the option is set without a key.
    """
    if not settings.require_signature():
        return
    from onnx_release.provenance import signature

    trust = signing.trust()
    fetch_evidence(folder, local)
    signature.verify(local, trust)
    log.info("The signature is valid: %s.", trust.name)


def require_signed_in_store(folder: s3.S3Folder, artifact: OnnxArtifact) -> None:
    """Download a released folder and verify its signature, as `require_signed`."""
    if settings.require_signature():
        with scratch_folder() as scratch:
            s3.fetch(folder, artifact.files, scratch)
            require_signed(folder, scratch)


def fetch_evidence(folder: s3.S3Folder, local: Path) -> None:
    """Download the evidence that a folder has."""
    stored = s3.sizes(folder)
    for name in sorted(EVIDENCE & stored.keys()):
        s3.fetch_one(folder, name, local, _EVIDENCE_MAX_BYTES)


def _is_there(target: s3.S3Folder, local: Path, artifact: OnnxArtifact, key: SigningKey | None) -> bool:
    """Return True if the store has evidence that is valid for these bytes and this key."""
    fetch_evidence(target, local)
    if not (local / BILL_FILE).exists() or not _has_subjects(local / STATEMENT_FILE, artifact):
        return False
    if key is None:
        return not (local / SIGNATURE_FILE).exists()
    from onnx_release.provenance import signature

    try:
        signature.verify(local, signature.trust_of(key))
    except Refused as refusal:
        log.info("Signed again: %s", refusal)
        return False
    return True


def _has_subjects(path: Path, artifact: OnnxArtifact) -> bool:
    try:
        statement = json.loads(path.read_text(encoding="utf-8"))
        subjects = {one["name"]: one["digest"]["sha256"] for one in statement["subject"]}
    except (OSError, ValueError, KeyError, TypeError):
        return False
    return subjects == {file.path: file.sha256 for file in artifact.files}
