"""Training runs of the pictures: ``python -m docs.screenshots.training`` logs them and prints their ids as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn


@dataclass(frozen=True)
class Logged:
    """A kind of training run: its experiment, its network, and the names of the input and the output."""

    experiment: str
    network: Callable[[int], nn.Module]
    input_name: str
    input_shape: tuple[int, ...]
    output_name: str


def locator(width: int) -> nn.Module:
    """Return a network that finds a position in a radio signal."""
    return nn.Sequential(
        nn.Linear(64, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width), nn.GELU(),
        nn.Linear(width, 2),
    )  # fmt: skip


def spotter(channels: int) -> nn.Module:
    """Return a network that scores keywords in a spectrogram."""
    return nn.Sequential(
        nn.Conv1d(40, channels, 5, padding=2), nn.ReLU(), nn.Conv1d(channels, channels, 5, padding=2), nn.ReLU(),
        nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(channels, 12),
    )  # fmt: skip


def diverged(channels: int) -> nn.Module:
    """Return a network with a weight that is not a number."""
    model = spotter(channels)
    with torch.no_grad():
        next(model.parameters())[0, 0, 0] = torch.nan
    return model


def embedder(channels: int) -> nn.Module:
    """Return a network that turns an image into an embedding."""
    return nn.Sequential(
        nn.Conv2d(3, channels, 3, stride=2, padding=1), nn.ReLU(),
        nn.Conv2d(channels, channels, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 64),
    )  # fmt: skip


def segmenter(channels: int) -> nn.Module:
    """Return a network whose comparison and measurement take about a minute."""
    layers: list[nn.Module] = [nn.Conv2d(3, channels, 3, padding=1), nn.ReLU()]
    for _ in range(4):
        layers += [nn.Conv2d(channels, channels, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(channels, 8, 1))


_LOCATOR = Logged("radio", locator, "signal", (64,), "position")
_SPOTTER = Logged("speech", spotter, "mel", (40, 98), "scores")
_DIVERGED = Logged("speech", diverged, "mel", (40, 98), "scores")
_EMBEDDER = Logged("vision", embedder, "image", (3, 64, 64), "embedding")
_SEGMENTER = Logged("vision", segmenter, "image", (3, 128, 128), "mask")

# The kind of each training run by its name, with the width of its network.
RUNS = {
    **{f"locator-{n}": (_LOCATOR, width) for n, width in enumerate((256, 288, 320, 384, 512), start=11)},
    "keywords-3": (_SPOTTER, 48),
    "keywords-4": (_SPOTTER, 64),
    "denoiser-7": (_DIVERGED, 48),
    "tagger-2": (_SPOTTER, 32),
    "embedder-5": (_EMBEDDER, 32),
    "quality-9": (_EMBEDDER, 24),
    "streets-1": (_SEGMENTER, 32),
}


def log(name: str, seed: int) -> str:
    """Log a network with random weights as a finished training run, and return the run's id."""
    kind, width = RUNS[name]
    torch.manual_seed(seed)
    model, example = kind.network(width).eval(), torch.randn(4, *kind.input_shape)
    with torch.no_grad():
        result = model(example)

    def schema(name: str, tensor: torch.Tensor) -> Schema:
        return Schema([TensorSpec(np.dtype("float32"), (-1, *tensor.shape[1:]), name)])

    mlflow.set_experiment(kind.experiment)
    with mlflow.start_run(run_name=name) as run:
        mlflow.pytorch.log_model(
            model,
            name="model",
            signature=ModelSignature(schema(kind.input_name, example), schema(kind.output_name, result)),
            input_example=example.numpy(),
            pip_requirements=["torch"],
        )
    return str(run.info.run_id)


if __name__ == "__main__":
    print(json.dumps({name: log(name, seed) for seed, name in enumerate(RUNS)}))
