"""Loading of trained models, and files that are refused before they run code."""

from __future__ import annotations

import contextlib
import importlib
import json
import logging
import shutil
import sys
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from onnx_release.errors import Refused, TrainedModelRefused
from onnx_release.trained.load import load_trained
from onnx_release.trained.mlflow_model import TrainedPackage, read_trained
from tests.core.judging import judge, log_model
from tests.core.models import Masked, Payload, TwoHeads, image, save
from tests.refusals import refused


def _rewrite(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> None:
    """Copy a pt2 archive with some of its records changed."""
    reader, writer = torch._C.PyTorchFileReader(str(source)), torch._C.PyTorchFileWriter(str(target))
    for name in reader.get_all_records():
        if not name.startswith(".data/") and name != "byteorder":  # the writer adds these itself
            content = change(name, reader.get_record(name))
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()


def _graph_changer(change: Callable[[dict[str, Any]], None]) -> Callable[[str, bytes], bytes]:
    def rewrite(name: str, content: bytes) -> bytes:
        if name != "models/model.json":
            return content
        graph = json.loads(content)
        change(graph)
        return json.dumps(graph).encode()

    return rewrite


@pytest.fixture
def archive(trained_pt2: Path, tmp_path: Path) -> TrainedPackage:
    """A copy of the pt2 model that a test may change."""
    return read_trained(Path(shutil.copytree(trained_pt2, tmp_path / "trained")))


def _changed(package: TrainedPackage, change: Callable[[str, bytes], bytes]) -> TrainedPackage:
    original = package.data_path.with_suffix(".original")
    package.data_path.rename(original)
    _rewrite(original, package.data_path, change)
    return package


def test_a_pt2_model_is_loaded_where_pickles_are_not_allowed(trained_pt2: Path) -> None:
    model = load_trained(read_trained(trained_pt2), allow_pickle=False)
    assert isinstance(model, torch.export.ExportedProgram)
    inputs = torch.from_numpy(image(3))
    for got, expected in zip(model.module()(inputs), TwoHeads().eval()(inputs), strict=True):
        torch.testing.assert_close(got, expected)


def test_a_rewritten_archive_is_loaded(archive: TrainedPackage) -> None:
    """The refusals below are therefore caused by the change and not by the rewriting."""
    load_trained(_changed(archive, lambda _, content: content), allow_pickle=False)


def test_a_pickle_is_not_opened_where_pickles_are_not_allowed(trained_pickle: Path) -> None:
    with refused("pickle", "'pt2'", "allow_pickle"):
        load_trained(read_trained(trained_pickle), allow_pickle=False)


def test_a_pickle_is_loaded_in_evaluation_mode(trained_pickle: Path) -> None:
    model = load_trained(read_trained(trained_pickle), allow_pickle=True)
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())


def test_a_pickled_class_is_imported_from_the_logged_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = tmp_path / "their_code"
    code.mkdir()
    (code / "__init__.py").write_text("")
    (code / "net.py").write_text("import torch\nclass Net(torch.nn.Linear):\n    pass\n")
    with monkeypatch.context() as training:
        training.syspath_prepend(tmp_path)
        net = importlib.import_module("their_code.net").Net(2, 2)
        save(net, tmp_path / "model", serialization_format="pickle", code_paths=[str(code)], input_example=None)
    # The release runs in another process, which has not imported the class.
    for name in ("their_code", "their_code.net"):
        del sys.modules[name]
    shutil.rmtree(code)
    before = list(sys.path)
    model = load_trained(read_trained(tmp_path / "model"), allow_pickle=True)
    assert type(model).__name__ == "Net"
    assert sys.path == before


def test_loading_emits_no_warning(trained_pt2: Path, caplog: pytest.LogCaptureFixture) -> None:
    with warnings.catch_warnings(), caplog.at_level(logging.WARNING):
        warnings.simplefilter("error")
        load_trained(read_trained(trained_pt2), allow_pickle=False)
    assert not caplog.records


@pytest.mark.parametrize("allow_pickle", [False, True])
@pytest.mark.parametrize("kept", [0, 100, 0.5, 0.99])
def test_a_truncated_archive_is_refused(archive: TrainedPackage, kept: float, allow_pickle: bool) -> None:
    content = archive.data_path.read_bytes()
    archive.data_path.write_bytes(content[: int(kept * len(content)) if kept < 1 else int(kept)])
    with pytest.raises(TrainedModelRefused, match=r"model\.pt2.*Log the model again") as caught:
        load_trained(archive, allow_pickle=allow_pickle)
    assert caught.value.code in {"damaged_pt2", "load_failed"}


