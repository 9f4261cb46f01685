"""Export strategies: their order, the recorded attempts, and models that none can export."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from onnx_release.export.contract import ModelContract
from onnx_release.export.fallback import ExportOptions, ExportResult, export_onnx
from onnx_release.export.verify import ExportVerifier
from onnx_release.records import TensorSpec
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.runners.pytorch import PyTorchOptions
from tests.refusals import refused

X = TensorSpec(name="x", dtype="float32", shape=("batch", 4))
SEQUENCE = TensorSpec(name="x", dtype="float32", shape=("batch", "length", 4))
OTHER = TensorSpec(name="mask", dtype="float32", shape=("batch", "mask_length"))


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.linear = nn.Linear(4, 3)


class Linear(Dense):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(x)
        return result


class Masked(Dense):
    """Two inputs whose lengths must be equal, under two names in the signature."""

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        result: Tensor = self.linear(x * mask.unsqueeze(-1)).sum(dim=1)
        return result


class Record:
    """A class that is not registered as a pytree."""

    def __init__(self, layers: list[Any]) -> None:
        self.layers = layers


class Layer:
    def __init__(self, keys: Tensor, values: Tensor) -> None:
        self.keys, self.values = keys, values


class ReturnsCache(Dense):
    def forward(self, x: Tensor) -> Any:
        y = self.linear(x)
        return {"y": y, "past": Record([Layer(y + 1, y + 2)])}


class Branches(Dense):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)
        if bool(x.sum() > 1e6):
            y = y * 2
        return y


def _contract(model: nn.Module, *inputs: TensorSpec) -> tuple[ModelContract, ExportVerifier]:
    sizes = {"batch": 2, "length": 5, "mask_length": 5}
    generator = np.random.default_rng(0)
    arrays = {
        spec.name: generator.standard_normal([sizes[s] if isinstance(s, str) else s for s in spec.shape]).astype("f4")
        for spec in inputs
    }
    contract = ModelContract(inputs=inputs, outputs=(), example=arrays)
    options = PyTorchOptions(input_names=tuple(spec.name for spec in inputs), output_names=None)
    verifier = ExportVerifier(model.eval(), options, contract)
    return ModelContract(inputs=inputs, outputs=(), example=arrays, output_names=verifier.output_names), verifier


def _export(model: nn.Module, folder: Path, *inputs: TensorSpec) -> ExportResult:
    contract, verifier = _contract(model, *inputs)
    return export_onnx(model, folder, contract, ExportOptions(device="cpu"), verifier)


def _outcomes(result: ExportResult) -> list[tuple[str, str]]:
    return [(attempt.strategy, attempt.outcome) for attempt in result.attempts]


def test_a_plain_model_needs_one_attempt(tmp_path: Path) -> None:
    result = _export(Linear(), tmp_path, X)
    assert _outcomes(result) == [("dynamo", "taken")]
    assert result.outputs[0].name == "output"


def test_lengths_that_must_be_equal_become_one_dimension(tmp_path: Path) -> None:
    result = _export(Masked(), tmp_path, SEQUENCE, OTHER)
    assert result.strategy in ("dynamo", "dynamo-auto")
    assert [spec.shape for spec in result.inputs] == [("batch", "length", 4), ("batch", "length")]


def test_a_result_that_is_not_a_pytree_is_flattened_and_named(tmp_path: Path) -> None:
    result = _export(ReturnsCache(), tmp_path, X)
    assert _outcomes(result)[-1] == ("dynamo-wrapped", "taken")
    assert [spec.name for spec in result.outputs] == ["y", "past.0.key", "past.0.value"]
    with OnnxRuntimeRunner(tmp_path / "model.onnx", OnnxRuntimeOptions()) as runner:
        outputs = runner.run({"x": np.ones((7, 4), np.float32)})
    np.testing.assert_allclose(outputs["past.0.key"], outputs["y"] + 1, rtol=1e-5)


def test_a_scripted_module_keeps_its_branches(tmp_path: Path) -> None:
    scripted = torch.jit.script(Branches().eval())
    result = _export(scripted, tmp_path, X)
    assert _outcomes(result) == [("torchscript", "taken")]
    with OnnxRuntimeRunner(tmp_path / "model.onnx", OnnxRuntimeOptions()) as runner:
        for value in (1.0, 1e6):
            x = np.full((3, 4), value, np.float32)
            np.testing.assert_allclose(
                runner.run({"x": x})["output"], scripted(torch.from_numpy(x)).detach().numpy(), rtol=1e-4
            )


def test_a_branch_on_values_is_refused_with_the_reason_of_every_strategy(tmp_path: Path) -> None:
    names = "dynamo, dynamo-auto, dynamo-wrapped, dynamo-unoptimized: GuardOnDataDependentSymNode"
    with refused("data_dependent", names, "torchscript: A trace of the model at test_fallback.py"):
        _export(Branches(), tmp_path, X)


def test_an_unfit_result_is_not_taken_and_its_reason_is_recorded(tmp_path: Path) -> None:
    contract, verifier = _contract(Linear(), X)
    reasons = iter(["output 'output': MAE 1 is not below 1e-05"])

    def verify(folder: Path, result: ExportResult) -> str | None:
        return next(reasons, None) or verifier(folder, result)

    result = export_onnx(Linear(), tmp_path, contract, ExportOptions(device="cpu"), verify)
    assert _outcomes(result) == [("dynamo", "unfit"), ("dynamo-auto", "taken")]
    assert "MAE 1" in result.attempts[0].reason
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


def test_if_no_result_is_fit_the_first_is_kept_for_the_later_steps(tmp_path: Path) -> None:
    contract, _ = _contract(Linear(), X)
    result = export_onnx(Linear(), tmp_path, contract, ExportOptions(device="cpu"), lambda *_: "no")
    assert result.strategy == "dynamo"
    assert {attempt.outcome for attempt in result.attempts} == {"unfit"}
    assert (tmp_path / "model.onnx").exists()


def test_the_verifier_finds_a_wrong_weight(tmp_path: Path) -> None:
    contract, verifier = _contract(Linear(), X)
    options = ExportOptions(device="cpu", single_file_max_bytes=0)
    result = export_onnx(Linear(), tmp_path, contract, options)
    assert verifier(tmp_path, result) is None
    data = tmp_path / "model.onnx.data"
    if data.exists() and data.stat().st_size:
        content = bytearray(data.read_bytes())
        content[3] ^= 0x40
        data.write_bytes(bytes(content))
        assert "output 'output'" in (verifier(tmp_path, result) or "")


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_recurrent_model_keeps_its_varying_length_after_an_earlier_trace(
    tmp_path: Path, kind: Callable[..., nn.Module]
) -> None:
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = kind(4, 3, batch_first=True)

        def forward(self, x: Tensor) -> Any:
            return self.inner(x)[0]

    model = Recurrent().eval()
    torch.export.export(model, (torch.ones(2, 5, 4),))
    result = _export(model, tmp_path, SEQUENCE)
    assert result.inputs[0].shape == ("batch", "length", 4)


def test_a_model_that_fails_at_another_batch_size_is_refused_before_the_export() -> None:
    class TwoOnly(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x * torch.ones(2, 1)

    with refused("model_failed", "x float32 [3, 4]", "RuntimeError"):
        _contract(TwoOnly(), X)


def test_a_graph_in_training_mode_ends_the_attempts(tmp_path: Path) -> None:
    class Drops(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x)

    contract, _ = _contract(nn.Identity(), X)
    with refused("train_mode"):
        export_onnx(Drops(), tmp_path, contract, ExportOptions(device="cpu"))


def test_a_model_with_random_outputs_is_refused(tmp_path: Path) -> None:
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.randn_like(x)

    with refused("random_outputs", "output 'output'"):
        _export(Noisy(), tmp_path, X)
