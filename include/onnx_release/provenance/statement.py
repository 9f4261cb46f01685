"""Provenance statement of a release: in-toto's form, whose subjects are the files of the artifact.

The predicate is that of SLSA 1: the training run goes in, the DAG run is the build, the artifact comes out.
"""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from google.protobuf import json_format
from in_toto_attestation.v1.resource_descriptor import ResourceDescriptor
from in_toto_attestation.v1.statement import Statement

import onnx_release
from onnx_release.records import OnnxArtifact, ReleaseReport
from onnx_release.records.provenance import TrainingFacts

PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
_PROJECT = "https://github.com/airflow-onnx-release/airflow-onnx-release"
BUILD_TYPE = f"{_PROJECT}/blob/v{onnx_release.__version__}/docs/provenance.md"


def provenance_statement(
    report: ReleaseReport, artifact: OnnxArtifact, facts: TrainingFacts, made_at: datetime
) -> dict[str, Any]:
    """Return the statement about an accepted artifact as a JSON-safe dict.

    Args:
        report: The report of the release.
        artifact: The artifact.
        facts: The training run's parameters and datasets.
        made_at: The time of the statement, with a time zone.
    """
    trained = report.trained_model
    materials: list[dict[str, Any]] = [
        {
            "name": "trained model",
            "uri": trained.model_uri,
            **({"digest": {"sha256": artifact.trained_sha256}} if artifact.trained_sha256 else {}),
        }
    ]
    if facts.source_commit:
        materials.append({"name": facts.source_name or "training script", "digest": {"gitCommit": facts.source_commit}})
    materials += [
        {"name": dataset.name, "annotations": {"digest": dataset.digest, "source": dataset.source}}
        for dataset in facts.datasets
    ]
    predicate: dict[str, Any] = {
        "buildDefinition": {
            "buildType": BUILD_TYPE,
            "externalParameters": {
                "training_run_id": trained.training_run_id,
                "model_uri": trained.model_uri,
                "model_name": trained.model_name or "",
            },
            "internalParameters": {
                "opset": artifact.opset, "strategy": artifact.strategy, "precision": artifact.precision.value,
                "artifact_sha256": artifact.sha256,
            },
            "resolvedDependencies": materials,
        },
        "runDetails": {
            "builder": {
                "id": f"{_PROJECT}/tree/v{onnx_release.__version__}",
                "version": {"airflow-onnx-release": onnx_release.__version__} | artifact.tool_versions,
            },
            "metadata": {
                **({"invocationId": report.dag_run_url} if report.dag_run_url else {}),
                "finishedOn": made_at.isoformat(),
            },
        },
    }  # fmt: skip
    subjects = [ResourceDescriptor(name=file.path, digest={"sha256": file.sha256}).pb for file in artifact.files]
    statement = Statement(subjects, PREDICATE_TYPE, predicate)
    statement.validate()
    found: dict[str, Any] = json.loads(json_format.MessageToJson(statement.pb))
    return found
