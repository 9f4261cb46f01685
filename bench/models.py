"""Reference models: made once per call of the bench, as a training run leaves them, and exported."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.step import Meter
    from examples.localization import LocalizationNet
    from onnx_release.export.contract import ModelContract

LARGE, TINY, HUGE = "large", "tiny", "huge"
FACTORY = "examples.localization:LocalizationNet"
INPUT_SPEC = [{"name": "mel_spectrogram", "dtype": "float32", "shape": ["batch", 3, 128, 32], "low": -3, "high": 3}]
OUTPUT_NAMES = ("positions", "uncertainties")
WEIGHTS, EVALUATION = "weights.safetensors", "evaluation.npz"
# The artifact's folder and its record in an export's folder.
ARTIFACT, RECORD = "onnx", "artifact.json"
# Spectrograms for fitting, and for evaluation; a tuning takes up to 64 of the latter for its ranges.
_FITTED_ROWS, _EVALUATED_ROWS, _BATCH_ROWS = 384, 192, 32
_EPOCHS, _LEARNING_RATE, _WEIGHT_DECAY = 60, 3e-3, 0.05


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Files of models below `folder`, made on first use; a rehearsal uses a model of half a megabyte for all."""

    folder: Path
    rehearsal: bool = False
    _made: set[str] = field(default_factory=set)

    def size(self, name: str) -> str:
        """Return the size of `LocalizationNet` for this name."""
        return "nano" if self.rehearsal else name

    def weights(self, name: str) -> Path:
        """Return a file of weights; a factory makes the model."""
        return self._made_by("make_weights", name) / WEIGHTS

    def package(self, name: str) -> Path:
        """Return the folder of a pt2 program as MLflow logs it."""
        return self._made_by("make_pt2", name)

    def fitted(self, name: str) -> Path:
        """Return the weights of a model with fitted heads, with an evaluation sample beside them."""
        return self._made_by("make_fitted", name) / WEIGHTS

    def exported(self, name: str, *, fitted: bool = False) -> Path:
        """Return the folder of a finished export step, see `bench.release_steps`."""
        from bench.sides import Step

        weights = self.fitted(name) if fitted else self.weights(name)
        folder = self.folder / f"exported-{weights.parent.name}"
        if folder.name not in self._made:
            folder.mkdir()
            Step("bench.release_steps:export", (self.size(name), str(weights), str(folder))).run()
            self._made.add(folder.name)
        return folder

    def _made_by(self, step: str, name: str) -> Path:
        from bench.sides import Step

        path = self.folder / f"{step}-{name}"
        if path.name not in self._made:
            Step(f"bench.models:{step}", (self.size(name), str(path))).run()
            self._made.add(path.name)
        return path


def make(size: str) -> LocalizationNet:
    """Return the model in eval mode, equal at each call, with weights that make every block matter.

    In a fresh network a block adds a millionth to its input, and every bias is zero. Errors of an exporter in most of
    such a network would not be visible in its outputs.
    """
    import torch

    from examples.localization import Block, LocalizationNet

    torch.manual_seed(0)
    model = LocalizationNet(size).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Block):
                module.layer_scale.uniform_(0.1, 1.0)
            if isinstance(module, torch.nn.LayerNorm | torch.nn.BatchNorm1d):
                module.weight.uniform_(0.5, 1.5)
            if isinstance(module, torch.nn.BatchNorm1d):
                module.running_mean.normal_(std=0.1)  # type: ignore[union-attr] # it tracks them
                module.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr] # as above
            if isinstance(bias := getattr(module, "bias", None), torch.Tensor):
                bias.normal_(std=0.02)
    return model


def contract() -> ModelContract:
    """Return the reference model's inputs and outputs, with an example as a training run leaves it."""
    from onnx_release.export.contract import ModelContract
    from onnx_release.limits import EXPORT_BATCH_SIZE
    from onnx_release.records import TensorSpec
    from onnx_release.samples.generate import make_samples

    inputs = (TensorSpec(name="mel_spectrogram", dtype="float32", shape=("batch", 3, 128, 32)),)
    outputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 2)) for name in OUTPUT_NAMES)
    sample = make_samples(inputs, None, (EXPORT_BATCH_SIZE,))[0]
    return ModelContract(inputs=inputs, outputs=outputs, example=sample.inputs)


def mlflow_arguments() -> dict[str, Any]:
    """Return signature, example (four spectrograms of noise) and requirements for MLflow's `save_model`."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    float32 = np.dtype(np.float32)
    signature = ModelSignature(
        Schema([TensorSpec(float32, (-1, 3, 128, 32), "mel_spectrogram")]),
        Schema([TensorSpec(float32, (-1, 2), name) for name in OUTPUT_NAMES]),
    )
    example = np.random.default_rng(0).standard_normal((4, 3, 128, 32)).astype(np.float32)
    return {"signature": signature, "input_example": example, "pip_requirements": ["torch"]}


def make_weights(meter: Meter, size: str, folder: str) -> None:
    """Step: write a file of weights."""
    _save_weights(make(size), Path(folder))


def make_pt2(meter: Meter, size: str, folder: str) -> None:
    """Step: write a pt2 program with MLflow."""
    import mlflow

    mlflow.pytorch.save_model(make(size), folder, **mlflow_arguments())


def make_fitted(meter: Meter, size: str, folder: str) -> None:
    """Step: write weights with fitted heads and an evaluation sample.

    The error of a reduced precision is visible only in meaningful answers. Those of untrained heads are nearly equal,
    and any error is large beside them. Training all parameters would take longer than all measurements.
    """
    import numpy as np

    from examples.spectrograms import make_spectrograms
    from onnx_release.parity.task_metrics import TARGET

    model = make(size)
    _fit_heads(model)
    _save_weights(model, Path(folder))
    inputs, positions = make_spectrograms(_EVALUATED_ROWS, seed=1)
    # Weights have no names of outputs.
    arrays: dict[str, Any] = {"mel_spectrogram": inputs, f"{TARGET}output_0": positions}
    np.savez(Path(folder, EVALUATION), **arrays)


def _save_weights(model: LocalizationNet, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(model.state_dict(), folder / WEIGHTS)


def _fit_heads(model: LocalizationNet) -> None:
    """Fit both heads in place, with equal results on one machine; the backbone stays unchanged."""
    import torch
    from torch.nn import functional

    from examples.fit import negative_log_likelihood
    from examples.localization import UNCERTAINTY_MAX, UNCERTAINTY_MIN
    from examples.spectrograms import make_spectrograms

    torch.manual_seed(0)
    inputs, positions = (torch.from_numpy(array) for array in make_spectrograms(_FITTED_ROWS, seed=0))
    with torch.no_grad():
        batches = inputs.split(_BATCH_ROWS)
        features = torch.cat([model.norm(model.backbone(batch).mean(dim=(2, 3))) for batch in batches])
    heads = torch.nn.ModuleList([model.position_head, model.uncertainty_head]).train()
    optimizer = torch.optim.AdamW(heads.parameters(), lr=_LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
    for _ in range(_EPOCHS):
        for rows in torch.randperm(len(features)).split(_BATCH_ROWS):
            raw = functional.softplus(model.uncertainty_head(features[rows]))
            outputs = model.position_head(features[rows]), raw.clamp(UNCERTAINTY_MIN, UNCERTAINTY_MAX)
            optimizer.zero_grad()
            negative_log_likelihood(outputs, positions[rows]).backward()
            optimizer.step()
    model.eval()
