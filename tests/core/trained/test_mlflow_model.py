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

from onnx_release.errors import Refused
from onnx_release.records import TensorSpec
from onnx_release.trained.mlflow_model import read_trained
from tests.core.models import OneOutput, Sum, TwoHeads, image, save, signature


@pytest.fixture
def trained(trained_pt2: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(trained_pt2, tmp_path / "trained"))


def _edit(folder: Path, **changes: Any) -> Path:
    path = folder / "MLmodel"
    path.write_text(yaml.safe_dump(yaml.safe_load(path.read_text()) | changes))
    return folder


def test_a_pt2_model_is_read_with_its_signature_and_example(trained_pt2: Path) -> None:
    package = read_trained(trained_pt2)
    assert (package.kind, package.data_path) == ("pt2", trained_pt2.resolve() / "data" / "model.pt2")
    assert package.inputs == (TensorSpec(name="image", dtype="float32", shape=("batch", 3, 8, 8)),)
    assert [spec.name for spec in package.outputs] == ["positions", "uncertainties"]
    assert package.outputs[1].shape == ("batch", 2)
    assert package.example is not None
    np.testing.assert_array_equal(package.example["image"], image(4), strict=True)
    assert package.pytorch_version.startswith("2.")


def test_a_pickle_model_is_read_with_its_code(tmp_path: Path) -> None:
    code = tmp_path / "code_of_mine"
    code.mkdir()
    (code / "module.py").write_text("")
    folder = save(TwoHeads(), tmp_path / "model", serialization_format="pickle", code_paths=[str(code)])
    package = read_trained(folder)
    assert (package.kind, package.data_path.name) == ("pickle", "model.pth")
    assert package.code_paths == (folder.resolve() / "code",)


def test_a_folder_of_mlflow_2_is_read(trained_pickle: Path, tmp_path: Path) -> None:
    """MLflow 2 wrote fewer keys, and those that it did the same."""
    folder = Path(shutil.copytree(trained_pickle, tmp_path / "old"))
    data = yaml.safe_load((folder / "MLmodel").read_text())
    kept = ("flavors", "model_uuid", "saved_input_example_info", "signature", "utc_time_created")
    old = {key: data[key] for key in kept} | {"mlflow_version": "2.9.2", "run_id": "0" * 32, "artifact_path": "model"}
    old["saved_input_example_info"].pop("serving_input_path")
    (folder / "MLmodel").write_text(yaml.safe_dump(old))
    package = read_trained(folder)
    assert package.kind == "pickle"
    assert package.example is not None


def test_several_inputs_take_their_part_of_the_example(tmp_path: Path) -> None:
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
    ("changes", "words"),
    [
        ({"flavors": {"sklearn": {}}}, r"has no pytorch flavor \(found: sklearn\)"),
        ({"signature": None, "saved_input_example_info": None}, "names no inputs"),
        ({"flavors": "none"}, "cannot be read: it has no flavors"),
        ({"flavors": {"pytorch": {"model_data": "../../elsewhere"}}}, "leads out of it"),
        ({"flavors": {"pytorch": {"model_data": "nowhere"}}}, "neither model.pt2 nor model.pth"),
        ({"saved_input_example_info": {"artifact_path": "/etc/passwd", "type": "ndarray"}}, "leads out of it"),
        ({"signature": {"inputs": "[{", "outputs": "[]"}}, "cannot be read"),
    ],
)
def test_an_mlmodel_that_is_not_one_of_ours_is_refused(trained: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words):
        read_trained(_edit(trained, **changes))


def test_a_signature_of_columns_is_refused_with_the_way_to_write_one(trained: Path) -> None:
    columns = ModelSignature(inputs=Schema([ColSpec("double", "x")]), outputs=Schema([ColSpec("double", "y")]))
    with pytest.raises(Refused, match=r"has columns, not tensors.*TensorSpec"):
        read_trained(_edit(trained, signature=columns.to_dict()))


@pytest.mark.parametrize("content", [b"flavors: [", b"\xff\xfe\0", b"", b"- a list\n"])
def test_a_corrupted_mlmodel_is_refused(trained: Path, content: bytes) -> None:
    (trained / "MLmodel").write_bytes(content)
    with pytest.raises(Refused, match="MLmodel: cannot be read"):
        read_trained(trained)


def test_a_folder_without_an_mlmodel_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="no MLflow model"):
        read_trained(tmp_path)


@pytest.mark.parametrize("content", ['[[["a"]]]', "[[1, 2", '{"image": [1], "other": [2]}'])
def test_a_broken_example_is_refused(trained: Path, content: str) -> None:
    (trained / "input_example.json").write_text(content)
    with pytest.raises(Refused, match=r"input_example\.json: cannot be read"):
        read_trained(trained)


def test_a_link_out_of_the_folder_is_refused(trained: Path, tmp_path: Path) -> None:
    model = trained / "data" / "model.pt2"
    model.rename(tmp_path / "outside.pt2")
    model.symlink_to(tmp_path / "outside.pt2")
    with pytest.raises(Refused, match="leads out of it"):
        read_trained(trained)
