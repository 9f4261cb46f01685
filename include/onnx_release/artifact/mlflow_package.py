"""The MLflow model folder around an exported ONNX file.

Only MLflow's file format is used here: no server is contacted and no model is loaded.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from mlflow.models import ModelSignature
from mlflow.types import Schema
from mlflow.types import TensorSpec as MlflowTensorSpec

from onnx_release.limits import MODEL_FILE
from onnx_release.records import TensorSpec
from onnx_release.trained.arrays import Arrays

_INPUT_EXAMPLE_FILE = "input_example.json"

_SERVING_PACKAGES = ("mlflow", "numpy", "onnx", "onnxruntime", "onnxruntime-gpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class PackageSpec:
    """Contents of the MLflow files beside ``model.onnx``.

    Attributes:
        inputs: The inputs of the graph, for the signature.
        outputs: The outputs of the graph, for the signature.
        example: One array per input, written as the input example.
        tool_versions: Versions by distribution name; ``mlflow`` and ``onnx`` are required.
        providers: ONNX Runtime's execution providers, in the order that was tested.
        session_options: Options of the ONNX Runtime session, under MLflow's names; `mlflow.pyfunc` applies them.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays
    tool_versions: dict[str, str]
    providers: tuple[str, ...] = ("CPUExecutionProvider",)
    session_options: dict[str, Any] = field(default_factory=dict)


def write_package(folder: Path, spec: PackageSpec) -> None:
    """Add MLflow's files to a folder, which `mlflow.pyfunc` can load afterwards.

    The files are those of `mlflow.onnx.save_model` without times and random ids. The same model therefore gives the
    same bytes. The ONNX files are not changed.

    Args:
        folder: The folder that contains ``model.onnx``.
        spec: The contents of the files.
    """
    # A local version such as "+cpu" names a build that no public index has.
    versions = {name: version.split("+")[0] for name, version in spec.tool_versions.items()}
    requirements = [f"{name}=={versions[name]}" for name in _SERVING_PACKAGES if name in versions]
    python = platform.python_version()
    example = {name: array.tolist() for name, array in sorted(spec.example.items())}
    (folder / _INPUT_EXAMPLE_FILE).write_text(json.dumps(example) + "\n")
    (folder / "requirements.txt").write_text("".join(f"{line}\n" for line in requirements))
    conda = {
        "name": "mlflow-env",
        "channels": ["conda-forge"],
        "dependencies": [f"python={python}", "pip", {"pip": requirements}],
    }
    environment = {
        "python": python,
        "build_dependencies": ["pip", "setuptools", "wheel"],
        "dependencies": ["-r requirements.txt"],
    }
    files = {"conda.yaml": conda, "python_env.yaml": environment, "MLmodel": _mlmodel(spec, python)}
    for name, content in files.items():
        (folder / name).write_text(yaml.safe_dump(content, default_flow_style=False, sort_keys=True))


def _mlmodel(spec: PackageSpec, python: str) -> Mapping[str, Any]:
    return {
        "flavors": {
            "onnx": {
                "code": None,
                "data": MODEL_FILE,
                "onnx_session_options": spec.session_options or None,
                "onnx_version": spec.tool_versions["onnx"],
                "providers": list(spec.providers),
            },
            "python_function": {
                "data": MODEL_FILE,
                "env": {"conda": "conda.yaml", "virtualenv": "python_env.yaml"},
                "loader_module": "mlflow.onnx",
                "python_version": python,
            },
        },
        "mlflow_version": spec.tool_versions["mlflow"],
        "saved_input_example_info": {"artifact_path": _INPUT_EXAMPLE_FILE, "type": "ndarray"},
        "signature": ModelSignature(inputs=_schema(spec.inputs), outputs=_schema(spec.outputs)).to_dict(),
    }


def _schema(tensors: tuple[TensorSpec, ...]) -> Schema:
    """Return MLflow's schema, in which every varying dimension is -1."""
    return Schema(
        [
            MlflowTensorSpec(np.dtype(t.dtype), tuple(-1 if isinstance(s, str) else s for s in t.shape), t.name)
            for t in tensors
        ]
    )
