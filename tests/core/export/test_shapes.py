"""Releases of models with several varying dimensions, odd names, and values that invented inputs would break."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pytest
import torch
from mlflow import pytorch as mlflow_pytorch
from mlflow.models import infer_signature
from torch import Tensor, nn

from tests.core.judging import Judged, Specs, assert_equals_pytorch, judge, log_model, values

EDGES = np.array([[0, 1, 2, 3, 4, 0, 1], [1, 2, 3, 4, 0, 2, 3]])


def release(path: Path, model: nn.Module, inputs: Specs, outputs: Specs | None, example: Any, **more: Any) -> Judged:
    form = more.pop("form", "pickle")
    return judge(log_model(model, path / "logged", inputs, outputs, example, form=form), path / "onnx", **more)


class Graph(nn.Module):
    """One layer of message passing over nodes and edges."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16, 4)

    def forward(self, x: Tensor, edge_index: Tensor) -> Tensor:
        messages = self.linear(x)[edge_index[0]]
        return torch.zeros(x.shape[0], 4).index_add(0, edge_index[1], messages)


@pytest.mark.parametrize(
    "input_spec",
    [
        None,
        [
            {"name": "x", "dtype": "float32", "shape": ["number of nodes", 16], "sizes": {"number of nodes": [6, 9]}},
            {"name": "edge_index", "dtype": "int64", "shape": [2, "edges"], "vocabulary_size": 5},
        ],
    ],
)
def test_nodes_and_edges_of_a_graph_have_sizes_of_their_own(tmp_path: Path, input_spec: Any) -> None:
    inputs: Specs = [("x", "float32", (-1, 16)), ("edge_index", "int64", (2, -1))]
    example = {"x": values(5, 16), "edge_index": EDGES}
    model = Graph()
    judged = release(tmp_path, model, inputs, [("h", "float32", (-1, 4))], example, input_spec=input_spec)
    assert_equals_pytorch(judged, model, x=values(8, 16), edge_index=np.array([[0, 7, 3], [7, 0, 3]]))
    assert judged.artifact is not None
    assert "no_common_batch" in {finding.code for finding in judged.artifact.findings}
    nodes, edges = (spec.shape for spec in judged.artifact.inputs)
    assert judged.artifact.outputs[0].shape[0] == nodes[0] != edges[1]
    assert all(str(size).isidentifier() for size in (nodes[0], edges[1]))


class Pair(nn.Module):
    """Similarities of images and texts, whose counts and lengths differ."""

    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Embedding(20, 4)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.image(image) @ self.text(ids).mean(1).T


def test_images_and_texts_are_batches_of_their_own(tmp_path: Path) -> None:
    model = Pair()
    inputs: Specs = [("image", "float32", (-1, 6)), ("ids", "int64", (-1, -1))]
    example = {"image": values(2, 6), "ids": np.arange(15).reshape(3, 5)}
    judged = release(tmp_path, model, inputs, [("similarity", "float32", (-1, -1))], example)
    assert_equals_pytorch(judged, model, image=values(7, 6), ids=np.full((4, 9), 3))


class Recurrent(nn.Module):
    """A recurrent network that takes and returns its states, whose batch is the second dimension."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(4, 6, num_layers=2, batch_first=True)

    def forward(self, x: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        outputs, state = self.gru(x, state)
        return outputs[:, -1], state


def test_a_graph_more_general_than_its_signature_is_a_warning(tmp_path: Path) -> None:
    """`infer_signature` writes -1 for the first dimension alone: here for the layers, and 3 for the batch."""
    model = Recurrent()
    inputs: Specs = [("x", "float32", (-1, 5, 4)), ("state", "float32", (2, -1, 6))]
    outputs: Specs = [("y", "float32", (-1, 6)), ("next", "float32", (-1, 3, 6))]
    judged = release(tmp_path, model, inputs, outputs, {"x": values(3, 5, 4), "state": values(2, 3, 6)})
    assert_equals_pytorch(judged, model, x=values(4, 5, 4), state=values(2, 4, 6))
    assert judged.artifact is not None
    assert judged.artifact.outputs[1].shape == (2, "batch", 6)
    assert [attempt.outcome for attempt in judged.artifact.attempts] == ["taken"]
    (finding,) = [finding for finding in judged.artifact.findings if finding.code == "more_general"]
    assert (finding.severity, "dimension 1 of the output 'next' varies" in finding.message) == ("warning", True)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv1d(4, 5, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


@pytest.mark.parametrize(("name", "dimension"), [("mel-spectrogram", None), ("x", "3rd axis/längd"), ("conv", None)])
def test_names_that_are_not_identifiers_vary_like_others(tmp_path: Path, name: str, dimension: str | None) -> None:
    """`conv` is also the name of a value inside the graph."""
    model = Convolution()
    spec = [{"name": name, "dtype": "float32", "shape": ["batch", 4, dimension]}] if dimension else None
    inputs: Specs = [(name, "float32", (-1, 4, -1))]
    judged = release(tmp_path, model, inputs, [("y", "float32", (-1, 5, -1))], values(3, 4, 12), input_spec=spec)
    assert_equals_pytorch(judged, model, **{name: values(2, 4, 31)})
    assert judged.parity is not None
    assert judged.artifact is not None
    assert {comparison.shape[-1] for comparison in judged.parity.comparisons} == {6, 12, 13, 24}
    assert [attempt.outcome for attempt in judged.artifact.attempts] == ["taken"]


class Logarithm(nn.Module):
    """A model of positive values."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.log(x).sum(1)


