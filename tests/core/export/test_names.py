"""Releases of models whose inputs or outputs stand in another order than in the signature.

Every released file has to compute, by name, what the model computes by name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from tests.core.judging import Judged, Specs, judge, log_model

A = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
B = np.random.default_rng(2).standard_normal((3, 4)).astype(np.float32) * 2 + 1
FEED = {"a": torch.from_numpy(A), "b": torch.from_numpy(B)}
BA: Specs = [("b", "float32", (-1, 4)), ("a", "float32", (-1, 4))]
Y: Specs = [("y", "float32", (-1, 2))]
SPEC = [{"name": name, "dtype": "float32", "shape": ["batch", 4]} for name in ("b", "a")]


class Two(nn.Module):
    """Two inputs, of which neither can stand for the other."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.p, self.q = nn.Linear(4, 2), nn.Linear(4, 2)

    def both(self, a: Tensor, b: Tensor) -> Tensor:
        return self.p(a) - 10 * self.q(b)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.both(a, b)


class Nested(Two):
    def forward(self, batch: dict[str, Any]) -> Tensor:  # type: ignore[override]
        return self.both(batch["deep"]["a"], batch["b"])


class Options(Two):
    def forward(  # type: ignore[override]
        self, a: Tensor, mask: Tensor | None = None, b: Tensor | None = None, scale: float = 1.0, *, times: int = 1
    ) -> Tensor:
        assert b is not None
        result = self.both(a, b) * scale * times
        return result if mask is None else result * mask


class ScriptDict(Two):
    def forward(self, batch: dict[str, Tensor]) -> Tensor:  # type: ignore[override]
        return self.both(batch["a"], batch["b"])


def _right(judged: Judged) -> None:
    assert judged.artifact is not None, judged.text
    assert [spec.name for spec in judged.artifact.inputs] == ["b", "a"]
    expected = Two()(**FEED).detach().numpy()
    np.testing.assert_allclose(judged.run(a=A, b=B)["y"], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("form", "example"),
    [("pickle", {"b": B, "a": A}), ("pickle", [A.tolist(), B.tolist()]), ("pt2", (A, B))],
    ids=["dict", "list", "pt2"],
)
def test_inputs_signed_in_another_order_keep_their_names(tmp_path: Path, form: str, example: Any) -> None:
    trained = log_model(Two(), tmp_path / "trained", BA, Y, example, form=form)
    judged = judge(trained, tmp_path / "out")
    _right(judged)
    assert judged.artifact is not None
    assert [finding.code for finding in judged.artifact.findings] == []


def test_a_list_of_values_that_fits_no_order_of_the_inputs_is_refused(tmp_path: Path) -> None:
    trained = log_model(Two(), tmp_path / "trained", BA, Y, [A.tolist(), [[1.0, 2.0]]])
    judged = judge(trained, tmp_path / "out")
    assert judged.code == "unreadable_file"
    assert "neither the order of the model's arguments (a, b) nor that of the signature (b, a)" in judged.text


@pytest.mark.parametrize("model", [Two(), ScriptDict()], ids=["arguments", "dict"])
def test_a_script_keeps_its_names(tmp_path: Path, model: nn.Module) -> None:
    trained = log_model(torch.jit.script(model), tmp_path / "trained", BA, Y, {"a": A, "b": B})
    _right(judge(trained, tmp_path / "out"))


N = torch.export.Dim("n")
DYNAMIC = {0: N}


@pytest.mark.parametrize(
    ("model", "arguments", "keywords", "shapes"),
    [
        (Two(), (), FEED, {"a": DYNAMIC, "b": DYNAMIC}),
        (Two(), (), {"b": FEED["b"], "a": FEED["a"]}, {"b": DYNAMIC, "a": DYNAMIC}),
        (Nested(), ({"deep": {"a": FEED["a"]}, "b": FEED["b"]},), {}, ({"deep": {"a": DYNAMIC}, "b": DYNAMIC},)),
        (Options(), (FEED["a"], None, FEED["b"], 1.0), {"times": 1}, (DYNAMIC, None, DYNAMIC, None, None)),
        (Options(), (FEED["a"],), {"times": 1, "b": FEED["b"]}, {"a": DYNAMIC, "times": None, "b": DYNAMIC}),
    ],
    ids=["keywords", "keywords in another order", "nested dict", "optional input left out", "both"],
)
def test_a_program_keeps_its_names(
    tmp_path: Path, model: nn.Module, arguments: Any, keywords: Any, shapes: Any
) -> None:
    program = torch.export.export(model.eval(), arguments, keywords, dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "model.pt2")
    judged = judge(tmp_path / "model.pt2", tmp_path / "out", input_spec=[*SPEC], allow_pickle=False)
    assert judged.artifact is not None, judged.text
    (output,) = judged.artifact.outputs
    expected = Two()(**FEED).detach().numpy()
    np.testing.assert_allclose(judged.run(a=A, b=B)[output.name], expected, atol=1e-4)
    findings = {finding.code: finding.message for finding in judged.artifact.findings}
    assert "no_example" not in findings  # the tensors of the trace are the example
    assert ("times=1" in findings.get("fixed_arguments", "")) == isinstance(model, Options)


# TorchScript does not read the annotations of a class in a file with postponed evaluation.
Fix = NamedTuple("Fix", [("sigma", Tensor), ("positions", Tensor)])  # noqa: UP014


@dataclass
class Record:
    sigma: Tensor
    positions: Tensor


