"""Two-layer models with and without faults, saved as a training script saves them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn

INPUTS = {"image": (-1, 3, 8, 8)}
OUTPUTS = {"positions": (-1, 2), "uncertainties": (-1, 2)}


class TwoHeads(nn.Module):
    """A convolution, a batch norm, a dropout and a linear layer, with seeded weights and statistics."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.conv = nn.Conv2d(3, 8, 3)
        self.norm = nn.BatchNorm2d(8)
        self.dropout = nn.Dropout(0.5)
        self.linear = nn.Linear(8, 4)
        for tensor in (*self.parameters(), self.norm.running_mean):
            assert tensor is not None
            nn.init.normal_(tensor, std=0.2, generator=generator)

    def features(self, image: Tensor) -> Tensor:
        hidden = self.dropout(torch.relu(self.norm(self.conv(image))).mean(dim=(2, 3)))
        result: Tensor = self.linear(hidden)
        return result

    def forward(self, image: Tensor) -> Any:
        out = self.features(image)
        return out[:, :2], torch.nn.functional.softplus(out[:, 2:])


class ReturnsDict(TwoHeads):
    """The same outputs as a dict in another order than in the signature."""

    def forward(self, image: Tensor) -> Any:
        positions, uncertainties = super().forward(image)
        return {"uncertainties": uncertainties, "positions": positions}


class OneOutput(TwoHeads):
    def forward(self, image: Tensor) -> Any:
        return self.features(image)[:, :2]


class DecidesByValue(TwoHeads):
    def forward(self, image: Tensor) -> Any:
        positions, uncertainties = super().forward(image)
        return (positions, uncertainties) if positions.sum() > 0 else (uncertainties, positions)


class FreezesBatch(TwoHeads):
    def forward(self, image: Tensor) -> Any:
        positions, uncertainties = super().forward(image)
        count = int(image.shape[0])
        return positions.reshape(count, 2) * torch.ones(2, 2)[:count], uncertainties


class Doubles(TwoHeads):
    def forward(self, image: Tensor) -> Any:
        positions, uncertainties = super().forward(image)
        return positions.double(), uncertainties


class AlwaysDrops(TwoHeads):
    """A dropout that is active in evaluation mode too: `functional.dropout` ignores the mode of the module."""

    def forward(self, image: Tensor) -> Any:
        return super().forward(nn.functional.dropout(image))


class Masked(TwoHeads):
    """A buffer of 0 and -inf, as attention masks have."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mask", torch.triu(torch.full((2, 2), -torch.inf), diagonal=1))

    def forward(self, image: Tensor) -> Any:
        positions, uncertainties = super().forward(image)
        assert isinstance(self.mask, Tensor)
        return positions @ torch.softmax(self.mask, dim=1), uncertainties


class Sum(nn.Module):
    """A model with two inputs."""

    def forward(self, left: Tensor, right: Tensor) -> Tensor:
        return left + 2 * right


class Payload:
    """An object whose pickle makes a folder when it is loaded."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.marker),)


def image(batch: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(1).standard_normal((batch, 3, 8, 8)).astype(np.float32)


def signature(inputs: dict[str, Any] | None = None, outputs: dict[str, Any] | None = None) -> ModelSignature:
    sides = [
        Schema([TensorSpec(np.dtype(np.float32), shape, name) for name, shape in side.items()])
        for side in (inputs or INPUTS, outputs or OUTPUTS)
    ]
    return ModelSignature(inputs=sides[0], outputs=sides[1])


def save(model: nn.Module, folder: Path, **settings: Any) -> Path:
    """Save as `mlflow.pytorch.log_model` does, by default as pt2 with a signature and an example of 4 rows."""
    # Not at module level: a process that unpickles one of these models imports this file, and MLflow imports Lightning.
    import mlflow.pytorch

    # The format is MLflow's default since 3.14.
    defaults = {"signature": signature(), "input_example": image(4), "pip_requirements": ["torch"]}
    defaults["serialization_format"] = "pt2"
    mlflow.pytorch.save_model(model, folder, **defaults | settings)
    return folder
