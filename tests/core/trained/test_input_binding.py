"""Binding of a signature's inputs to modules, wrappers, scripts and programs."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from onnx_release.trained.call_model import FlatModule, flat_script, runnable
from onnx_release.trained.input_binding import bind_inputs
from onnx_release.trained.output_names import bind_outputs
from tests.refusals import refused

A, B, C = (torch.full((2, 1), float(value)) for value in (1, 2, 4))


class Pair(NamedTuple):
    first: Tensor
    second: Tensor


@dataclass
class Batch:
    first: Tensor
    second: Tensor


class Difference(nn.Module):
    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        return first - second


class SkipsOne(nn.Module):
    def forward(self, first: Tensor, kinds: Tensor | None = None, second: Tensor | None = None) -> Tensor:
        assert kinds is None
        assert second is not None
        return first - second


class KeywordOnly(nn.Module):
    def forward(self, *, second: Tensor, first: Tensor) -> Tensor:
        return first - second


class PositionalOnly(nn.Module):
    def forward(self, first: Tensor, scale: float = 1.0, /, second: Tensor | None = None) -> Tensor:
        assert second is not None
        return (first - second) * scale


class Reserved(nn.Module):
    def forward(self, lambda_: Tensor, class_: Tensor) -> Tensor:
        return lambda_ - class_


class OneDict(nn.Module):
    def forward(self, batch):  # type: ignore[no-untyped-def]
        return batch["first"] - batch["second"]


class DictAndFlag(nn.Module):
    def forward(self, batch: Mapping[str, Tensor], training: bool = False) -> Tensor:
        assert not training
        return batch["first"] - batch["second"]


class DictAndTensor(nn.Module):
    def forward(self, batch: dict[str, Tensor], second: Tensor) -> Tensor:
        return batch["first"] - second


class OneList(nn.Module):
    def forward(self, xs: Sequence[Tensor]) -> Tensor:
        return xs[0] - xs[1]


class OneTypedDict(nn.Module):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return batch["first"] - batch["second"]


class NamedPair(nn.Module):
    def forward(self, pair: Pair) -> Tensor:
        return pair.first - pair.second


class DataBatch(nn.Module):
    def forward(self, batch: Batch) -> Tensor:
        return batch.first - batch.second


class AnyNumber(nn.Module):
    def forward(self, *xs: Tensor) -> Tensor:
        return xs[0] - xs[1]


class OneAndMore(nn.Module):
    def forward(self, first: Tensor, *rest: Tensor) -> Tensor:
        return first - rest[0]


class AnyKeyword(nn.Module):
    def forward(self, **batch: Tensor) -> Tensor:
        return batch["first"] - batch["second"]


class OneAndKeywords(nn.Module):
    def forward(self, first: Tensor, **more: Tensor) -> Tensor:
        return first - more["second"]


class Wrapper(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.inner(*args, **kwargs)


def _decorated() -> nn.Module:
    def logged(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            return function(*args, **kwargs)

        return call

    class Decorated(nn.Module):
        @logged
        def forward(self, first: Tensor, second: Tensor) -> Tensor:
            return first - second

    return Decorated()


def _partial() -> nn.Module:
    class Scaled(nn.Module):
        def forward(self, first: Tensor, scale: float, second: Tensor) -> Tensor:
            return (first - second) * scale

    model = Scaled()
    model.forward = functools.partial(model.forward, scale=1.0)  # type: ignore[method-assign]
    return model


KNOWN = {
    "parameters": Difference(),
    "an optional parameter left out": SkipsOne(),
    "keywords only": KeywordOnly(),
    "positions only": PositionalOnly(),
    "a dict": OneDict(),
    "an annotated dict": OneTypedDict(),
    "a script of a dict": torch.jit.script(OneTypedDict()),
    "a dict and a flag": DictAndFlag(),
    "a dict and a tensor": DictAndTensor(),
    "a named tuple": NamedPair(),
    "a dataclass": DataBatch(),
    "any keyword": AnyKeyword(),
    "a parameter and keywords": OneAndKeywords(),
    "a parameter and more": OneAndMore(),
    "a wrapper": Wrapper(Difference()),
    "averaged weights": AveragedModel(Difference()),
    "a data-parallel model": nn.DataParallel(Difference()),
    "a decorated function": _decorated(),
    "a partial function": _partial(),
    "a script": torch.jit.script(Difference()),
    "a trace": torch.jit.trace(Difference(), (A, B)),
    "a program": torch.export.export(Difference(), (A, B)),
    "a program by keyword": torch.export.export(Difference(), (), {"second": B, "first": A}),
    "a program of both": torch.export.export(SkipsOne(), (A,), {"second": B, "kinds": None}),
    "a program of a dict": torch.export.export(OneDict(), ({"second": B, "first": A},)),
    "a program of a nested dict": torch.export.export(
        Wrapper(OneDict()), (), {"batch": {"second": B, "first": A}}
    ),
}  # fmt: skip


def _call(model: Any, names: tuple[str, ...], *values: Tensor) -> Tensor:
    module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    binding = bind_inputs(model, names)
    result: Tensor = runnable(module, names, binding)(*values)
    torch.testing.assert_close(FlatModule(module, binding, names)(*values)[0], result)
    assert sorted(binding.order) == sorted(names)
    return result


@pytest.mark.parametrize("model", KNOWN.values(), ids=KNOWN)
@pytest.mark.parametrize("swapped", [False, True], ids=["in order", "in another order"])
def test_a_known_name_binds_by_name_in_every_order(model: Any, swapped: bool) -> None:
    names = ("second", "first") if swapped else ("first", "second")
    torch.testing.assert_close(_call(model, names, *((B, A) if swapped else (A, B))), A - B)
    binding = bind_inputs(model, names)
    assert binding.ordered == () or isinstance(model, OneAndMore)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Difference(), ("left", "right")),
        (AnyNumber(), ("left", "right")),
        (OneList(), ("left", "right")),
        (torch.jit.script(Difference()), ("left", "right")),
        (torch.export.export(Difference(), (A, B)), ("left", "right")),
        (torch.export.export(OneList(), ([A, B],)), ("left", "right")),
    ],
)
def test_names_that_the_model_does_not_know_bind_by_order(model: Any, names: tuple[str, ...]) -> None:
    torch.testing.assert_close(_call(model, names, A, B), A - B)
    assert bind_inputs(model, names).ordered == names
    assert set(bind_inputs(model, names).own_names) == set(names)


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (Reserved(), ("class", "lambda")),
        (torch.export.export(Reserved(), (A, B)), ("class", "lambda")),
        (AnyNumber(), ("xs_1", "xs_0")),
        (OneList(), ("xs.1", "xs.0")),
        (OneTypedDict(), ("batch.second", "batch.first")),
        (torch.export.export(OneList(), ([A, B],)), ("xs.1", "xs_0")),
        (torch.export.export(OneDict(), ({"first": A, "second": B},)), ("batch_second", "batch.first")),
        (Difference(), ("Second", "First")),
    ],
)
def test_other_spellings_of_a_name_bind_by_name(model: Any, names: tuple[str, ...]) -> None:
    torch.testing.assert_close(_call(model, names, B, A), A - B)


@pytest.mark.parametrize(
    ("model", "names", "code", "parts"),
    [
        (Difference(), ("second", "x"), "mixed_inputs", ("takes the inputs first, second", "(second)", "(x)")),
        (SkipsOne(), ("first", "mask"), "mixed_inputs", ("first, kinds, second", "(first)", "(mask)")),
        (Wrapper(Difference()), ("second", "x"), "mixed_inputs", ("(second)", "(x)")),
        (torch.jit.script(Difference()), ("second", "x"), "mixed_inputs", ("(second)", "(x)")),
        (torch.export.export(Difference(), (A, B)), ("second", "x"), "mixed_inputs", ("(second)", "(x)")),
        (Difference(), ("first",), "inputs_differ", ("takes the inputs first, second; the signature names first",)),
        (Difference(), ("x", "y", "z"), "inputs_differ", ("the signature names x, y, z",)),
        (torch.export.export(Difference(), (A, B)), ("first",), "inputs_differ", ("first, second",)),
        (torch.export.export(SkipsOne(), (A, None, B)), ("first", "kinds", "second"), "mixed_inputs", ("(kinds)",)),
    ],
)  # fmt: skip
def test_a_mixture_of_known_and_unknown_names_is_refused(
    model: Any, names: tuple[str, ...], code: str, parts: tuple[str, ...]
) -> None:
    with refused(code, *parts):
        bind_inputs(model, names)


def test_values_that_a_trace_fixed_stay_as_they_were() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, scale: float, offset: Tensor | None, y: Tensor, text: str = "", *, twice: bool):  # type: ignore[no-untyped-def]
            return (x - y) * scale * (2 if twice else 1)

    program = torch.export.export(Scaled(), (A, 1.5, None, B, "text"), {"twice": True})
    torch.testing.assert_close(_call(program, ("y", "x"), B, A), (A - B) * 3)


def test_one_key_at_two_depths_is_ambiguous_by_itself() -> None:
    class Deep(nn.Module):
        def forward(self, left, right):  # type: ignore[no-untyped-def]
            return left["x"] - right["x"]

    program = torch.export.export(Deep(), ({"x": A}, {"x": B}))
    torch.testing.assert_close(_call(program, ("right.x", "left.x"), B, A), A - B)
    with refused("inputs_differ", "left.x, right.x"):
        bind_inputs(program, ("x", "y"))


def test_a_script_is_wrapped_into_one_of_plain_tensors() -> None:
    class Containers(nn.Module):
        def forward(self, batch: dict[str, Tensor], xs: list[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
            difference = batch["first"] - batch["second"]
            return difference + xs[0], {"difference": difference}

    script, names = torch.jit.script(Containers()), ("xs_0", "batch.second", "batch.first")
    binding = bind_inputs(script, names)
    result = runnable(script, names, binding)(C, B, A)
    outputs = bind_outputs(result, ("difference", "sum"))
    flat = flat_script(script, binding, names, outputs)
    torch.testing.assert_close(flat(C, B, A), (A - B, A - B + C))
    assert all(argument.type.kind() == "TensorType" for argument in flat.forward.schema.arguments[1:])


def test_a_key_that_cannot_stand_in_a_script_is_an_error() -> None:
    script = torch.jit.script(OneTypedDict())
    binding = bind_inputs(script, ("first", "second'"))
    with pytest.raises(RuntimeError, match="cannot stand in a script"):
        flat_script(script, binding, ("first", "second'"), bind_outputs(A, None))
