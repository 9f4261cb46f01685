"""Patches of torch: skipped decompositions, and the private functions that the export needs."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packaging.requirements import Requirement
from packaging.version import Version
from torch import Tensor, nn
from torch.onnx._internal.exporter import _decomp, _fx_passes
from torch.onnx._internal.torchscript_exporter import utils as torchscript_utils
from torch.utils import _pytree

from examples.localization import LocalizationNet
from onnx_release.export import torch_patches
from onnx_release.export.contract import ModelContract
from onnx_release.export.strategies import quiet_exporter, retrace
from onnx_release.export.torch_patches import DecompositionSkip, decompositions_where_needed
from onnx_release.records import TensorSpec

ROOT = Path(__file__).parents[3]
BATCH = ({0: torch.export.Dim("batch")},)


class Normed(nn.Module):
    """Convolution, dropout, and a batch norm, which needs a translation."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, 2)
        )

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.layers(x)
        return result


class Writes(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return (x * 2.0).add_(1.0)


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1.0
        return x + self.calls


class Branches(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.cond(x.sum() > 0, lambda t: t + 1.0, lambda t: t - 1.0, (x,))
        return result


def exported(model: Any, example: Tensor) -> Any:
    arguments = () if isinstance(model, torch.export.ExportedProgram) else (example,)
    with quiet_exporter(), torch.no_grad():
        return torch.onnx.export(model, arguments, dynamo=True, verbose=False, dynamic_shapes=BATCH)


SHAPES = {"Shape", "Reshape", "Concat", "Flatten", "Gather", "Slice"}


def operators(program: Any) -> list[tuple[str, int]]:
    return [(node.op_type, len(node.inputs)) for node in program.model.graph]


@pytest.mark.parametrize(
    ("model", "example"),
    [(LocalizationNet("nano"), torch.randn(2, 3, 128, 32)), (Normed(), torch.randn(2, 3, 8, 8))],
    ids=["localization", "batch norm"],
)
def test_the_graph_has_the_same_operators(model: nn.Module, example: Tensor) -> None:
    model = model.eval()
    with decompositions_where_needed() as skip:
        without = exported(model, example)
    assert skip.used
    ours, full = operators(without), operators(exported(model, example))
    if Version(metadata.version("onnxscript")) < Version("0.7.2"):
        # It leaves the computation of constant shapes in the full export.
        assert len(ours) <= len(full)
        ours, full = ([one for one in found if one[0] not in SHAPES] for found in (ours, full))
    assert ours == full
    with torch.no_grad():
        expected = model(example)
    torch.testing.assert_close(without(example), expected if isinstance(expected, tuple) else (expected,))


@pytest.mark.parametrize("model", [Writes(), Counts(), Branches(), Normed()], ids=lambda m: type(m).__name__)
def test_programs_that_need_decompositions_get_them(model: nn.Module) -> None:
    model = model.train() if isinstance(model, Normed) else model.eval()
    example = torch.randn(2, 3, 8, 8)
    with decompositions_where_needed() as skip:
        program = exported(model, example)
    assert not skip.used
    assert operators(program)


def test_the_program_of_the_caller_is_unchanged() -> None:
    model, example = Normed().eval(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (example,), dynamic_shapes=BATCH)
    before = str(program.graph)
    with decompositions_where_needed() as skip:
        exported(program, example)
    assert skip.used
    assert str(program.graph) == before
    torch.testing.assert_close(program.module()(example), model(example))


def test_the_exporter_is_restored_after_an_error() -> None:
    own = _fx_passes.decompose_with_registry
    with pytest.raises(ZeroDivisionError), decompositions_where_needed():
        raise ZeroDivisionError
    assert _fx_passes.decompose_with_registry is own


def test_an_export_that_fails_without_decompositions_is_tried_with_them(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.models import contract
    from onnx_release.export.strategies import strategies_for

    tried = []

    @contextmanager
    def skip_wrongly() -> Iterator[DecompositionSkip]:
        skip = DecompositionSkip()
        skip.used = True
        tried.append("skipped")
        with monkeypatch.context() as patch:
            patch.setattr(_fx_passes, "decompose_with_registry", lambda *_: 1 / 0)
            yield skip

    monkeypatch.setattr(torch_patches, "decompositions_where_needed", skip_wrongly)
    model = LocalizationNet("nano").eval()
    conversion = strategies_for(model)["dynamo"](model, contract(), None, "cpu")
    assert tried == ["skipped"]
    assert len(list(conversion.graph.graph)) > 20


@pytest.mark.parametrize(
    ("function", "parameters"),
    [
        (_fx_passes.decompose_with_registry, "exported_program registry"),
        (_decomp.get_onnx_implemented_overloads, "registry"),
        (torchscript_utils.setup_onnx_logging, "verbose"),
        (
            torch.export.ExportedProgram.__init__,
            "self root graph graph_signature state_dict range_constraints module_call_graph example_inputs constants "
            "verifiers",
        ),
        (_pytree.tree_leaves, "tree is_leaf"),
        (_pytree.tree_unflatten, "leaves treespec"),
        (_pytree.tree_flatten_with_path, "tree is_leaf"),
    ],
    ids=lambda value: getattr(value, "__qualname__", ""),
)
def test_private_functions_of_torch_have_the_expected_parameters(function: Callable[..., Any], parameters: str) -> None:
    assert list(inspect.signature(function).parameters) == parameters.split()


def test_a_failed_torchscript_export_prints_no_graph(capfd: pytest.CaptureFixture[str]) -> None:
    class Decomposes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.qr(x)[0]

    spec = TensorSpec(name="x", dtype="float32", shape=("batch", 2, 2))
    contract = ModelContract(
        inputs=(spec,), outputs=(), example={"x": np.ones((2, 2, 2), np.float32)}, output_names=("output",)
    )
    before = torch._C._jit_is_onnx_log_enabled()
    with pytest.raises(torch.onnx.errors.UnsupportedOperatorError):
        retrace(Decomposes().eval(), contract, "torchscript")
    assert capfd.readouterr() == ("", "")
    assert torch._C._jit_is_onnx_log_enabled() is before


def test_other_private_names_of_torch_exist() -> None:
    for overload in (torch.ops.aten.lstm.input, torch.ops.aten.gru.input):
        assert isinstance(overload, torch_patches.OpOverload)
        assert isinstance(overload._dispatch_cache, dict)
        assert overload._schema.arguments[0].name == "input"
        assert not overload._schema.is_mutable
    assert torch._C._jit_is_onnx_log_enabled() in (True, False)
    torch._C._jit_set_onnx_log_enabled(torch._C._jit_is_onnx_log_enabled())
    assert issubclass(torch_patches.TracerWarning, Warning)
    assert all(issubclass(error, Exception) for error in torch_patches.DATA_DEPENDENT_ERRORS)
    # Used by the scan of pt2 archives.
    assert {"get_all_records", "get_record"} <= set(dir(torch._C.PyTorchFileReader))


def test_the_assertions_are_those_that_the_exporter_removes() -> None:
    source = inspect.getsource(_fx_passes.remove_assertion_nodes)
    assert source.count("torch.ops.aten.") == len(torch_patches.ASSERTIONS)
    assert all(f"torch.ops.{assertion}" in source for assertion in torch_patches.ASSERTIONS)


def test_the_core_accepts_the_torch_of_these_tests() -> None:
    requirements = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["core"]
    (required,) = (Requirement(line) for line in requirements if Requirement(line).name == "torch")
    assert required.specifier.contains(torch.__version__.partition("+")[0])


class OneDict(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: dict[str, Tensor] = {"x": x}
        found["y"] = found["x"] + 1
        found["x"] = found["y"] * 2
        return found["x"] - found["y"]


class DictInBranch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        found: dict[str, Tensor] = {"x": x}
        if x.shape[0] > 1:
            found["x"] = x + 1
        return found["x"]


@pytest.mark.parametrize(("model", "left"), [(OneDict(), 0), (DictInBranch(), 1)])
def test_items_of_a_dict_in_a_script_become_plain_values(model: nn.Module, left: int) -> None:
    script, x = torch.jit.script(model), torch.ones(2, 1)
    torch_patches.replace_script_dicts(script)
    assert len(script.graph.findAllNodes("prim::DictConstruct")) == left
    torch.testing.assert_close(script(x), model(x))
