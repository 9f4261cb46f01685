"""Leaving out the exporter's decompositions changes no operator of the graph, and is done only where none is needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from examples.localization import LocalizationNet
from onnx_release.export import torch_patches
from onnx_release.export.strategies import quiet_exporter
from onnx_release.export.torch_patches import Shortcut, where_needed

BATCH = ({0: torch.export.Dim("batch")},)


class Normed(nn.Module):
    """Convolution, batch norm, dropout: what is translated as it is, and what is only nearly so."""

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


def operators(program: Any) -> list[tuple[str, int]]:
    return [(node.op_type, len(node.inputs)) for node in program.model.graph]


@pytest.mark.parametrize(
    ("model", "example"),
    [(LocalizationNet("nano"), torch.randn(2, 3, 128, 32)), (Normed(), torch.randn(2, 3, 8, 8))],
    ids=["localization", "batch norm"],
)
def test_the_graph_has_the_same_operators(model: nn.Module, example: Tensor) -> None:
    model = model.eval()
    with where_needed() as shortcut:
        short = exported(model, example)
    assert shortcut.taken
    assert operators(short) == operators(exported(model, example))
    with torch.no_grad():
        expected = model(example)
    torch.testing.assert_close(short(example), expected if isinstance(expected, tuple) else (expected,))


@pytest.mark.parametrize("model", [Writes(), Counts(), Branches(), Normed()], ids=lambda m: type(m).__name__)
def test_what_needs_decomposing_takes_the_exporters_own_way(model: nn.Module) -> None:
    model = model.train() if isinstance(model, Normed) else model.eval()
    example = torch.randn(2, 3, 8, 8)
    with where_needed() as shortcut:
        program = exported(model, example)
    assert not shortcut.taken
    assert operators(program)


def test_a_program_stays_as_it_was() -> None:
    model, example = Normed().eval(), torch.randn(2, 3, 8, 8)
    program = torch.export.export(model, (example,), dynamic_shapes=BATCH)
    before = str(program.graph)
    with where_needed() as shortcut:
        exported(program, example)
    assert shortcut.taken
    assert str(program.graph) == before
    torch.testing.assert_close(program.module()(example), model(example))


def test_the_exporter_is_left_as_it_was() -> None:
    own = torch_patches._fx_passes.decompose_with_registry
    with pytest.raises(ZeroDivisionError), where_needed():
        raise ZeroDivisionError
    assert torch_patches._fx_passes.decompose_with_registry is own


def test_a_failure_on_the_short_way_is_tried_on_the_long_one(monkeypatch: pytest.MonkeyPatch) -> None:
    from bench.models import contract
    from onnx_release.export.strategies import strategies_for

    tried = []

    @contextmanager
    def misled() -> Iterator[Shortcut]:
        shortcut = Shortcut()
        shortcut.taken = True
        tried.append("short")
        with monkeypatch.context() as patch:
            patch.setattr(torch_patches._fx_passes, "decompose_with_registry", lambda *_: 1 / 0)
            yield shortcut

    monkeypatch.setattr(torch_patches, "where_needed", misled)
    model = LocalizationNet("nano").eval()
    conversion = strategies_for(model)["dynamo"](model, contract(), None, "cpu")
    assert tried == ["short"]
    assert len(list(conversion.graph.graph)) > 20
