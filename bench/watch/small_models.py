"""Trains small models into MLflow runs that go on: ``python -m bench.watch.small_models EXPERIMENT SEED...``."""

from __future__ import annotations

import sys

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

FEATURES = 32
STEPS = 10
SIGNATURE = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, FEATURES), "signal")]),
    Schema([TensorSpec(np.dtype("float32"), (-1, 2), "position")]),
)


def main(experiment: str, *seeds: str) -> None:
    """Print the id of each run as soon as its model is logged; the runs are left RUNNING."""
    experiment_id = mlflow.set_experiment(experiment).experiment_id
    for seed in seeds:
        run = mlflow.start_run(experiment_id=experiment_id, run_name=f"small-{seed}")
        model, signal = trained(int(seed))
        mlflow.pytorch.log_model(
            model, name="model", signature=SIGNATURE, input_example=signal[:4].numpy(), pip_requirements=["torch"]
        )
        # Lets go of the run without a moment in which it has finished.
        mlflow.end_run("RUNNING")
        print(run.info.run_id, flush=True)


def trained(seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Fit a network of other weights for each seed to a linear target, for a few steps."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(FEATURES, 64), nn.GELU(), nn.Linear(64, 2))
    signal = torch.randn(128, FEATURES)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(STEPS):
        loss = (model(signal) - signal[:, :2]).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval(), signal


if __name__ == "__main__":
    main(*sys.argv[1:])
