"""MLflow model folders and bare model files of a training run."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from mlflow.models import ModelSignature, infer_signature
from mlflow.types import ColSpec, Schema

from onnx_release.records import TensorSpec
from onnx_release.trained.mlflow_model import read_trained
from tests.core.models import OneOutput, Sum, TwoHeads, image, save, signature
from tests.refusals import refused


@pytest.fixture
def trained(trained_pt2: Path, tmp_path: Path) -> Path:
    """A copy that a test can damage."""
    return Path(shutil.copytree(trained_pt2, tmp_path / "trained"))


def _edit(folder: Path, **changes: Any) -> Path:
    path = folder / "MLmodel"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return folder


def test_a_pt2_model_is_read_with_signature_and_example(trained_pt2: Path) -> None:
    package = read_trained(trained_pt2)
    assert (package.format, package.data_path) == ("pt2", trained_pt2.resolve() / "data" / "model.pt2")
    assert package.inputs == (TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8)),)
    assert [spec.name for spec in package.outputs] == ["positions", "uncertainties"]
    assert package.outputs[1].shape == ("batch", 2)
    assert package.example is not None
    np.testing.assert_array_equal(package.example["image"], image(4), strict=True)
    assert package.pytorch_version.startswith("2.")


def test_a_pickle_model_is_read_with_its_code(tmp_path: Path) -> None:
    code = tmp_path / "my_code"
    code.mkdir()
    (code / "module.py").write_text("")
    folder = save(TwoHeads(), tmp_path / "model", serialization_format="pickle", code_paths=[str(code)])
    package = read_trained(folder)
    assert (package.format, package.data_path.name) == ("pickle", "model.pth")
    assert package.code_paths == (folder.resolve() / "code",)


def test_a_folder_of_mlflow_2_is_read(trained_pickle: Path, tmp_path: Path) -> None:
    """MLflow 2 wrote fewer keys in the same form."""
    folder = Path(shutil.copytree(trained_pickle, tmp_path / "old"))
    data = yaml.safe_load((folder / "MLmodel").read_text())
    kept = ("flavors", "model_uuid", "saved_input_example_info", "signature", "utc_time_created")
    old = {key: data[key] for key in kept} | {"mlflow_version": "2.9.2", "run_id": "0" * 32, "artifact_path": "model"}
    old["saved_input_example_info"].pop("serving_input_path")
    (folder / "MLmodel").write_text(yaml.safe_dump(old))
    package = read_trained(folder)
    assert package.format == "pickle"
    assert package.example is not None


def test_the_example_is_split_by_input_name(tmp_path: Path) -> None:
    arrays = {name: np.full((4, 2), value, np.float32) for name, value in (("left", 1), ("right", 2))}
    spec = signature(inputs=dict.fromkeys(arrays, (-1, 2)), outputs={"sum": (-1, 2)})
    folder = save(Sum(), tmp_path / "model", signature=spec, input_example=arrays, serialization_format="pickle")
    package = read_trained(folder)
    assert package.example is not None
    assert {name: float(array[0, 0]) for name, array in package.example.items()} == {"left": 1, "right": 2}


def test_a_single_tensor_without_a_name_gets_one(tmp_path: Path) -> None:
    inferred = infer_signature(image(4), np.zeros((4, 2), np.float32))
    package = read_trained(save(OneOutput().eval(), tmp_path / "model", signature=inferred))
    assert [spec.name for spec in (*package.inputs, *package.outputs)] == ["input", "output"]
    assert package.example is not None
    assert list(package.example) == ["input"]


def test_only_the_first_varying_dimension_is_the_batch(trained: Path) -> None:
    inputs = signature(inputs={"image": (-1, 3, -1, -1)}).to_dict()["inputs"]
    data = yaml.safe_load((trained / "MLmodel").read_text())["signature"] | {"inputs": inputs}
    assert read_trained(_edit(trained, signature=data)).inputs[0].shape == ("batch", 3, "image_dim2", "image_dim3")


def test_a_model_without_an_example_has_none(trained: Path) -> None:
    assert read_trained(_edit(trained, saved_input_example_info=None)).example is None


@pytest.mark.parametrize(
    ("changes", "code", "part"),
    [
        ({"flavors": {"sklearn": {}}}, "no_pytorch_flavor", "found: sklearn"),
        ({"signature": None, "saved_input_example_info": None}, "no_signature", "inputs"),
        ({"flavors": "none"}, "unreadable_file", "no flavors"),
        ({"flavors": {"pytorch": {"model_data": "../../elsewhere"}}}, "path_outside_folder", "'../../elsewhere'"),
        ({"flavors": {"pytorch": {"model_data": "nowhere"}}}, "no_model_file", "'nowhere'"),
        (
            {"saved_input_example_info": {"artifact_path": "/etc/passwd", "type": "ndarray"}},
            "path_outside_folder",
            "'/etc/passwd'",
        ),
        ({"signature": {"inputs": "[{", "outputs": "[]"}}, "unreadable_file", "MLmodel"),
    ],
)
def test_another_kind_of_mlmodel_is_refused(trained: Path, changes: dict[str, Any], code: str, part: str) -> None:
    with refused(code, part):
        read_trained(_edit(trained, **changes))


def test_a_signature_of_columns_is_refused_with_an_example_of_tensors(trained: Path) -> None:
    columns = ModelSignature(inputs=Schema([ColSpec("double", "x")]), outputs=Schema([ColSpec("double", "y")]))
    with refused("column_signature", "TensorSpec"):
        read_trained(_edit(trained, signature=columns.to_dict()))


@pytest.mark.parametrize("content", [b"flavors: [", b"\xff\xfe\0", b"", b"- a list\n"])
def test_a_corrupted_mlmodel_is_refused(trained: Path, content: bytes) -> None:
    (trained / "MLmodel").write_bytes(content)
    with refused("unreadable_file", "MLmodel"):
        read_trained(trained)


def test_a_folder_without_an_mlmodel_is_refused(tmp_path: Path) -> None:
    with refused("no_mlmodel"):
        read_trained(tmp_path)


@pytest.mark.parametrize("content", ['[[["a"]]]', "[[1, 2", '{"image": [1], "other": [2]}'])
def test_a_broken_example_is_refused(trained: Path, content: str) -> None:
    (trained / "input_example.json").write_text(content)
    with refused("unreadable_file", "input_example.json"):
        read_trained(trained)


def test_a_link_out_of_the_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    model = trained / "data" / "model.pt2"
    model.rename(tmp_path / "outside.pt2")
    model.symlink_to(tmp_path / "outside.pt2")
    with refused("path_outside_folder"):
        read_trained(trained)
