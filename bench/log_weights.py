"""``python -m bench.log_weights SIZE WEIGHTS``: a training run that leaves weights, and says what makes their model."""

from __future__ import annotations

import json
import sys

import mlflow

from bench.marking import Marked
from bench.models import FACTORY, INPUT_SPEC
from bench.watch.stacks import EXPERIMENT


def _main(size: str, weights: str) -> None:
    marked = Marked()
    mlflow.set_experiment(EXPERIMENT)
    tags = {
        "onnx_release.factory": FACTORY,
        "onnx_release.factory_kwargs": json.dumps({"size": size}),
        "onnx_release.input_spec": json.dumps(INPUT_SPEC),
    }
    with marked.work(), mlflow.start_run(run_name=size, tags=tags) as run:
        mlflow.log_artifact(weights, "checkpoints")
    marked.report(run_id=run.info.run_id)


if __name__ == "__main__":
    _main(*sys.argv[1:])
