"""Bill of materials of a release: a CycloneDX 1.6 document with a model card, which other tools can read.

The library that builds the document has no model card, so it is added to the finished JSON. The schema of CycloneDX
validates the whole.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from cyclonedx.model import ExternalReference, ExternalReferenceType, HashAlgorithm, HashType, Property, XsUri
from cyclonedx.model.bom import Bom, BomMetaData
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.model.tool import ToolRepository
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

import onnx_release
from onnx_release.errors import ReportRefused
from onnx_release.limits import REPORT_FILE
from onnx_release.records import Gate, OnnxArtifact, ReleaseReport, TensorSpec
from onnx_release.records.provenance import TrainingFacts
from onnx_release.text import shorten

# Serial numbers are made of the artifact's digest and of the training run: the same release has the same number.
_NAMESPACE = uuid.UUID("5a2f6f5e-5f0b-4f0e-9d51-3b7f9d6a2c11")
_MODEL, _TRAINED = "model", "trained-model"
_TASK_METRICS = "training"
# The validator's text goes on with the whole schema.
_SCHEMA_FOLLOWS = "\n\nFailed validating"


def bill_of_materials(
    report: ReleaseReport, artifact: OnnxArtifact, facts: TrainingFacts, made_at: datetime
) -> dict[str, Any]:
    """Return the bill of materials of an accepted artifact as a JSON-safe dict.

    Args:
        report: The report of the release.
        artifact: The artifact, which the report is about.
        facts: The training run's parameters, metrics and datasets.
        made_at: The time of the document, with a time zone.

    Raises:
        ReportRefused: ``invalid_bill`` if the document breaks CycloneDX's schema.
    """
    datasets = [*_datasets(facts)]
    origin, model = _origin(report, artifact, facts), _model(report, artifact)
    bom = Bom(
        serial_number=uuid.uuid5(_NAMESPACE, f"{artifact.sha256} {report.trained_model.training_run_id}"),
        metadata=BomMetaData(
            component=model, timestamp=made_at, tools=ToolRepository(components=list(_tools(artifact)))
        ),
        components=[origin, *datasets],
    )
    bom.register_dependency(model, [origin])
    bom.register_dependency(origin, datasets)
    document: dict[str, Any] = json.loads(JsonV1Dot6(bom).output_as_string())
    document["metadata"]["component"]["modelCard"] = _model_card(report, artifact, facts)
    _require_valid(document)
    return document


def _datasets(facts: TrainingFacts) -> Iterator[Component]:
    for number, dataset in enumerate(facts.datasets, 1):
        yield Component(
            type=ComponentType.DATA,
            name=dataset.name,
            bom_ref=f"dataset-{number}",
            properties=_properties(digest=dataset.digest, source=dataset.source),
        )


def _origin(report: ReleaseReport, artifact: OnnxArtifact, facts: TrainingFacts) -> Component:
    """Return the trained model, with the facts of its training run."""
    trained = report.trained_model
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        # A model of a path has no training run.
        name=trained.logged_model_name or trained.run_name or trained.training_run_id or trained.model_uri,
        bom_ref=_TRAINED,
        external_references=[ExternalReference(type=ExternalReferenceType.OTHER, url=XsUri(trained.model_uri))],
        properties=_properties(
            training_run=trained.training_run_id,
            format=artifact.trained_format,
            sha256=artifact.trained_sha256 or "",
            source_commit=facts.source_commit,
            source_name=facts.source_name,
            **{f"param:{name}": value for name, value in facts.params.items()},
        ),
    )


def _model(report: ReleaseReport, artifact: OnnxArtifact) -> Component:
    """Return the artifact with its files."""
    trained = report.trained_model
    files = [
        Component(
            type=ComponentType.FILE,
            name=file.path,
            bom_ref=f"file:{file.path}",
            hashes=[HashType(alg=HashAlgorithm.SHA_256, content=file.sha256)],
            properties=_properties(size_bytes=str(file.size_bytes)),
        )
        for file in artifact.files
    ]
    return Component(
        type=ComponentType.MACHINE_LEARNING_MODEL,
        name=trained.model_name or trained.training_run_id or trained.model_uri,
        version=artifact.sha256,
        bom_ref=_MODEL,
        components=files,
        external_references=[
            ExternalReference(type=ExternalReferenceType.QUALITY_METRICS, url=XsUri(REPORT_FILE)),
        ],
        properties=_properties(
            opset=str(artifact.opset),
            ir_version=str(artifact.ir_version),
            precision=artifact.precision.value,
            strategy=artifact.strategy,
            device=artifact.device,
            dag_run=report.dag_run_url or "",
        ),
    )


def _tools(artifact: OnnxArtifact) -> Iterator[Component]:
    yield Component(
        type=ComponentType.APPLICATION, name="airflow-onnx-release", version=onnx_release.__version__,
        bom_ref="tool:airflow-onnx-release",
    )  # fmt: skip
    for name, version in artifact.tool_versions.items():
        yield Component(type=ComponentType.LIBRARY, name=name, version=version, bom_ref=f"tool:{name}")


def _properties(**values: str) -> list[Property]:
    """Return properties with the prefix of this package. An empty value has none."""
    return [Property(name=f"onnx_release:{name}", value=value) for name, value in values.items() if value]


def _model_card(report: ReleaseReport, artifact: OnnxArtifact, facts: TrainingFacts) -> dict[str, Any]:
    parameters: dict[str, Any] = {
        "inputs": [{"format": _tensor(spec)} for spec in artifact.inputs],
        "outputs": [{"format": _tensor(spec)} for spec in artifact.outputs],
    }
    if facts.datasets:
        parameters["datasets"] = [{"ref": f"dataset-{number}"} for number in range(1, 1 + len(facts.datasets))]
    metrics = [_metric(gate) for gate in report.gates if gate.measured is not None]
    metrics += [
        {"type": name, "value": f"{value:.9g}", "slice": _TASK_METRICS} for name, value in sorted(facts.metrics.items())
    ]
    card: dict[str, Any] = {
        "bom-ref": f"{_MODEL}-card",
        "modelParameters": parameters,
        "quantitativeAnalysis": {"performanceMetrics": metrics},
    }
    limitations = [
        f"{gate.name} of {gate.subject}: {gate.verdict}" for gate in report.gates if gate.verdict != "passed"
    ]
    if limitations:
        card["considerations"] = {"technicalLimitations": limitations}
    return card


def _tensor(spec: TensorSpec) -> str:
    return f"{spec.name}: {spec.dtype} [{', '.join(map(str, spec.shape))}]"


def _metric(gate: Gate) -> dict[str, Any]:
    unit = f" {gate.unit}" if gate.unit else ""
    metric: dict[str, Any] = {"type": gate.name, "value": f"{gate.measured:.9g}{unit}", "slice": gate.subject}
    if gate.low is not None and gate.high is not None:
        metric["confidenceInterval"] = {"lowerBound": f"{gate.low:.9g}", "upperBound": f"{gate.high:.9g}"}
    return metric


def _require_valid(document: dict[str, Any]) -> None:
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(json.dumps(document))
    if problem is not None:
        raise ReportRefused(
            "The bill of materials",
            f"does not fit the schema of CycloneDX 1.6: {shorten(str(problem).partition(_SCHEMA_FOLLOWS)[0])}",
            "Report this with the report of the release.",
            code="invalid_bill",
        )
