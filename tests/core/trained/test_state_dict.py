"""Weights without a model: formats of files, factories, and weights that do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from onnx_release.trained.model_factory import FactoryOptions, parse_value
from onnx_release.trained.state_dict import format_of_file, load_checkpoint
from tests.core.models import Payload, TwoHeads, image
from tests.refusals import refused


class Scaled(nn.Module):
    """A model with an argument and a buffer that is in no checkpoint."""

    def __init__(self, width: int, gain: float = 1.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, width)
        self.register_buffer("gains", torch.full((width,), gain), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.linear(x) * self.gains
        return result


def makes_a_dict() -> dict[str, int]:
    return {}


def fails() -> nn.Module:
    raise KeyError("width")


def factory(name: str = "Scaled", allowed: tuple[str, ...] = ("tests.core",), **more: Any) -> FactoryOptions:
    return FactoryOptions(path=f"tests.core.trained.test_state_dict:{name}", allowed=allowed, **more)


@pytest.fixture
def trained() -> Scaled:
    return Scaled(4, gain=2.0)


def _wrapped(prefix: str, model: nn.Module) -> dict[str, Any]:
    return {f"{prefix}{name}": tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "model."])
@pytest.mark.parametrize("nest", [None, "state_dict", "model_state_dict"])
def test_weights_are_found_at_the_usual_places_of_a_checkpoint(
    trained: Scaled, tmp_path: Path, prefix: str, nest: str | None
) -> None:
    weights = _wrapped(prefix, trained)
    torch.save({nest: weights, "epoch": 3} if nest else weights, tmp_path / "w.ckpt")
    model = load_checkpoint(tmp_path / "w.ckpt", factory(kwargs={"width": 4, "gain": 2.0}))[0]
    x = torch.ones(2, 3)
    torch.testing.assert_close(model(x), trained(x))
    assert not model.training


def test_safetensors_are_weights(trained: Scaled, tmp_path: Path) -> None:
    save_file(trained.state_dict(), tmp_path / "w.safetensors")
    assert format_of_file(tmp_path / "w.safetensors") == "state_dict"
    model = load_checkpoint(tmp_path / "w.safetensors", factory(kwargs={"width": 4, "gain": 2.0}))[0]
    torch.testing.assert_close(model(torch.ones(1, 3)), trained(torch.ones(1, 3)))


def test_factory_kwargs_override_run_params_and_these_the_checkpoint(tmp_path: Path) -> None:
    torch.save(
        {"state_dict": Scaled(4).state_dict(), "hyper_parameters": {"width": 9, "gain": 5.0}}, tmp_path / "w.ckpt"
    )
    model, _ = load_checkpoint(
        tmp_path / "w.ckpt", factory(kwargs={"gain": 7.0}, run_params={"width": "4", "lr": "0.1"})
    )
    assert isinstance(model, Scaled)
    assert (model.gains.shape, float(model.gains[0])) == ((4,), 7.0)


@pytest.mark.parametrize(
    ("text", "value"),
    [("4", 4), ("0.5", 0.5), ("true", True), ("True", True), ("(1, 2)", (1, 2)), ("None", None), ("gelu", "gelu")],
)
def test_a_param_of_mlflow_is_parsed(text: str, value: object) -> None:
    assert parse_value(text) == value


def test_the_format_is_found_without_unpickling(trained: Scaled, tmp_path: Path) -> None:
    torch.save(trained.state_dict(), tmp_path / "weights.pth")
    torch.save(trained, tmp_path / "module.pth")
    torch.jit.save(torch.jit.script(nn.Linear(2, 2)), tmp_path / "script.pt")
    torch.export.save(torch.export.export(TwoHeads().eval(), (torch.from_numpy(image(2)),)), tmp_path / "program.pt2")
    torch.save({"x": Payload(tmp_path / "ran")}, tmp_path / "payload.ckpt")
    formats = {path.name: format_of_file(path) for path in tmp_path.iterdir()}
    assert formats == {
        "weights.pth": "state_dict",
        "module.pth": "pickle",
        "script.pt": "torchscript",
        "program.pt2": "pt2",
        "payload.ckpt": "pickle",
    }


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (None, "no_factory", "2 weights"),
        (factory(kwargs={"width": 5}), "weights_differ", "linear.bias as (4,) instead of (5,)"),
        (
            FactoryOptions(path="tests.core.models:OneOutput", allowed=("tests",)),
            "weights_differ",
            "it lacks conv.bias, conv.weight",
        ),
        (factory(allowed=()), "factory_not_allowed", "(none)"),
        (factory(allowed=("tests.cor",)), "factory_not_allowed", "(tests.cor)"),
        (FactoryOptions(path="tests.core.models:os.system", allowed=("tests.core",)), "factory_not_allowed", "posix"),
        (factory("Nothing"), "factory_import", "Nothing"),
        (factory("makes_a_dict"), "factory_result", "a dict"),
        (factory("fails"), "factory_failed", "KeyError"),
        (FactoryOptions(path="os.system", allowed=("os",)), "factory_path", "os.system"),
        (FactoryOptions(path="tests.core:../x", allowed=("tests",)), "factory_path", "tests.core:../x"),
    ],
)
def test_a_factory_that_is_not_allowed_or_does_not_fit_is_refused(
    trained: Scaled, tmp_path: Path, options: FactoryOptions | None, code: str, part: str
) -> None:
    torch.save(trained.state_dict(), tmp_path / "w.pth")
    with refused(code, part):
        load_checkpoint(tmp_path / "w.pth", options)


@pytest.mark.parametrize("content", [{"epoch": 3}, [1, 2], {"state_dict": {"a": 1}}])
def test_a_file_without_named_tensors_is_refused(tmp_path: Path, content: object) -> None:
    torch.save(content, tmp_path / "w.pth")
    with refused("no_weights"):
        load_checkpoint(tmp_path / "w.pth", factory())
