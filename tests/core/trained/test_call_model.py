"""How a model is called with named tensors, and what its outputs are called."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from onnx_release.errors import Refused
from onnx_release.trained.call_model import FlatModule, arguments_for, name_outputs

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
def test_tensors_reach_the_argument_that_they_are_named_after(model: nn.Module, names: tuple[str, ...]) -> None:
    arguments, keywords = arguments_for(model, names, (A, B))
    torch.testing.assert_close(model(*arguments, **keywords), A - B)
    torch.testing.assert_close(FlatModule(model, names)(A, B)[0], A - B)


def test_names_win_over_the_order_of_the_signature() -> None:
    arguments, keywords = arguments_for(TwoInOrder(), ("second", "first"), (A, B))
    torch.testing.assert_close(TwoInOrder()(*arguments, **keywords), B - A)


@dataclass
class Layer:
    keys: Tensor
    values: Tensor


class Cache:
    """As attention keeps its keys and values."""

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
def test_outputs_are_called_after_the_models_own_structure(result: Any, names: list[str]) -> None:
    found = name_outputs(result, None)
    assert [name.replace("output_0", "0") if names[0] == "0" else name for name in found] == names


def test_a_named_output_is_taken_by_name_and_the_rest_left_out() -> None:
    found = name_outputs({"hidden": A, "logits": B}, ("logits",))
    assert list(found) == ["logits"]
    assert found["logits"] is B


@pytest.mark.parametrize(
    ("result", "words"),
    [
        ((A, B), "is 2 values (output_0, output_1), and the signature names 1 outputs: y"),
        ({"y": "text"}, "of them [\"str 'y'\"]"),
        ({"y": A.bfloat16()}, "torch.bfloat16 'y'"),
        ({"y": torch.complex(A, B)}, "torch.complex64 'y'"),
        ((), "is 0 values"),
    ],
)
def test_what_is_no_tensor_or_not_in_the_signature_is_refused(result: Any, words: str) -> None:
    with pytest.raises(Refused) as refusal:
        name_outputs(result, ("y",))
    assert words in str(refusal.value)
