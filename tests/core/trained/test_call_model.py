"""Binding of named tensors to a model's parameters, and names of its outputs."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onnx_release.trained.call_model import FlatModule, arguments_for, name_outputs
from tests.refusals import refused

A, B, C = (torch.full((2, 1), float(value)) for value in (1, 2, 3))


class TwoInOrder(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - second


class SkipsOne(nn.Module):
    def forward(self, ids: Tensor, kinds: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        assert kinds is None
        assert mask is not None
        return ids - mask


class KeywordOnly(nn.Module):
    def forward(self, *, first: Tensor, second: Tensor) -> Tensor:
        return first - second


class OneDict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["first"] - batch["second"]


class AnyNumber(nn.Module):
    def forward(self, *tensors: Tensor) -> Tensor:
        return tensors[0] - tensors[1]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (TwoInOrder(), ("first", "second")),
        (TwoInOrder(), ("left", "right")),
        (SkipsOne(), ("ids", "mask")),
        (KeywordOnly(), ("first", "second")),
        (OneDict(), ("first", "second")),
        (AnyNumber(), ("first", "second")),
    ],
)
def test_tensors_bind_to_the_parameter_of_their_name(model: nn.Module, names: tuple[str, ...]) -> None:
    arguments, keywords = arguments_for(model, names, (A, B))
    torch.testing.assert_close(model(*arguments, **keywords), A - B)
    torch.testing.assert_close(FlatModule(model, names)(A, B)[0], A - B)


def test_names_take_precedence_over_the_order_of_the_signature() -> None:
    arguments, keywords = arguments_for(TwoInOrder(), ("second", "first"), (A, B))
    torch.testing.assert_close(TwoInOrder()(*arguments, **keywords), B - A)


@dataclass
class Layer:
    keys: Tensor
    values: Tensor


class Cache:
    """A cache of keys and values, as attention layers use it."""

    def __init__(self) -> None:
        self.layers = [Layer(A, B), Layer(B, C)]


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["output"]),
        ((A, B), ["output_0", "output_1"]),
        ([A, None, B], ["output_0", "output_2"]),
        ({"logits": A, "hidden": (B, C)}, ["logits", "hidden.0", "hidden.1"]),
        (OrderedDict(boxes=A, scores=B), ["boxes", "scores"]),
        ((A, {"a": {"b": B}}), ["0", "1.a.b"]),
        (
            {"logits": A, "past": Cache()},
            ["logits", *(f"past.{i}.{part}" for i in (0, 1) for part in ("key", "value"))],
        ),
    ],
)
def test_outputs_are_named_after_the_structure_of_the_result(result: Any, names: list[str]) -> None:
    found = name_outputs(result, None)
    assert [name.replace("output_0", "0") if names[0] == "0" else name for name in found] == names


def test_a_dict_binds_by_name_and_its_other_values_are_dropped() -> None:
    found = name_outputs({"hidden": A, "logits": B}, ("logits",))
    assert list(found) == ["logits"]
    assert found["logits"] is B


@pytest.mark.parametrize(
    ("result", "part"),
    [
        ((A, B), "2 values (output_0, output_1); the signature names 1 outputs: y"),
        ({"y": "text"}, "str 'y'"),
        ({"y": A.bfloat16()}, "torch.bfloat16 'y'"),
        ({"y": torch.complex(A, B)}, "torch.complex64 'y'"),
        ((), "0 values"),
    ],
)
def test_other_values_than_the_signature_names_are_refused(result: Any, part: str) -> None:
    with refused("outputs_differ", part):
        name_outputs(result, ("y",))
