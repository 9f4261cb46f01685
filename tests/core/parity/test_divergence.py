from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn

from examples.localization import BackboneSize, LocalizationNet
from onnx_release.artifact.digests import describe_folder
from onnx_release.export.contract import ModelContract
from onnx_release.export.fallback import ExportOptions, export_onnx
from onnx_release.export.strategies import retrace
from onnx_release.parity.divergence import search
from onnx_release.parity.divergence.search import find_divergence
from onnx_release.records import Divergence, TensorSpec
from onnx_release.samples.sample import Sample
from tests.core.models import TwoHeads


class Attentive(nn.Module):
    """A residual convolution with a batch norm, attention, a GRU and a layer norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv1d(6, 6, 3, padding=1), nn.BatchNorm1d(6), nn.SiLU())
        self.embed = nn.Linear(6, 16)
        layer = nn.TransformerEncoderLayer(16, 2, 32, activation="gelu", batch_first=True, norm_first=True)
        self.encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.memory = nn.GRU(16, 8, batch_first=True)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = x + self.stem(x)
        sequence, _ = self.memory(self.encoder(self.embed(x.transpose(1, 2))))
        positions = self.head(self.norm(sequence[:, -1]))
        return positions, positions.abs().argmax(dim=1)


class Chain(nn.Module):
    """Twenty factors in a row, whose errors add up."""

    def __init__(self) -> None:
        super().__init__()
        self.factors = nn.ParameterList(torch.rand(4) + 0.5 for _ in range(20))

    def forward(self, x: Tensor) -> Tensor:
        for factor in self.factors:
            x = torch.abs(x * factor)
        return x


@dataclass(frozen=True)
class Case:
    """An exported model, its program, and inputs at another batch size than that of the export."""

    folder: Path
    program: torch.export.ExportedProgram
    sample: Sample

    def find(self, **options: Any) -> Divergence | None:
        return find_divergence(self.program, self.folder, self.sample, **options)

    def found(self, **options: Any) -> Divergence:
        found = self.find(**options)
        assert found is not None
        return found

    def copy(self, folder: Path) -> Case:
        folder.mkdir()
        for file in self.folder.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        return replace(self, folder=folder)


def _case(model: nn.Module, shape: tuple[int, ...], outputs: dict[str, tuple[int, ...]], folder: Path) -> Case:
    """Export with random weights: equal ones, such as those of new norms, become one initializer with many readers."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.is_floating_point():
                tensor.add_(0.2 * torch.rand(tensor.shape, generator=generator) - 0.1)
    return _exported(model.eval(), shape, outputs, folder, whole=isinstance(model, TwoHeads))


def _exported(
    model: Any, shape: tuple[int, ...], outputs: dict[str, tuple[int, ...]], folder: Path, whole: bool = False
) -> Case:
    """Export a model; with `whole` twice, as a release does: once for the file and once for the names."""

    def values(batch: int) -> dict[str, Any]:
        return {"x": np.random.default_rng(batch).standard_normal((batch, *shape)).astype(np.float32)}

    contract = ModelContract(
        inputs=(TensorSpec(name="x", dtype="float32", shape=("batch", *shape)),),
        outputs=tuple(
            TensorSpec(name=name, dtype="int64" if not size else "float32", shape=("batch", *size))
            for name, size in outputs.items()
        ),
        example=values(2),
    )
    folder.mkdir()
    if whole:
        strategy = export_onnx(model, folder, contract, ExportOptions(device="cpu")).strategy
        conversion = retrace(model, contract, strategy)
    else:
        conversion = retrace(model, contract, "dynamo")
        ir.save(conversion.graph, folder / "model.onnx", external_data="model.onnx.data")
    assert conversion.program is not None
    return Case(folder, conversion.program, Sample(name="seed 1", inputs=values(3), batch_size=3))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("exported")


@pytest.fixture(scope="module")
def localization(folder: Path) -> Case:
    size = BackboneSize(depths=(1, 1, 1, 1), widths=(8, 16, 24, 32))
    return _case(LocalizationNet(size), (3, 128, 32), {"positions": (2,), "uncertainties": (2,)}, folder / "net")


@pytest.fixture(scope="module")
def attentive(folder: Path) -> Case:
    return _case(Attentive(), (6, 5), {"positions": (2,), "best": ()}, folder / "attentive")


@pytest.fixture(scope="module")
def two_heads(folder: Path) -> Case:
    return _case(TwoHeads(), (3, 8, 8), {"positions": (2,), "uncertainties": (2,)}, folder / "heads")