@pytest.mark.parametrize("source", ["trained_pt2", "trained_pickle"])
def test_a_flipped_bit_in_a_weight_is_refused(source: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    package = read_trained(Path(shutil.copytree(request.getfixturevalue(source), tmp_path / "trained")))
    weight = TwoHeads().conv.weight.detach().numpy().tobytes()
    content = package.data_path.read_bytes()
    assert weight in content
    package.data_path.write_bytes(content.replace(weight, bytes([weight[0] ^ 1]) + weight[1:]))
    with refused("load_failed", "checksum"):
        load_trained(package, allow_pickle=True)


def test_a_truncated_pickle_is_refused(trained_pickle: Path, tmp_path: Path) -> None:
    package = read_trained(Path(shutil.copytree(trained_pickle, tmp_path / "trained")))
    package.data_path.write_bytes(package.data_path.read_bytes()[:500])
    with refused("load_failed", "model.pth"):
        load_trained(package, allow_pickle=True)


@pytest.mark.parametrize("content", [{"weight": torch.ones(2)}, "a text"])
def test_a_pickle_of_another_object_is_refused(trained_pickle: Path, tmp_path: Path, content: object) -> None:
    package = read_trained(Path(shutil.copytree(trained_pickle, tmp_path / "trained")))
    torch.save(content, package.data_path)
    with refused("not_a_module", type(content).__name__):
        load_trained(package, allow_pickle=True)


def _scripted(trained: Path, folder: Path, model: nn.Module) -> TrainedPackage:
    package = read_trained(Path(shutil.copytree(trained, folder)))
    torch.jit.save(torch.jit.script(model), package.data_path)
    return read_trained(folder)


def test_a_torchscript_module_is_loaded_where_pickles_are_not_allowed(trained_pickle: Path, tmp_path: Path) -> None:
    package = _scripted(trained_pickle, tmp_path / "trained", nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).train())
    assert package.format == "torchscript"
    model = load_trained(package, allow_pickle=False)
    assert isinstance(model, torch.jit.ScriptModule)
    assert not model.training


class WritesFile(nn.Module):
    """A module that uses the operator of TorchScript that writes files."""

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        torch.save(x, self.path)
        return x


def test_a_torchscript_module_that_touches_files_is_refused_unopened(trained_pickle: Path, tmp_path: Path) -> None:
    package = _scripted(trained_pickle, tmp_path / "trained", WritesFile(str(tmp_path / "written")))
    with refused("foreign_operators", "torch.save"):
        load_trained(package, allow_pickle=False)
    assert not (tmp_path / "written").exists()


@pytest.mark.parametrize("serialization", ["pt2", "pickle"])
def test_every_tensor_with_nan_or_infinity_is_named_and_counted(tmp_path: Path, serialization: str) -> None:
    model = TwoHeads().eval()
    with torch.no_grad():
        model.linear.weight[0, :3] = torch.nan
        model.conv.bias[1] = torch.inf  # type: ignore[index]
    model.norm.running_mean[0] = -torch.inf  # type: ignore[index]
    package = read_trained(save(model, tmp_path / "trained", serialization_format=serialization))
    parts = ("linear.weight has 3 of 32", "conv.bias has 1 of 8", "norm.running_mean has 1 of 8")
    with refused("nan_weights", *parts):
        load_trained(package, allow_pickle=True)


@pytest.mark.parametrize("serialization", ["pt2", "pickle"])
def test_a_mask_of_zero_and_minus_infinity_passes(tmp_path: Path, serialization: str) -> None:
    load_trained(
        read_trained(save(Masked().eval(), tmp_path / "trained", serialization_format=serialization)), allow_pickle=True
    )