class Heads(nn.Module):
    """Two outputs in a container, and a third value that the signature leaves out."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.p, self.u = nn.Linear(4, 2), nn.Linear(4, 2)
        self.kind = kind

    def forward(self, a: Tensor) -> Any:
        sigma, positions = self.u(a).exp(), self.p(a) - 100
        if self.kind == "dict":
            return {"loss": positions.mean(), "sigma": sigma, "positions": positions}
        if self.kind == "dict in a tuple":
            return sigma.mean(), {"sigma": sigma, "positions": positions}
        if self.kind == "named tuple in a dict":
            return {"fix": Fix(sigma, positions)}
        return Fix(sigma, positions) if self.kind == "named tuple" else Record(sigma, positions)


class ScriptHeads(Heads):
    def forward(self, a: Tensor) -> dict[str, Tensor]:
        return {"sigma": self.u(a).exp(), "positions": self.p(a) - 100, "rest": a}


class ScriptAssigned(Heads):
    def forward(self, a: Tensor) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {"rest": a}
        result["sigma"] = self.u(a)
        result["positions"] = self.p(a) - 100
        result["sigma"] = result["sigma"].exp()
        return result


class ScriptLoop(Heads):
    def forward(self, a: Tensor) -> dict[str, Tensor]:
        result: dict[str, Tensor] = {}
        for key in ["sigma", "positions"]:
            result[key] = self.p(a)
        return result


class ScriptFix(Heads):
    def forward(self, a: Tensor) -> tuple[Tensor, Fix]:
        return a, Fix(self.u(a).exp(), self.p(a) - 100)


KINDS = ("dict", "dict in a tuple", "named tuple", "dataclass", "named tuple in a dict")


SCRIPTS = {
    "script of a dict": torch.jit.script(ScriptHeads("")),
    "script of a dict with assignments": torch.jit.script(ScriptAssigned("")),
    "script of a named tuple": torch.jit.script(ScriptFix("")),
}
OUTPUTS: Specs = [("positions", "float32", (-1, 2)), ("sigma", "float32", (-1, 2))]


@pytest.mark.parametrize("model", [*map(Heads, KINDS), *SCRIPTS.values()], ids=[*KINDS, *SCRIPTS])
def test_outputs_signed_in_another_order_keep_their_names(tmp_path: Path, model: nn.Module) -> None:
    trained = log_model(model, tmp_path / "trained", [("a", "float32", (-1, 4))], OUTPUTS, A)
    judged = judge(trained, tmp_path / "out")
    found, expected = judged.run(a=A), Heads("named tuple").eval()(FEED["a"])
    assert list(found) == ["positions", "sigma"]
    np.testing.assert_allclose(found["positions"], expected.positions.detach().numpy(), atol=1e-4)
    np.testing.assert_allclose(found["sigma"], expected.sigma.detach().numpy(), atol=1e-4)


def test_a_script_without_forward_is_refused(tmp_path: Path) -> None:
    class Predicts(nn.Module):
        @torch.jit.export
        def predict(self, a: Tensor) -> Tensor:
            return a

    trained = log_model(torch.jit.script(Predicts()), tmp_path / "trained", [("a", "float32", (-1, 4))], Y, A)
    judged = judge(trained, tmp_path / "out")
    assert judged.code == "model_failed"
    assert "has no attribute 'forward'" in judged.text


def test_a_script_with_a_dict_in_a_loop_is_refused(tmp_path: Path) -> None:
    model = torch.jit.script(ScriptLoop(""))
    trained = log_model(model, tmp_path / "trained", [("a", "float32", (-1, 4))], OUTPUTS, A)
    judged = judge(trained, tmp_path / "out")
    assert judged.code == "unsupported_structure"
    assert "stores values in a dict within a loop" in judged.text


@pytest.mark.parametrize(
    ("inputs", "outputs", "code"),
    [
        ([BA[0], ("first", "float32", (-1, 4))], Y, "mixed_inputs"),
        ([BA[0]], Y, "inputs_differ"),
        (BA, [("y", "float32", (-1, 2)), ("z", "float32", (-1, 2))], "outputs_differ"),
    ],
)
def test_a_signature_that_does_not_fit_is_refused(tmp_path: Path, inputs: Specs, outputs: Specs, code: str) -> None:
    trained = log_model(Two(), tmp_path / "trained", inputs, outputs, None)
    assert judge(trained, tmp_path / "out").code == code


def test_names_that_the_model_does_not_know_are_a_finding(tmp_path: Path) -> None:
    inputs: Specs = [("left", "float32", (-1, 4)), ("right", "float32", (-1, 4))]
    outputs: Specs = [("xy", "float32", (-1, 2)), ("error", "float32", (-1, 2))]

    class Both(Two):
        def forward(self, a: Tensor, b: Tensor) -> dict[str, Tensor]:  # type: ignore[override]
            return {"positions": self.both(a, b), "sigma": self.both(b, a)}

    trained = log_model(Both(), tmp_path / "trained", inputs, outputs, (A, B), form="pt2")
    judged = judge(trained, tmp_path / "out")
    expected = Both()(**FEED)["positions"].detach().numpy()
    np.testing.assert_allclose(judged.run(left=A, right=B)["xy"], expected, atol=1e-4)
    assert judged.artifact is not None
    messages = {finding.code: finding.message for finding in judged.artifact.findings}
    assert "'a' is 'left' in the ONNX file, 'b' is 'right'" in messages["renamed_inputs"]
    assert "'positions' is 'xy' in the ONNX file, 'sigma' is 'error'" in messages["renamed_outputs"]
