"""Bill of materials and provenance statement, against the projects' own schemas."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from in_toto_attestation.predicates.provenance.v1 import provenance_pb2

from onnx_release.limits import REPORT_FILE
from onnx_release.provenance.bill_of_materials import bill_of_materials
from onnx_release.provenance.statement import PREDICATE_TYPE, provenance_statement
from onnx_release.records import FileDigest, ReleaseReport
from onnx_release.records.provenance import Dataset, TrainingFacts
from onnx_release.report.release_report import build_report
from tests.core import records

HOSTILE = "../{{ 7*7 }} <b>\x1b[31m\n' OR 1=1"
AT = datetime(2026, 1, 2, tzinfo=UTC)
ARTIFACT = records.artifact(
    files=(FileDigest(path="model.onnx", sha256="b" * 64, size_bytes=3),), trained_sha256="c" * 64
)
FACTS = TrainingFacts(
    params={"lr": "0.1", HOSTILE: HOSTILE},
    metrics={"val/mae": 0.5},
    datasets=(Dataset(name="train", digest="123", source="s3://data/train"), Dataset(name="train", digest="124")),
    source_commit="a" * 40,
    source_name="train.py",
)


def report() -> ReleaseReport:
    return build_report(records.TRAINING, ARTIFACT, records.check(), records.benchmark())


def values(properties: list[dict[str, str]]) -> dict[str, str]:
    return {row["name"].removeprefix("onnx_release:"): row["value"] for row in properties}


def test_the_bill_names_model_files_origin_data_tools_and_measurements() -> None:
    # The function validates with CycloneDX's strict schema.
    bill = bill_of_materials(report(), ARTIFACT, FACTS, AT)
    model = bill["metadata"]["component"]
    assert (model["type"], model["name"], model["version"]) == ("machine-learning-model", "net", ARTIFACT.sha256)
    assert model["components"][0]["hashes"] == [{"alg": "SHA-256", "content": "b" * 64}]
    assert model["externalReferences"][0]["url"] == REPORT_FILE
    origin, *data = sorted(bill["components"], key=lambda one: str(one["type"]), reverse=True)
    found = values(origin["properties"])
    assert (found["training_run"], found["sha256"], found["param:lr"]) == ("run1", "c" * 64, "0.1")
    assert found["source_commit"] == "a" * 40
    assert {one["bom-ref"] for one in data} == {"dataset-1", "dataset-2"}
    assert {one["name"]: one["version"] for one in bill["metadata"]["tools"]["components"]}["torch"] == "2.13.0"
    measured = {
        (one["type"], one["slice"]): one for one in model["modelCard"]["quantitativeAnalysis"]["performanceMetrics"]
    }
    assert measured["speedup", "batch 1"]["confidenceInterval"] == {"lowerBound": "1.9", "upperBound": "2.1"}
    assert measured["val/mae", "training"]["value"] == "0.5"
    assert model["modelCard"]["modelParameters"]["inputs"] == [{"format": "x: float32 [batch, 4]"}]
    # The same release has the same number, and another one has another.
    assert bill["serialNumber"] == bill_of_materials(report(), ARTIFACT, TrainingFacts(), AT)["serialNumber"]
    other = ARTIFACT.replace(sha256="d" * 64)
    assert bill["serialNumber"] != bill_of_materials(report(), other, FACTS, AT)["serialNumber"]


def test_the_statement_has_the_files_as_subjects_and_a_valid_predicate() -> None:
    statement = provenance_statement(report(), ARTIFACT, FACTS, AT)
    assert statement["subject"] == [{"name": "model.onnx", "digest": {"sha256": "b" * 64}}]
    assert statement["predicateType"] == PREDICATE_TYPE
    predicate: Any = json_format.ParseDict(statement["predicate"], provenance_pb2.Provenance())
    inputs = {one.name: dict(one.digest) for one in predicate.build_definition.resolved_dependencies}
    assert inputs == {"trained model": {"sha256": "c" * 64}, "train.py": {"gitCommit": "a" * 40}, "train": {}}
    assert predicate.build_definition.external_parameters["training_run_id"] == "run1"
    json.dumps(statement, allow_nan=False)
