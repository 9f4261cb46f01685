"""Evidence for other tools in the folder of an artifact: bill of materials, provenance statement and signature."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_release.limits import BILL_FILE, SIGNATURE_FILE, STATEMENT_FILE
from onnx_release.provenance.bill_of_materials import bill_of_materials
from onnx_release.provenance.statement import provenance_statement
from onnx_release.records import OnnxArtifact, ReleaseReport
from onnx_release.records.provenance import TrainingFacts

if TYPE_CHECKING:
    from onnx_release.provenance.signature import SigningKey


def write_evidence(
    folder: Path, report: ReleaseReport, artifact: OnnxArtifact, facts: TrainingFacts, key: SigningKey | None
) -> list[str]:
    """Write the evidence of an accepted artifact beside it and return the names of the files, the signature last.

    Args:
        folder: The folder with the files of the artifact.
        report: The report of the artifact.
        artifact: The artifact.
        facts: The facts of the training run.
        key: The key that signs the folder, or None.

    Raises:
        ReportRefused: ``invalid_bill`` if the bill of materials breaks CycloneDX's schema.
        SignatureRefused: if the key cannot be used.
    """
    made_at = datetime.now(UTC)
    _write(folder / BILL_FILE, bill_of_materials(report, artifact, facts, made_at))
    _write(folder / STATEMENT_FILE, provenance_statement(report, artifact, facts, made_at))
    if key is None:
        return [BILL_FILE, STATEMENT_FILE]
    from onnx_release.provenance import signature

    signature.sign(folder, key)
    return [BILL_FILE, STATEMENT_FILE, SIGNATURE_FILE]


def _write(path: Path, document: dict[str, Any]) -> None:
    text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    path.write_text(text, encoding="utf-8", newline="\n")
