"""Small trained models in MLflow: ``python -m soak.train EXPERIMENT COUNT WIDTH`` prints the id of each run."""

from __future__ import annotations

import sys

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

SIGNATURE = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, 16), "signal")]),
    Schema([TensorSpec(np.dtype("float32"), (-1, 2), "position")]),
)


def main(experiment: str, count: str, width: str) -> None:
    """Log an untrained network of the width into each run: the weights do not matter to a release."""
    mlflow.set_experiment(experiment)
    for seed in range(int(count)):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(16, int(width)), nn.GELU(), nn.Linear(int(width), 2)).eval()
        with mlflow.start_run(run_name=f"soak-{seed}") as run:
            mlflow.pytorch.log_model(
                model,
                name="model",
                signature=SIGNATURE,
                input_example=torch.randn(4, 16).numpy(),
                pip_requirements=["torch"],
            )
        print(run.info.run_id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