class Categories(nn.Module):
    """A table whose last column is a category from 0 to 4, as a float."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.linear = nn.Embedding(5, 3), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.cat([x[:, :3], self.table(x[:, 3].long())], 1))


class Missing(nn.Module):
    """A table in which NaN is a missing value."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.nan_to_num(x), torch.isnan(x).float()], 1)


def _table() -> npt.NDArray[np.float32]:
    table = values(4, 4)
    table[:, 3] = [0, 4, 2, 4]
    return table


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (Logarithm(), np.abs(values(3, 8)) + 0.1),
        (Logarithm(), np.abs(values(1, 8)) + 0.1),
        (Categories(), _table()),
        (Missing(), np.where(np.eye(4, dtype=bool), np.nan, values(4, 4)).astype(np.float32)),
    ],
)
def test_seeded_values_are_values_that_the_model_takes(
    tmp_path: Path, model: nn.Module, example: npt.NDArray[np.float32]
) -> None:
    with torch.no_grad():
        width = model(torch.from_numpy(example)).shape[1:]
    inputs: Specs = [("x", "float32", (-1, example.shape[1]))]
    judged = release(tmp_path, model, inputs, [("y", "float32", (-1, *width))], example)
    assert_equals_pytorch(judged, model, x=example)
    assert judged.parity is not None
    compared = {(c.sample, c.batch_size) for c in judged.parity.comparisons if c.sample.startswith("seed")}
    assert compared == {("seed 11", 1), ("seed 11", 5), ("seed 23", 1)}


@pytest.mark.parametrize("table", [True, False])
def test_a_table_of_numbers_is_one_input(tmp_path: Path, table: bool) -> None:
    frame = pd.DataFrame(values(4, 3), columns=["a", "b", "c"])
    frame["b"] = [1, 2, 3, 4] if table else ["u", "v", "w", "u"]
    model = nn.Linear(3, 2).eval()
    mlflow_pytorch.save_model(
        model,
        tmp_path / "logged",
        signature=infer_signature(frame, values(4, 2)),
        input_example=frame,
        pip_requirements=["torch"],
        serialization_format="pickle",
    )
    judged = judge(tmp_path / "logged", tmp_path / "onnx")
    if table:
        assert_equals_pytorch(judged, model, input=frame.to_numpy(np.float32))
    else:
        assert judged.code == "column_signature"
        assert "a, b, c" in judged.text
        assert "TensorSpec(np.dtype('float32'), (-1, 3), 'features')" in judged.text


@pytest.mark.parametrize(
    ("model", "dtypes", "right"),
    [
        (nn.Linear(8, 3), ("float64", "float32"), "float32"),
        (nn.Linear(8, 3).half(), ("float32", "float16"), "float16"),
        (nn.Embedding(4, 3), ("float32", "float32"), "int64"),
    ],
)
def test_a_dtype_that_the_model_does_not_take_is_refused_with_the_right_one(
    tmp_path: Path, model: nn.Module, dtypes: tuple[str, str], right: str
) -> None:
    example = np.ones((3, 8), dtypes[0])
    judged = release(tmp_path, model, [("x", dtypes[0], (-1, 8))], [("y", dtypes[1], (-1, 3))], example)
    assert judged.code == "dtype_mismatch"
    assert f"the input 'x' is {dtypes[0]} in the signature, and the model runs only with {right}" in judged.text
    assert f"TensorSpec(np.dtype('{right}'), (-1, 8), 'x')" in judged.text
    assert "batch_sizes" not in judged.text


class SameName(nn.Module):
    def forward(self, image: Tensor) -> dict[str, Tensor]:
        return {"image": image * 2}


@pytest.mark.parametrize("outputs", [[("image", "float32", (-1, 8))], None])
def test_an_output_with_the_name_of_an_input_is_refused_before_the_export(tmp_path: Path, outputs: Any) -> None:
    judged = release(tmp_path, SameName(), [("image", "float32", (-1, 8))], outputs, values(3, 8))
    assert judged.code == "ambiguous_names"
    assert "one name for an input and for an output: image" in judged.text
    assert ("'image_out'" in judged.text) == bool(outputs)


class Pooled(nn.Module):
    """A text and its mask, which need one length."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return (self.table(ids) * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)


def test_a_script_keeps_two_lengths_that_must_be_equal(tmp_path: Path) -> None:
    model = Pooled()
    mask = np.tri(4, 6, 2, dtype=np.float32)
    inputs: Specs = [("ids", "int64", (-1, -1)), ("mask", "float32", (-1, -1))]
    example = {"ids": np.arange(24).reshape(4, 6) % 20, "mask": mask}
    judged = release(tmp_path, torch.jit.script(model), inputs, [("y", "float32", (-1, 4))], example)
    assert_equals_pytorch(judged, model, ids=np.full((2, 9), 7), mask=np.ones((2, 9), np.float32))


def test_a_state_whose_batch_is_signed_as_fixed_is_refused_with_the_way_to_describe_it(tmp_path: Path) -> None:
    inputs: Specs = [("x", "float32", (-1, 5, 4)), ("state", "float32", (-1, 3, 6))]
    outputs: Specs = [("y", "float32", (-1, 6)), ("next", "float32", (-1, 3, 6))]
    judged = release(tmp_path, Recurrent(), inputs, outputs, {"x": values(3, 5, 4), "state": values(2, 3, 6)})
    assert judged.code == "model_failed"
    assert "share no batch" in judged.text
    assert '"name": "state", "dtype": "float32", "shape": ["state_dim0", 3, 6]' in judged.text
