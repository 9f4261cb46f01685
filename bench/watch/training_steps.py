"""Steps that log training runs for a measurement."""

from __future__ import annotations

import json
from typing import Any

import mlflow
import numpy as np
import torch
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from bench.models import FACTORY, INPUT_SPEC, make, mlflow_arguments
from bench.servers import EXPERIMENT, MODEL_NAME
from bench.step import Meter

FEATURES = 32
STEPS = 10
SIGNATURE = ModelSignature(
    Schema([TensorSpec(np.dtype("float32"), (-1, FEATURES), "signal")]),
    Schema([TensorSpec(np.dtype("float32"), (-1, 2), "position")]),
)


def log_weights(meter: Meter, size: str, weights: str) -> dict[str, Any]:
    """Log a finished run with weights alone, and tags with the factory of their model."""
    mlflow.set_experiment(EXPERIMENT)
    tags = {
        "onnx_release.factory": FACTORY,
        "onnx_release.factory_kwargs": json.dumps({"size": size}),
        "onnx_release.input_spec": json.dumps(INPUT_SPEC),
    }
    with meter.work(), mlflow.start_run(run_name=size, tags=tags) as run:
        mlflow.log_artifact(weights, "checkpoints")
    return {"run_id": run.info.run_id}


def log_models(meter: Meter, size: str, *seeds: str) -> dict[str, Any]:
    """Log a model per seed and leave the runs RUNNING.

    Args:
        meter: The step's meter.
        size: Size of a reference model, which is not trained; empty for a small trained network.
        seeds: Seeds of the weights. Different weights matter: stores and caches recognise equal content.
    """
    experiment_id = mlflow.set_experiment(EXPERIMENT).experiment_id
    ids = []
    for seed in seeds:
        # A registered model has one set of inputs and outputs.
        tags = {"onnx_release.model_name": f"{MODEL_NAME}-{size}"} if size else None
        run = mlflow.start_run(experiment_id=experiment_id, run_name=f"{size or 'small'}-{seed}", tags=tags)
        if size:
            model, arguments = _reference_model(size, int(seed)), mlflow_arguments()
        else:
            model, signal = small_model(int(seed))
            arguments = {"signature": SIGNATURE, "input_example": signal[:4].numpy(), "pip_requirements": ["torch"]}
        mlflow.pytorch.log_model(model, name="model", **arguments)
        # This status leaves the run without a moment in which it is finished.
        mlflow.end_run("RUNNING")
        ids.append(run.info.run_id)
    return {"run_ids": ids}


def _reference_model(size: str, seed: int) -> nn.Module:
    model = make(size)
    torch.manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            weight.mul_(1 + 1e-3 * torch.randn(()))
    return model


def small_model(seed: int) -> tuple[nn.Module, torch.Tensor]:
    """Return a small network that is fitted to a linear target in a few steps, and its inputs."""
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
