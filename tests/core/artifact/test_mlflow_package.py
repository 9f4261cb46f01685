"""The MLflow files that are written around an exported ONNX file."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow.pyfunc
import numpy as np
import onnxruntime
import yaml

from onnx_release.artifact.digests import describe_folder
from onnx_release.artifact.mlflow_package import PackageSpec, write_package
from onnx_release.limits import MODEL_FILE, REFERENCE_FILE
from onnx_release.records import TensorSpec
from onnx_release.trained.mlflow_model import read_example
from tests.core.conftest import Exported
from tests.core.models import image


def test_the_written_folder_loads_in_pyfunc_and_in_bare_onnxruntime(released: Exported) -> None:
    inputs = {"image": image(3)}
    served = mlflow.pyfunc.load_model(str(released.folder)).predict(inputs)
    session = onnxruntime.InferenceSession(released.folder / MODEL_FILE, providers=["CPUExecutionProvider"])
    bare = session.run(["positions", "uncertainties"], inputs)
    assert set(served) == {"positions", "uncertainties"}
    np.testing.assert_array_equal(served["positions"], bare[0])
    np.testing.assert_array_equal(served["uncertainties"], bare[1])


def test_the_written_folder_keeps_the_example_to_the_bit(released: Exported) -> None:
    np.testing.assert_array_equal(read_example(released.folder)["image"], image(4)[:2], strict=True)


def test_the_written_flavor_names_the_tested_providers_and_pins_the_serving_packages(tmp_path: Path) -> None:
    spec = TensorSpec(name="x", dtype="int64", shape=("batch", 2))
    versions = {"mlflow": "3.17.2", "numpy": "2.4.6", "onnx": "1.23.2", "onnxruntime": "1.32.0", "torch": "2.13.0+cpu"}
    providers = ("CUDAExecutionProvider", "CPUExecutionProvider")
    example = {"x": np.array([[1, 2]])}
    write_package(
        tmp_path,
        PackageSpec(inputs=(spec,), outputs=(spec,), example=example, tool_versions=versions, providers=providers),
    )
    data = yaml.safe_load((tmp_path / "MLmodel").read_text())
    assert data["flavors"]["onnx"]["providers"] == list(providers)
    pins = (tmp_path / "requirements.txt").read_text().split()
    assert pins == ["mlflow==3.17.2", "numpy==2.4.6", "onnx==1.23.2", "onnxruntime==1.32.0"]
    assert json.loads((tmp_path / "input_example.json").read_text()) == {"x": [[1, 2]]}


def test_writing_twice_gives_the_same_bytes(released: Exported, tmp_path: Path) -> None:
    spec = PackageSpec(
        inputs=released.artifact.inputs,
        outputs=released.artifact.outputs,
        example=read_example(released.folder),
        tool_versions=released.artifact.tool_versions,
    )
    others = (MODEL_FILE, REFERENCE_FILE)
    written = {file.path: file for file in released.artifact.files if not file.path.startswith(others)}
    write_package(tmp_path, spec)
    assert {file.path: file for file in describe_folder(tmp_path)} == written
