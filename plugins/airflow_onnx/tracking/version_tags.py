"""Tags of a model version below ``onnx.``: the artifact, its files, its contract and the figures of its report."""

from __future__ import annotations

import json
import re

from airflow_onnx.tracking import tags
from airflow_onnx.tracking.contract import Contract
from onnx_release.records import OnnxArtifact, ReleaseReport, S3Object

# Another measurement of the same bytes may have other tags of these kinds.
FIGURES = ("onnx.parity.", "onnx.latency.", "onnx.tune.", "onnx.tool.")
# MLflow refuses longer keys.
_KEY_MAX_CHARACTERS = 250


def version_tags(report: ReleaseReport, artifact: OnnxArtifact, uploaded: S3Object) -> dict[str, str]:
    """Return the tags of the version of a released artifact."""
    from onnx_release.report.metrics import release_metrics, release_verdicts

    found: dict[str, object] = {
        _dotted(name): _number(value) for name, value in (release_metrics(report) | release_verdicts(report)).items()
    }
    # After the metrics: `size_bytes` is exact here.
    found |= {
        "opset": artifact.opset,
        "ir_version": artifact.ir_version,
        "strategy": artifact.strategy,
        "precision": artifact.precision,
        "size_bytes": artifact.size_bytes,
        "s3_uri": uploaded.uri,
        "training_run_id": report.trained_model.training_run_id,
        "training_model_uri": report.trained_model.model_uri,
        "dag_run_url": report.dag_run_url or "",
    }
    if artifact.variant:
        found |= {"variant": artifact.variant}
    if artifact.session_options:
        found |= {"session_options": json.dumps(artifact.session_options, sort_keys=True)}
    found |= {f"tool.{tool}": version for tool, version in artifact.tool_versions.items()}
    found |= {f"sha256.{file.path}": file.sha256 for file in uploaded.files}
    for side, specs in (("input", artifact.inputs), ("output", artifact.outputs)):
        found |= {f"{side}.{spec.name.replace('/', '_')}": f"{spec.dtype} {list(spec.shape)}" for spec in specs}
    named = {_key(f"onnx.{name}"): str(text) for name, text in found.items()}
    return named | {tags.VERSION_CONTRACT: Contract.of_artifact(artifact).text()}


def _dotted(metric: str) -> str:
    return metric.removeprefix("onnx_release/").replace("/", ".")


def _number(value: float | str) -> str:
    if isinstance(value, str):
        return value
    return f"{value:.0f}" if float(value).is_integer() else f"{value:.6g}"


def _key(name: str) -> str:
    """Replace the characters that MLflow refuses in keys: tensors and files may have any name."""
    return re.sub(r"[^/\w.\- :]", "_", name)[:_KEY_MAX_CHARACTERS]
