"""Training run of a small model, logged by the lines of README.md. It needs mlflow and torch alone.

``python train.py EXPERIMENT FEATURES`` prints the id of the run. MLFLOW_TRACKING_URI names the server.
"""

from __future__ import annotations

import sys

import mlflow
import torch
from mlflow.models import infer_signature


def main(experiment: str, features: int) -> None:
    """Train for a moment and log the model."""
    torch.manual_seed(7)
    model = torch.nn.Sequential(torch.nn.Linear(features, 64), torch.nn.ReLU(), torch.nn.Linear(64, 2))
    optimizer = torch.optim.Adam(model.parameters())
    batch = torch.randn(64, features)
    mlflow.set_experiment(experiment)
    with mlflow.start_run() as run:
        for _ in range(100):
            optimizer.zero_grad()
            loss = (model(batch) - batch[:, :2]).square().mean()
            loss.backward()
            optimizer.step()
        mlflow.log_metric("loss", loss.item())
        model.eval()
        with torch.no_grad():
            signature = infer_signature(batch.numpy(), model(batch).numpy())
        mlflow.pytorch.log_model(model, name="model", signature=signature, input_example=batch.numpy())
    print(run.info.run_id)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