class Bounded(nn.Module):
    """Infinite bounds and a value that is not set, as buffers; and bounds as a frozen parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 2)
        self.register_buffer("low", torch.tensor([-1.0, -torch.inf]))
        self.register_buffer("best", torch.tensor(torch.nan))
        self.high = nn.Parameter(torch.tensor([1.0, torch.inf]), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        assert isinstance(self.low, torch.Tensor)
        return torch.minimum(torch.maximum(self.linear(x), self.low), self.high)


@pytest.mark.parametrize("form", ["pt2", "pickle"])
def test_bounds_and_unset_values_with_infinity_and_nan_are_released_with_a_warning(tmp_path: Path, form: str) -> None:
    model, rows = Bounded().eval(), np.random.default_rng(1).standard_normal((3, 8)).astype(np.float32) * 9
    inputs, outputs = [("x", "float32", (-1, 8))], [("y", "float32", (-1, 2))]
    judged = judge(log_model(model, tmp_path / "logged", inputs, outputs, rows, form=form), tmp_path / "onnx")
    np.testing.assert_allclose(judged.run(x=rows)["y"], model(torch.from_numpy(rows)).detach().numpy(), atol=1e-5)
    assert judged.artifact is not None
    [message] = [f.message for f in judged.artifact.findings if f.code == "non_finite_buffers"]
    assert ["low has 1 of 2" in message, "high has 1 of 2" in message] == [True, True]


@pytest.mark.parametrize("record", ["data/sample_inputs/model.pt", "data/weights/weight_1", "data/constants/opaque"])
def test_a_pickle_hidden_in_an_archive_is_not_run(archive: TrainedPackage, tmp_path: Path, record: str) -> None:
    marker = tmp_path / "marker"
    torch.save(Payload(marker), tmp_path / "payload")
    payload = (tmp_path / "payload").read_bytes()

    def plant(name: str, content: bytes) -> bytes:
        if name == "data/weights/model_weights_config.json":
            config = json.loads(content)
            entry = next(entry for entry in config["config"].values() if entry["path_name"] == "weight_1")
            entry["use_pickle"] = record.endswith("weight_1")
            return json.dumps(config).encode()
        if name == "data/constants/model_constants_config.json" and record.endswith("opaque"):
            entry = {"path_name": "opaque", "is_param": False, "use_pickle": True, "tensor_meta": None}
            return json.dumps({"config": {"object": entry}}).encode()
        return payload if name == record else content

    package = _changed(archive, plant)
    if record.endswith("opaque"):
        with zipfile.ZipFile(package.data_path, "a") as archive_file:
            archive_file.writestr("model/data/constants/opaque", payload)
    with refused("code_in_pt2", f"record {record}"):
        load_trained(package, allow_pickle=False)
    assert not marker.exists()


def test_the_hidden_pickle_runs_where_pickles_are_allowed(archive: TrainedPackage, tmp_path: Path) -> None:
    """The payload of the test above therefore works, and only the refusal keeps it from running."""
    torch.save(Payload(tmp_path / "marker"), tmp_path / "payload")
    payload = (tmp_path / "payload").read_bytes()
    changed = _changed(archive, lambda name, old: payload if name == "data/sample_inputs/model.pt" else old)
    with refused("load_failed"):
        load_trained(changed, allow_pickle=True)
    assert (tmp_path / "marker").exists()


def _evil_symbol(marker: Path) -> Callable[[dict[str, Any]], None]:
    def change(graph: dict[str, Any]) -> None:
        for size in graph["graph_module"]["graph"]["tensor_values"]["image"]["sizes"]:
            if "as_expr" in size:
                size["as_expr"]["expr_str"] = f"__import__('os').mkdir({str(marker)!r})"

    return change


def _evil_guard(marker: Path) -> Callable[[dict[str, Any]], None]:
    return lambda graph: graph.update(guards_code=[f"__import__('os').mkdir({str(marker)!r}) is None"])


@pytest.mark.parametrize("evil", [_evil_symbol, _evil_guard])
def test_code_hidden_in_the_graph_is_not_run(
    archive: TrainedPackage, tmp_path: Path, evil: Callable[[Path], Callable[[dict[str, Any]], None]]
) -> None:
    """torch passes symbolic sizes to sympy, which uses Python's eval, and it compiles guards."""
    marker = tmp_path / "marker"
    package = _changed(archive, _graph_changer(evil(marker)))
    with refused("code_in_pt2", "models/model.json: evaluates", "mkdir"):
        load_trained(package, allow_pickle=False)
    assert not marker.exists()
    with contextlib.suppress(Refused):
        program = load_trained(package, allow_pickle=True)
        assert isinstance(program, torch.export.ExportedProgram)
        program.module()(torch.from_numpy(image(3)))
    assert marker.exists(), "the code works, and only the refusal keeps it from running"


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os')",
        "Symbol('x').__class__",
        "eval('x')",
        "S('x')",
        "(lambda: 1)()",
        "[x for x in y]",
        "L['x'].system('y')",
        "Symbol('x y')",
        "x == 1\n",
        "x # y",
    ],
)
def test_an_expression_that_is_more_than_arithmetic_is_refused(archive: TrainedPackage, text: str) -> None:
    package = _changed(archive, _graph_changer(lambda graph: graph.update(guards_code=[text])))
    with refused("code_in_pt2", "evaluates"):
        load_trained(package, allow_pickle=False)


def test_an_operator_that_opens_files_is_refused(archive: TrainedPackage) -> None:
    def change(graph: dict[str, Any]) -> None:
        graph["graph_module"]["graph"]["nodes"][0]["target"] = "torch.ops.aten.from_file.default"

    with refused("code_in_pt2", "calls 'torch.ops.aten.from_file.default'"):
        load_trained(_changed(archive, _graph_changer(change)), allow_pickle=False)


class Shapes(nn.Module):
    """A model with sizes that depend on each other, and with a condition."""

    def forward(self, x: torch.Tensor) -> Any:
        rows, columns = x.shape[:2]
        folded = torch.cond(x.sum() > 0, lambda y: y + 1, lambda y: y - 1, (x,))
        scaled = nn.functional.interpolate(x[:, None], scale_factor=1.5)
        return folded, scaled, x[:, : columns - 1], torch.arange(rows * columns // 2) * 2.0, x[x > 0]


def test_a_plain_graph_with_sizes_and_conditions_is_loaded(archive: TrainedPackage) -> None:
    auto = torch.export.Dim.AUTO
    program = torch.export.export(Shapes(), (torch.randn(4, 6, 5),), dynamic_shapes=({0: auto, 1: auto},))
    torch.export.save(program, archive.data_path)
    load_trained(archive, allow_pickle=False)
