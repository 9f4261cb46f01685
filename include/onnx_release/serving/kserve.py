"""InferenceService of KServe, whose runtime for ONNX is Triton: it takes the folder of a model repository."""

from __future__ import annotations

import hashlib
import re

import yaml

from onnx_release.records import OnnxArtifact

MANIFEST_FILE = "inference_service.yaml"
# Kubernetes allows 63 characters in the name of a host. KServe appends "-predictor" and the namespace.
_NAME_MAX_CHARACTERS = 40
_DIGEST_CHARACTERS = 8
_LEGAL_NAME = r"[a-z]([-a-z0-9]*[a-z0-9])?"


def service_name(model_name: str) -> str:
    """Return a legal name for the model: the name itself, or a changed one that ends in its digest."""
    if re.fullmatch(_LEGAL_NAME, model_name) and len(model_name) <= _NAME_MAX_CHARACTERS:
        return model_name
    digest = hashlib.sha256(model_name.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    plain = re.sub(r"[^a-z0-9]+", "-", model_name.lower()).strip("-")
    plain = plain if plain[:1].isalpha() else f"model-{plain}".rstrip("-")
    return f"{plain[: _NAME_MAX_CHARACTERS - _DIGEST_CHARACTERS - 1].rstrip('-')}-{digest}"


def inference_service(artifact: OnnxArtifact, model_name: str, repository_uri: str) -> str:
    """Return the manifest as YAML.

    Args:
        artifact: The record of the artifact.
        model_name: The name of the registered model.
        repository_uri: The folder with the model repository of Triton.
    """
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": service_name(model_name),
            "annotations": {"onnx-release/model-name": model_name, "onnx-release/sha256": artifact.sha256},
        },
        "spec": {
            "predictor": {
                "model": {"modelFormat": {"name": "onnx"}, "protocolVersion": "v2", "storageUri": repository_uri}
            }
        },
    }
    return yaml.safe_dump(manifest, sort_keys=False)