def _graph(folder: Path) -> onnx.ModelProto:
    return onnx.load(folder / "model.onnx", load_external_data=False)


def _change(folder: Path, name: str, change: Callable[[Any], Any]) -> None:
    """Change the bytes of one initializer, in the file of external data or in the graph."""
    model = _graph(folder)
    tensor = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    place = {entry.key: entry.value for entry in tensor.external_data}
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    if place:
        data, start = folder / place["location"], int(place.get("offset", 0))
        old = bytearray(data.read_bytes())
        values = np.frombuffer(old, dtype, int(place["length"]) // dtype.itemsize, start)
        old[start : start + values.nbytes] = change(values).astype(dtype).tobytes()
        data.write_bytes(old)
    else:
        array = onnx.numpy_helper.to_array(tensor)
        tensor.CopyFrom(onnx.numpy_helper.from_array(change(array).astype(dtype).reshape(array.shape), name))
        (folder / "model.onnx").write_bytes(model.SerializeToString())


def _shake(values: Any) -> Any:
    return values + np.random.default_rng(0).uniform(0.2, 0.4, values.shape)


def _readers(folder: Path, name: str) -> list[str]:
    return [node.name for node in _graph(folder).graph.node if name in node.input]


@pytest.mark.parametrize("case", ["localization", "attentive", "two_heads"])
def test_a_correct_graph_has_no_divergence(case: str, request: pytest.FixtureRequest) -> None:
    assert request.getfixturevalue(case).find() is None


@pytest.mark.parametrize(
    ("weight", "module", "kind"),
    [
        ("backbone.0.weight", "backbone.0", "Conv2d"),
        ("backbone.3.bias", "backbone.3", "ChannelNorm"),
        ("backbone.5.depthwise.bias", "backbone.5.depthwise", "Conv2d"),
        ("backbone.8.norm.weight", "backbone.8.norm", "LayerNorm"),
        ("backbone.8.layer_scale", "backbone.8", "Block"),
        ("backbone.11.contract.bias", "backbone.11.contract", "Linear"),
        ("position_head.0.weight", "position_head.0", "Linear"),
        ("uncertainty_head.8.bias", "uncertainty_head.8", "Linear"),
    ],
)
def test_a_changed_weight_of_the_reference_model_is_traced_to_its_module(
    localization: Case, tmp_path: Path, weight: str, module: str, kind: str
) -> None:
    case = localization.copy(tmp_path / "copy")
    _change(case.folder, weight, _shake)
    found = case.found()
    assert found.node == _readers(case.folder, weight)[0]
    assert (found.module, found.module_type) == (module, kind)
    assert (found.sample, found.batch_size) == ("seed 1", 3)
    assert found.mae is not None
    assert found.max_abs is not None
    assert found.scale is not None
    assert found.mae <= found.max_abs
    assert found.max_abs > 1e-3 * found.scale


def test_every_weight_of_a_deep_model_is_traced_to_its_reader(attentive: Case, tmp_path: Path) -> None:
    weights = [t.name for t in _graph(attentive.folder).graph.initializer if t.data_type == onnx.TensorProto.FLOAT]
    # The weights of the GRU have only generated names: `val_…`.
    readers = [reader for name in weights for reader in _readers(attentive.folder, name)]
    assert any("gru" in reader for reader in readers)
    weights = [name for name in weights if "." in name or "gru" in _readers(attentive.folder, name)[0]]
    assert len(weights) > 15
    missed = {}
    for index, weight in enumerate(weights):
        case = attentive.copy(tmp_path / str(index))
        _change(case.folder, weight, _shake)
        found = case.find()
        readers = _readers(case.folder, weight)
        if found is None or found.node != readers[0]:
            missed[weight] = (readers, found)
    assert not missed


def test_the_changed_weight_of_a_linear_layer_of_two_nodes_is_found(localization: Case, tmp_path: Path) -> None:
    case = localization.copy(tmp_path / "copy")
    graph = _graph(case.folder).graph
    add = next(node for node in graph.node if "backbone.5.expand.bias" in node.input)
    multiply = next(node for node in graph.node if node.output[0] in add.input)
    _change(case.folder, multiply.input[1], lambda values: values + (np.arange(values.size) == 7))
    found = case.found()
    assert (found.node, found.op_type, found.value) == (multiply.name, "MatMul", add.output[0])
    assert found.module == "backbone.5.expand"
    assert "differs from the model's 'backbone.5.expand.weight', the largest difference is 1" in found.note


def test_a_convolution_with_a_folded_norm_keeps_its_module(two_heads: Case, tmp_path: Path) -> None:
    case = two_heads.copy(tmp_path / "copy")
    _change(case.folder, "conv.weight", _shake)
    found = case.found()
    assert (found.op_type, found.module, found.module_type) == ("Conv", "conv", "Conv2d")


def test_a_program_that_was_saved_keeps_its_modules(two_heads: Case, tmp_path: Path) -> None:
    model = TwoHeads().eval()
    program = torch.export.export(
        model, (torch.from_numpy(two_heads.sample.inputs["x"]),), dynamic_shapes=({0: torch.export.Dim("batch")},)
    )
    torch.export.save(program, tmp_path / "model.pt2")
    loaded = torch.export.load(tmp_path / "model.pt2")
    case = _exported(loaded, (3, 8, 8), {"positions": (2,), "uncertainties": (2,)}, tmp_path / "out", whole=True)
    assert case.find() is None
    _change(case.folder, "linear.weight", _shake)
    assert (case.found().module, case.found().node) == ("linear", _readers(case.folder, "linear.weight")[0])


def test_a_node_that_does_not_run_is_found(attentive: Case, tmp_path: Path) -> None:
    case = attentive.copy(tmp_path / "copy")
    node = next(node for node in _graph(case.folder).graph.node if node.op_type == "Reshape")
    _change(case.folder, node.input[1], lambda shape: np.full_like(shape, 7))
    found = case.found()
    assert found.node == node.name
    assert "does not run" in found.note
    assert found.mae is None


def test_an_integer_value_is_compared_exactly(attentive: Case, tmp_path: Path) -> None:
    case = attentive.copy(tmp_path / "copy")
    model = _graph(case.folder)
    node = next(node for node in model.graph.node if node.op_type == "ArgMax")
    node.op_type = "ArgMin"
    (case.folder / "model.onnx").write_bytes(model.SerializeToString())
    found = case.found()
    assert (found.node, found.op_type, found.value) == (node.name, "ArgMin", "best")


def test_nothing_in_the_folder_is_changed(two_heads: Case) -> None:
    before = describe_folder(two_heads.folder)
    two_heads.find()
    assert describe_folder(two_heads.folder) == before


@pytest.mark.parametrize(("values", "size"), [(1, 2**28), (64, 1)])
def test_a_search_in_small_parts_finds_the_same(
    two_heads: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, values: int, size: int
) -> None:
    case = two_heads.copy(tmp_path / "copy")
    _change(case.folder, "linear.weight", _shake)
    whole = case.found()
    monkeypatch.setattr(search, "CHUNK_VALUES", values)
    monkeypatch.setattr(search, "CHUNK_BYTES", size)
    assert case.found() == whole


def test_without_common_names_the_note_has_the_reason(two_heads: Case, tmp_path: Path) -> None:
    case = two_heads.copy(tmp_path / "copy")
    model = _graph(case.folder)
    kept = {value.name for value in (*model.graph.output, *model.graph.input, *model.graph.initializer)}
    for node in model.graph.node:
        for names in (node.input, node.output):
            names[:] = [name if name in kept or not name else f"v_{name}" for name in names]
    del model.graph.value_info[:]
    (case.folder / "model.onnx").write_bytes(model.SerializeToString())
    _change(case.folder, "linear.bias", _shake)
    found = case.found()
    assert found.value in ("positions", "uncertainties")
    assert "PyTorch has no values between" in found.note


def test_a_search_without_time_left_has_a_note(two_heads: Case) -> None:
    found = two_heads.found(max_s=-1.0)
    assert found.node is None
    assert "stopped after" in found.note


def test_small_errors_that_add_up_have_a_note(folder: Path, tmp_path: Path) -> None:
    case = _case(Chain(), (4,), {"y": (4,)}, folder / "chain").copy(tmp_path / "copy")
    for tensor in _graph(case.folder).graph.initializer:
        if tensor.name.startswith("factors."):
            _change(case.folder, tensor.name, lambda values: values * (1 + 2.5e-5))
    found = case.found()
    assert "differences add up" in found.note
    assert found.node


def test_a_program_that_differs_from_the_model_has_a_note(two_heads: Case) -> None:
    wrong = {name: np.ones((3, 2), np.float32) for name in ("positions", "uncertainties")}
    assert "tracing changed it" in two_heads.found(expected=wrong).note
