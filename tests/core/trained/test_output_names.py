"""Names of a model's outputs: keys and fields bind by name, values without a name by order."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from onnx_release.trained.output_names import bind_outputs, name_outputs
from tests.refusals import refused

A, B, C = (torch.full((2, 1), float(value)) for value in (1, 2, 3))


@dataclass
class Layer:
    keys: Tensor
    values: Tensor


class Cache:
    """A cache of keys and values, as attention layers use it."""

    def __init__(self) -> None:
        self.layers = [Layer(A, B), Layer(B, C)]


class Fix(NamedTuple):
    sigma: Tensor
    positions: Tensor


@dataclass
class Record:
    sigma: Tensor
    positions: Tensor
    loss: Tensor | None = None


@pytest.mark.parametrize(
    ("result", "names"),
    [
        (A, ["output"]),
        ((A, B), ["output_0", "output_1"]),
        ([A, None, B], ["output_0", "output_2"]),
        ({"logits": A, "hidden": (B, C)}, ["logits", "hidden.0", "hidden.1"]),
        (OrderedDict(boxes=A, scores=B), ["boxes", "scores"]),
        (Fix(A, B), ["sigma", "positions"]),
        ({"fix": Record(A, B)}, ["fix.sigma", "fix.positions"]),
        ({0: A, 1: B}, ["output_0", "output_1"]),
        ((A, {"a": {"b": B}}), ["output_0", "1.a.b"]),
        ({"a.b": A, "a": {"b": B}}, ["output_0", "output_1"]),
        (
            {"logits": A, "past": Cache()},
            ["logits", *(f"past.{i}.{part}" for i in (0, 1) for part in ("key", "value"))],
        ),
    ],
)
def test_outputs_are_named_after_the_structure_of_the_result(result: Any, names: list[str]) -> None:
    assert list(name_outputs(result, None)) == names
    assert list(name_outputs(result, names)) == names


@pytest.mark.parametrize(
    ("result", "names"),
    [
        ({"sigma": A, "positions": B}, ("positions", "sigma")),
        ({"sigma": A, "positions": B, "loss": 0.5}, ("positions", "sigma")),
        (Fix(A, B), ("positions", "sigma")),
        (Record(A, B), ("positions", "sigma")),
        ((Fix(A, B),), ("positions", "sigma")),
        ({"fix": Fix(A, B)}, ("fix.positions", "sigma")),
        ((C, {"sigma": A, "positions": B}), ("positions", "sigma")),
        ((A, {"positions": B}), ("positions", "anything")),
        ({"sigma": A, "deep": {"sigma": C, "positions": B}}, ("positions", "sigma")),
        ({"sigma-xy": A, "Positions": B}, ("positions", "sigma_xy")),
        ({0: A, 1: B}, ("1", "0")),
        ((A, B), ("output_1", "output_0")),
        (torch.return_types.topk((B, A)), ("values", "indices")),
        (torch.return_types.topk((A, B)), ("indices", "values")),
    ],
)
def test_keys_and_fields_bind_by_name(result: Any, names: tuple[str, ...]) -> None:
    found = name_outputs(result, names)
    assert list(found) == list(names)
    assert found[names[0]] is B
    assert found[names[1]] is A


@pytest.mark.parametrize(
    ("result", "names", "own"),
    [
        ((A, B), ("sigma", "positions"), ("output_0", "output_1")),
        ((A, B), ("output_1", "output_2"), ("output_0", "output_1")),
        ({"a": A, "b": B}, ("sigma", "positions"), ("a", "b")),
        ((A, {"b": B}), ("sigma", "positions"), ("output_0", "1.b")),
    ],
)
def test_names_that_the_model_does_not_know_bind_by_order(
    result: Any, names: tuple[str, ...], own: tuple[str, ...]
) -> None:
    binding = bind_outputs(result, names)
    assert binding.ordered == names
    assert tuple(binding.own_names.values()) == own
    assert list(name_outputs(result, names).values()) == [A, B]


def test_values_that_the_signature_leaves_out_are_dropped() -> None:
    result = {"hidden": A, "logits": B, "loss": 0.5}
    assert name_outputs(result, ("logits",)) == {"logits": B}
    assert bind_outputs(result, ("logits",)).dropped == ("hidden", "loss")


@pytest.mark.parametrize(
    ("result", "names", "code", "part"),
    [
        ((A, B), ("y",), "outputs_differ", "2 values (output_0, output_1); the signature names 1 outputs: y"),
        ({"y": "text"}, ("y",), "outputs_differ", "str 'y'"),
        ({"y": A.bfloat16()}, ("y",), "outputs_differ", "torch.bfloat16 'y'"),
        ({"y": torch.complex(A, B)}, ("y",), "outputs_differ", "torch.complex64 'y'"),
        ((), ("y",), "outputs_differ", "0 values"),
        ({"positions": A, "sigma": B}, ("uncertainties", "positions"), "mixed_outputs", "(positions) with others (unc"),
        (Fix(A, B), ("uncertainties", "positions"), "mixed_outputs", "sigma, positions"),
        ({"y": A}, ("y", "z"), "mixed_outputs", "(y) with others (z)"),
        ({"a": Fix(A, B), "b": Fix(B, A)}, ("sigma", "a.sigma", "x", "y"), "mixed_outputs", "(x, y)"),
        ({"a": {"x": A}, "b": {"x": B}}, ("y", "x"), "outputs_differ", "a.x, b.x"),
    ],
)
def test_names_that_do_not_fit_the_result_are_refused(
    result: Any, names: tuple[str, ...], code: str, part: str
) -> None:
    with refused(code, part):
        name_outputs(result, names)
