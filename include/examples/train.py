"""Training script: trains `LocalizationNet` and logs it to an MLflow run. ``python -m examples.train --help``."""

from __future__ import annotations

import argparse
import dataclasses
import logging
import os
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

# OpenMP threads spin while they wait for each other. On shared cores, an epoch then takes two to three times as long.
# OpenMP reads this variable when torch is loaded. An importing process keeps its own setting.
if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import mlflow
import numpy as np
import torch
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec

from examples.fit import Epoch, FitOptions, fit, validation_set
from examples.localization import INPUT_SHAPE, SIZES, LocalizationNet

# MLflow traces the model with this example. A batch of 1 would be frozen in the pt2 archive.
EXAMPLE_BATCH_SIZE = 4
EVALUATION_FILE = "evaluation.npz"

# On two idle cores, an epoch takes about two seconds for nano and five for tiny. A run exceeds its time by at most one
# epoch.
SAMPLES_PER_EPOCH = {"nano": 1024}


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """Configuration of a training run. `seconds`, `epochs_min` and `seed` are those of `FitOptions`.

    MLflow's own settings decide if `tracking_uri` is None. `serialization` is MLflow's storage format: ``pt2`` (an
    exported program, loaded without code) or ``pickle`` (the module, with this package as its code). `model_name` names
    the registered ONNX model; None leaves the name to the release.
    """

    tracking_uri: str | None = None
    experiment: str = "localization"
    run_name: str | None = None
    model_name: str | None = None
    size: str = "tiny"
    seconds: float = 60.0
    epochs_min: int = 1
    seed: int = 7
    serialization: Literal["pt2", "pickle"] = "pt2"

    def fit_options(self) -> FitOptions:
        """Return the options of the training loop, with an epoch length for the size of the model."""
        return FitOptions(
            seconds=self.seconds,
            epochs_min=self.epochs_min,
            seed=self.seed,
            samples_per_epoch=SAMPLES_PER_EPOCH.get(self.size, FitOptions().samples_per_epoch),
        )


def train(config: TrainConfig) -> str:
    """Train and log one run, print a line for each epoch, and return the run id.

    The run is FINISHED after the model is logged. An error before that leaves it FAILED. MLflow's global tracking URI
    and experiment stay changed.
    """
    torch.manual_seed(config.seed)
    model = LocalizationNet(config.size).to("cuda" if torch.cuda.is_available() else "cpu")
    options = config.fit_options()
    if config.tracking_uri:
        mlflow.set_tracking_uri(config.tracking_uri)
    mlflow.set_experiment(config.experiment)
    with mlflow.start_run(run_name=config.run_name or f"localization-{config.size}-seed{config.seed}") as run:
        _log_settings(model, config, options)
        for epoch in fit(model, options):
            mlflow.log_metrics(epoch.metrics, step=epoch.number)
            print(_progress_line(epoch, options), flush=True)
        _log_model(model.cpu().eval(), config, options)
        _log_evaluation(options)
        return str(run.info.run_id)


def _log_settings(model: LocalizationNet, config: TrainConfig, options: FitOptions) -> None:
    mlflow.log_params(
        dataclasses.asdict(options)
        | {
            "size": config.size,
            "parameter_count": sum(parameter.numel() for parameter in model.parameters()),
            "optimizer": "AdamW",
            "loss": "gaussian_nll",
            "device": next(model.parameters()).device.type,
            "threads": torch.get_num_threads(),
        }
    )
    mlflow.set_tags(
        {
            "model_class": "LocalizationNet",
            "data": "synthetic mel-spectrograms, three receivers",
            "position_unit": "100 m",
            "serialization_format": config.serialization,
            "torch_version": torch.__version__,
        }
        | ({"onnx_release.model_name": config.model_name} if config.model_name else {})
    )


