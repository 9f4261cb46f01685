"""Logs reference models into runs that go on: ``python -m bench.scale.reference_runs EXPERIMENT SIZE SEED...``."""

from __future__ import annotations

import sys

import mlflow
import torch

from bench.models import example, make, signature


def main(experiment: str, size: str, *seeds: str) -> None:
    """Print the id of each run as soon as its model is logged; the runs are left RUNNING.

    Weights differ from run to run: a store and a cache go by content, and would know the second from the first.
    """
    experiment_id = mlflow.set_experiment(experiment).experiment_id
    for seed in seeds:
        run = mlflow.start_run(experiment_id=experiment_id, run_name=f"{size}-{seed}")
        model = make(size)
        torch.manual_seed(int(seed))
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(1 + 1e-3 * torch.randn(()))
        mlflow.pytorch.log_model(
            model, name="model", signature=signature(), input_example=example(), pip_requirements=["torch"]
        )
        # Lets go of the run without a moment in which it has finished.
        mlflow.end_run("RUNNING")
        print(run.info.run_id, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
