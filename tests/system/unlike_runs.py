"""Training runs of unlike models in several experiments: ``python -m tests.system.unlike_runs END_MS``.

One JSON line per run is printed: ``{"run_id", "experiment", "logged_as", "inputs"}``.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import Tensor, nn


class Segmenter(nn.Module):
    """A mask of the image's size."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 3, padding=1)

    def forward(self, image: Tensor) -> Tensor:
        mask: Tensor = self.conv(image)
        return mask


class Classifier(Segmenter):
    """Two scores for an image."""

    def forward(self, image: Tensor) -> Tensor:
        return self.conv(image).mean((2, 3))


class Reader(nn.Module):
    """Two scores for a text of six tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 8), nn.Linear(8, 2)

    def forward(self, ids: Tensor) -> Tensor:
        scores: Tensor = self.head(self.embedding(ids).mean(1))
        return scores


@dataclass(frozen=True)
class Logged:
    """One run: the experiment, the name of its logged model, and its single input and output."""

    experiment: str
    logged_as: str
    model: nn.Module
    input_name: str
    example: np.ndarray
    output_name: str


def runs() -> list[Logged]:
    """Return five runs in three experiments. The last one has another number of features than its predecessor."""
    random = np.random.default_rng(0)
    image = random.standard_normal((4, 3, 8, 8)).astype(np.float32)
    ids = random.integers(0, 50, (4, 6))
    row, wide = (random.standard_normal((4, width)).astype(np.float32) for width in (5, 7))
    return [
        Logged("text", "reader", Reader(), "ids", ids, "scores"),
        Logged("images", "segmenter", Segmenter(), "image", image, "mask"),
        Logged("images", "classifier", Classifier(), "image", image, "scores"),
        Logged("churn/EU 2026", "table", nn.Linear(5, 1), "row", row, "risk"),
        Logged("churn/EU 2026", "table", nn.Linear(7, 1), "row", wide, "risk"),
    ]


def _signature(name: str, array: np.ndarray, output: str, result: Tensor) -> ModelSignature:
    def schema(name: str, dtype: np.dtype, shape: Sequence[int]) -> Schema:
        return Schema([TensorSpec(dtype, (-1, *shape[1:]), name)])

    return ModelSignature(
        schema(name, array.dtype, array.shape), schema(output, np.dtype("float32"), tuple(result.shape))
    )


def main(end_ms: str) -> None:
    """Log the runs. They end one minute after the other, the first one at `end_ms`."""
    client = mlflow.MlflowClient()
    for number, each in enumerate(runs()):
        mlflow.set_experiment(each.experiment)
        model = each.model.eval()
        signature = _signature(each.input_name, each.example, each.output_name, model(torch.from_numpy(each.example)))
        with mlflow.start_run() as run:
            mlflow.pytorch.log_model(
                model, name=each.logged_as, signature=signature, input_example=each.example, pip_requirements=["torch"]
            )
        client.set_terminated(run.info.run_id, end_time=int(end_ms) + 60_000 * number)
        inputs = [each.input_name, *map(str, each.example.shape[1:])]
        line = {"run_id": run.info.run_id, "experiment": each.experiment, "logged_as": each.logged_as, "inputs": inputs}
        print(json.dumps(line))


if __name__ == "__main__":
    main(*sys.argv[1:])