def _log_model(model: LocalizationNet, config: TrainConfig, options: FitOptions) -> None:
    """Log `model`, which must be on the CPU and in eval mode: a pt2 archive keeps the device and mode of its trace."""
    # Without requirements, MLflow loads the model again to infer them. PyPI has no "+cpu" versions.
    versions = {"mlflow": mlflow.__version__, "numpy": np.__version__, "torch": torch.__version__.split("+")[0]}
    mlflow.pytorch.log_model(
        model,
        name="model",
        signature=_signature(),
        input_example=validation_set(options)[0][:EXAMPLE_BATCH_SIZE].numpy(),
        pip_requirements=[f"{name}=={version}" for name, version in versions.items()],
        serialization_format=config.serialization,
        code_paths=[str(Path(__file__).parent)] if config.serialization == "pickle" else None,
    )


def _log_evaluation(options: FitOptions) -> None:
    """Log an evaluation file and its tag. A release measures the variants of the model on these samples."""
    inputs, positions = validation_set(options)
    with tempfile.TemporaryDirectory() as folder:
        sample = Path(folder, EVALUATION_FILE)
        arrays: dict[str, Any] = {"mel_spectrogram": inputs.numpy(), "target.positions": positions.numpy()}
        np.savez(sample, **arrays)
        mlflow.log_artifact(str(sample))
    mlflow.set_tag("onnx_release.evaluation", EVALUATION_FILE)


def _signature() -> ModelSignature:
    float32 = np.dtype(np.float32)
    return ModelSignature(
        inputs=Schema([TensorSpec(float32, (-1, *INPUT_SHAPE), "mel_spectrogram")]),
        outputs=Schema([TensorSpec(float32, (-1, 2), "positions"), TensorSpec(float32, (-1, 2), "uncertainties")]),
    )


def _progress_line(epoch: Epoch, options: FitOptions) -> str:
    when = f"epoch {epoch.number:3d}  {epoch.elapsed_s:5.0f} of {options.seconds:.0f} s"
    likelihood = f"train_nll {epoch.train_nll:6.3f}  val_nll {epoch.val_nll:6.3f}"
    return f"{when}  {likelihood}  val_mae {epoch.val_mae:.3f}  (baseline: {epoch.val_mae_baseline:.3f})"


def _parse(arguments: list[str] | None) -> TrainConfig:
    default = TrainConfig()
    parser = argparse.ArgumentParser(prog="python -m examples.train", description=__doc__)
    parser.add_argument("--tracking-uri", help="MLflow server or store; default: MLFLOW_TRACKING_URI")
    parser.add_argument("--experiment", default=default.experiment, metavar="NAME")
    parser.add_argument("--run-name", metavar="NAME")
    parser.add_argument(
        "--model-name", metavar="NAME", help="registered model of the ONNX release, as a tag of the run"
    )
    parser.add_argument("--size", choices=tuple(SIZES), default=default.size)
    parser.add_argument("--seconds", type=float, default=default.seconds, help="minimum duration of the training")
    parser.add_argument(
        "--epochs-min", type=int, default=default.epochs_min, metavar="N", help="minimum number of epochs"
    )
    parser.add_argument("--seed", type=int, default=default.seed)
    parser.add_argument("--serialization", choices=("pt2", "pickle"), default=default.serialization)
    return TrainConfig(**vars(parser.parse_args(arguments)))


def _quiet_mlflow() -> None:
    """Silence MLflow's messages: migrations, progress bars, links and the warning about pickles."""
    for variable in ("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "MLFLOW_DISABLE_TELEMETRY"):
        os.environ.setdefault(variable, "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    for name in ("mlflow", "alembic"):
        logging.getLogger(name).setLevel(logging.ERROR)


def main(arguments: list[str] | None = None) -> int:
    """Run the command line. The last line of the output is ``run_id=<id>``."""
    config = _parse(arguments)
    _quiet_mlflow()
    # By default, SIGTERM ends Python without cleanup, and the run would stay RUNNING.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        run_id = train(config)
    except (MlflowException, FloatingPointError) as error:
        print(f"training failed: {error}", file=sys.stderr)
        return 1
    print(f"run_id={run_id}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
