"""Trains small models into runs that go on: ``python -m tests.system.small_runs EXPERIMENT/SEED...`` prints ids."""

from __future__ import annotations

import sys

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

SIGNATURE = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, 64), "signal")]),
    Schema([TensorSpec(np.dtype("float32"), (-1, 2), "position")]),
)


def train(seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Fit a small network to a linear target for a few steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 256), nn.GELU(), nn.Linear(256, 256), nn.GELU(), nn.Linear(256, 2))
    signal = torch.randn(256, 64)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(20):
        loss = (model(signal) - signal[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), signal


def main(*names: str) -> None:
    """Log one model for each name of an experiment and a seed. The runs are left RUNNING."""
    client = mlflow.MlflowClient()
    for name in names:
        experiment, seed = name.split("/")
        experiment_id = mlflow.set_experiment(experiment).experiment_id
        run_id = client.create_run(experiment_id, run_name=f"small-{seed}").info.run_id
        model, signal = train(int(seed))
        with mlflow.start_run(run_id=run_id):
            mlflow.pytorch.log_model(
                model,
                name="model",
                signature=SIGNATURE,
                input_example=signal[:4].numpy(),
                pip_requirements=["torch"],
            )
        client.update_run(run_id, status="RUNNING")
        print(run_id)


if __name__ == "__main__":
    main(*sys.argv[1:])
