"""The reference models, made once a call and when they are first asked for: as training runs leave them, and exported.

``python -m bench.models KIND SIZE PATH`` makes one, in a process of its own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from examples.localization import LocalizationNet
    from onnx_release.export.contract import ModelContract

LARGE, TINY, HUGE = "large", "tiny", "huge"
FACTORY = "examples.localization:LocalizationNet"
INPUT_SPEC = [{"name": "mel_spectrogram", "dtype": "float32", "shape": ["batch", 3, 128, 32], "low": -3, "high": 3}]
OUTPUT_NAMES = ("positions", "uncertainties")
WEIGHTS = "weights.safetensors"
EVALUATION = "evaluation.npz"


@dataclass(frozen=True, slots=True, kw_only=True)
class Models:
    """Files of models below `folder`; a rehearsal takes a model of half a megabyte in place of each."""

    folder: Path
    rehearsal: bool = False
    _made: set[str] = field(default_factory=set)

    def size(self, name: str) -> str:
        """Return the size of `LocalizationNet` that stands for this one."""
        return "nano" if self.rehearsal else name

    def weights(self, name: str) -> Path:
        """Return the weights alone, as a file beside which a factory makes the model."""
        return self._path("weights", name) / WEIGHTS

    def package(self, name: str) -> Path:
        """Return the folder of a pt2 program, as MLflow logs it."""
        return self._path("pt2", name)

    def fitted(self, name: str) -> Path:
        """Return the weights of a model that answers rightly, with a sample to evaluate on beside it."""
        return self._path("fitted", name) / WEIGHTS

    def exported(self, name: str, *, fitted: bool = False) -> Path:
        """Return a folder that the release's export has filled, see `bench.release_steps`."""
        weights = self.fitted(name) if fitted else self.weights(name)
        folder = self.folder / f"exported-{weights.parent.name}"
        if folder.name not in self._made:
            from bench.sides import Step, run_step

            folder.mkdir()
            run_step(Step("bench.release_steps", ("export", self.size(name), str(weights), str(folder))))
            self._made.add(folder.name)
        return folder

    def _path(self, kind: str, name: str) -> Path:
        from bench.sides import Step, run_step

        path = self.folder / f"{kind}-{name}"
        if path.name not in self._made:
            run_step(Step("bench.models", (kind, self.size(name), str(path))))
            self._made.add(path.name)
        return path


def make(size: str) -> LocalizationNet:
    """Return the model in eval mode, the same at each call, with weights by which every block matters.

    As it is initialised, a block adds a millionth to what passes by it, and every bias is zero: an exporter could get
    most of the network wrong and nobody would see it in the outputs.
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
    """Return what the reference model takes and gives, with an example as a training run would leave it."""
    from onnx_release.export.contract import ModelContract
    from onnx_release.limits import EXPORT_BATCH_SIZE
    from onnx_release.records import TensorSpec
    from onnx_release.samples.generate import make_samples

    inputs = (TensorSpec(name="mel_spectrogram", dtype="float32", shape=("batch", 3, 128, 32)),)
    outputs = tuple(TensorSpec(name=name, dtype="float32", shape=("batch", 2)) for name in OUTPUT_NAMES)
    sample = make_samples(inputs, None, (EXPORT_BATCH_SIZE,))[0]
    return ModelContract(inputs=inputs, outputs=outputs, example=sample.inputs)


def signature() -> Any:
    """Return the same as MLflow writes it down."""
    import numpy as np
    from mlflow.models import ModelSignature
    from mlflow.types import Schema, TensorSpec

    float32 = np.dtype(np.float32)
    return ModelSignature(
        Schema([TensorSpec(float32, (-1, 3, 128, 32), "mel_spectrogram")]),
        Schema([TensorSpec(float32, (-1, 2), name) for name in OUTPUT_NAMES]),
    )


def example() -> Any:
    """Return four spectrograms of noise, as a training run logs an example beside its model."""
    import numpy as np

    return np.random.default_rng(0).standard_normal((4, 3, 128, 32)).astype(np.float32)


def _weights(size: str, folder: Path) -> None:
    from safetensors.torch import save_file

    folder.mkdir()
    save_file(make(size).state_dict(), folder / WEIGHTS)


def _fitted(size: str, folder: Path) -> None:
    from safetensors.torch import save_file

    from bench.fitting import fit_heads, save_evaluation

    folder.mkdir()
    model = make(size)
    fit_heads(model)
    save_file(model.state_dict(), folder / WEIGHTS)
    save_evaluation(folder / EVALUATION)


def _pt2(size: str, folder: Path) -> None:
    import mlflow

    mlflow.pytorch.save_model(
        make(size), str(folder), signature=signature(), input_example=example(), pip_requirements=["torch"]
    )


_KINDS: dict[str, Callable[[str, Path], Any]] = {"weights": _weights, "fitted": _fitted, "pt2": _pt2}


def _main(kind: str, size: str, path: str) -> None:
    from bench.marking import Marked

    marked = Marked()
    with marked.work():
        _KINDS[kind](size, Path(path))
    marked.report()


if __name__ == "__main__":
    _main(*sys.argv[1:])
