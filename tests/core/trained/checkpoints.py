"""Models of training scripts, and their checkpoints: written, loaded, and compared with the released file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from onnx_release.trained.load import load_unchecked, value_findings
from onnx_release.trained.mlflow_model import TrainedPackage
from onnx_release.trained.model_factory import FactoryOptions
from onnx_release.trained.state_dict import format_of_file
from tests.core.judging import Judged


class Net(nn.Module):
    """A batch norm between two layers."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enc = nn.Sequential(nn.Linear(8, width), nn.BatchNorm1d(width), nn.ReLU())
        self.head = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(self.enc(x))
        return scores


class Tied(nn.Module):
    """A language model whose head shares the weight of the embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.e, self.mid, self.head = nn.Embedding(4000, 16), nn.Linear(16, 16), nn.Linear(16, 4000, bias=False)
        self.head.weight = self.e.weight

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.mid(self.e(ids))))
        return scores


class Scaled(nn.Module):
    """A layer after a buffer of means."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 3)
        self.register_buffer("mean", torch.zeros(8))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x - self.mean)
        return scores


class Values(nn.Module):
    """Values that `__init__` reads from tensors, and tensors in containers."""

    def __init__(self) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.scale = torch.ones(3).numpy() * 2
        self.anchors = [torch.tensor([1.0, 2.0, 3.0]), torch.tensor([4.0, 5.0, 6.0])]
        self.norm = {"mean": torch.ones(8) * 0.5, "spread": torch.ones(8) * 2}
        self.linear = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear((x - self.norm["mean"]) / self.norm["spread"]) * (1 - sum(self.rates))
        return torch.cat([hidden * anchor * float(self.scale[0]) for anchor in self.anchors], 1)


class Lazy(nn.Module):
    """Layers that take their sizes from the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden, self.norm, self.head = nn.LazyLinear(16), nn.LazyBatchNorm1d(), nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.head(torch.relu(self.norm(self.hidden(x))))
        return scores


class Gain(nn.Module):
    """Extra state beside the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.gain = nn.Linear(8, 3), 2.0

    def get_extra_state(self) -> dict[str, float]:
        return {"gain": self.gain}

    def set_extra_state(self, state: dict[str, float]) -> None:
        self.gain = state["gain"]

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x) * self.gain
        return scores


class Normed(nn.Module):
    """Weight norm as a parametrization; its hook reads the names of the older function."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.linear(x)
        return scores


class OldNormed(nn.Module):
    """Weight norm and spectral norm as hooks, which compute a plain attribute before each call."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.utils.weight_norm(nn.Linear(8, 3))
        self.last = nn.utils.spectral_norm(nn.Linear(3, 3))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.last(self.linear(x))
        return scores


class Mixed(nn.Module):
    """Buffers of int8 and complex numbers, an LSTM, and a submodule with a wrapper's name."""

    def __init__(self) -> None:
        super().__init__()
        self.module, self.rnn = nn.Linear(8, 3), nn.LSTM(3, 4, batch_first=True)
        self.register_buffer("signs", torch.tensor([1, -1, 1], dtype=torch.int8))
        self.register_buffer("phases", torch.ones(3, dtype=torch.complex64))

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.rnn((self.module(x) * self.signs * self.phases.real)[:, None])[0]
        return scores


class RandomTable(nn.Module):
    """A random tensor and a layer that no state dict has."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.table, self.more = nn.Linear(8, 3), torch.randn(3), [nn.Linear(3, 3)]


class Lightning(nn.Module):
    """A Lightning module: the network, the weights of a loss, a metric."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.model, self.loss_fn, self.val_acc = network, nn.CrossEntropyLoss(torch.ones(3)), nn.BatchNorm1d(2)


class Setting:
    """An object of the training code."""


class Settings(dict[str, int]):
    """A dict of the training code, with an attribute."""

    name = "run"


def options(name: str, **more: Any) -> FactoryOptions:
    return FactoryOptions(path=f"{__name__}:{name}" if name else "", allowed=("tests.core",), **more)


def stored(path: Path, content: Any, **more: Any) -> Path:
    torch.save(content, path, **more)
    return path


def load(path: Path, factory: FactoryOptions, *, allow_pickle: bool = False) -> tuple[nn.Module, dict[str, str]]:
    """Return the loaded model, and the messages of its findings by code."""
    package = TrainedPackage(
        format=format_of_file(path), data_path=path, inputs=(), outputs=(), example=None, pytorch_version="unknown"
    )
    model, findings = load_unchecked(package, allow_pickle=allow_pickle, factory=factory)
    assert isinstance(model, nn.Module)
    return model, {finding.code: finding.message for finding in (*findings, *value_findings(model))}


def assert_same(model: nn.Module, expected: nn.Module) -> None:
    x = torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected.eval()(x))


def assert_released(judged: Judged, expected: nn.Module, **feed: Any) -> None:
    with torch.no_grad():
        reference = expected.eval()(*(torch.from_numpy(array) for array in feed.values())).numpy()
    [output] = judged.run(**feed).values()
    np.testing.assert_allclose(output, reference, atol=1e-4)
    assert output.dtype == reference.dtype


def renamed(model: nn.Module, rename: Callable[[str], str]) -> dict[str, Any]:
    return {rename(name): value for name, value in model.state_dict().items()}


def scaled(model: nn.Module, factor: float) -> dict[str, Any]:
    return {name: value * factor for name, value in model.state_dict().items()}
