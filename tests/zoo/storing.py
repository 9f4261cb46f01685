"""Formats of trained models: MLflow folders, compiled modules, and checkpoints of weights."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlflow.pytorch
import numpy as np
import safetensors.torch
import torch
import yaml
from mlflow.models import ModelSignature
from mlflow.types import Schema, TensorSpec
from torch import nn

from onnx_release.records import TensorSpec as Tensor
from onnx_release.trained.input_spec import InputSpec
from tests.zoo.building import example_tensors
from tests.zoo.entry import Entry


def store(model: nn.Module, entry: Entry, folder: Path) -> Path:
    """Save the model in the entry's format. Return the folder or the file for the release."""
    return _STORES[entry.store](model, entry, folder)


def _pt2(model: nn.Module, entry: Entry, folder: Path) -> Path:
    # MLflow passes the example of such a model by position, and stores it only when it is one array.
    arrays = tuple(entry.example().values())
    example = arrays[0] if len(arrays) == 1 else arrays
    return _save(model, entry, folder, serialization_format="pt2", input_example=example)


def _pickle(model: nn.Module, entry: Entry, folder: Path) -> Path:
    example: Any = entry.example() if entry.exampled else None
    if entry.exampled and len(example) == 1:
        [example] = example.values()
    return _save(model, entry, folder, serialization_format="pickle", input_example=example)


def _trace(model: nn.Module, entry: Entry, folder: Path) -> Path:
    traced = torch.jit.trace(model, tuple(example_tensors(entry).values()))
    assert isinstance(traced, nn.Module)
    return _pickle(traced, entry, folder)


def _mlflow_2(model: nn.Module, entry: Entry, folder: Path) -> Path:
    """Save as MLflow 2 does: a pickle, with fewer keys in the file MLmodel."""
    _pickle(model, entry, folder)
    path = folder / "MLmodel"
    data = yaml.safe_load(path.read_text())
    kept = ("flavors", "model_size_bytes", "model_uuid", "saved_input_example_info", "signature", "utc_time_created")
    old = {key: data[key] for key in kept if key in data}
    path.write_text(yaml.safe_dump(old | {"mlflow_version": "2.22.0", "run_id": "0" * 32, "artifact_path": "model"}))
    return folder


def _state_dict(model: nn.Module, entry: Entry, folder: Path) -> Path:
    folder.mkdir()
    torch.save(model.state_dict(), folder / "weights.pth")
    return folder / "weights.pth"


def _safetensors(model: nn.Module, entry: Entry, folder: Path) -> Path:
    folder.mkdir()
    safetensors.torch.save_model(model, str(folder / "weights.safetensors"))
    return folder / "weights.safetensors"


def _wrapped_checkpoint(model: nn.Module, entry: Entry, folder: Path) -> Path:
    """Save as a script does that compiled a model in DistributedDataParallel and keeps its command line."""
    weights = {f"_orig_mod.module.{name}": tensor for name, tensor in model.state_dict().items()}
    return _checkpoint({"state_dict": weights, "args": argparse.Namespace(lr=0.1), "epoch": 3}, folder)


def _half_checkpoint(model: nn.Module, entry: Entry, folder: Path) -> Path:
    halves = {name: t.half() if t.is_floating_point() else t for name, t in model.state_dict().items()}
    return _checkpoint(halves, folder)


def _two_networks(model: nn.Module, entry: Entry, folder: Path) -> Path:
    return _checkpoint({"generator": model.state_dict(), "discriminator": model.state_dict()}, folder)


def _checkpoint(content: dict[str, Any], folder: Path) -> Path:
    folder.mkdir()
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def _lightning(model: nn.Module, entry: Entry, folder: Path) -> Path:
    from tests.zoo.lightning_models import fit

    return fit(model, entry, folder / "last.ckpt")


_STORES: dict[str, Callable[[nn.Module, Entry, Path], Path]] = {
    "pt2": _pt2,
    "pickle": _pickle,
    "mlflow 2": _mlflow_2,
    "script": _pickle,
    "trace": _trace,
    "state dict": _state_dict,
    "safetensors": _safetensors,
    "lightning": _lightning,
    "wrapped checkpoint": _wrapped_checkpoint,
    "half checkpoint": _half_checkpoint,
    "two networks": _two_networks,
}


def _save(model: nn.Module, entry: Entry, folder: Path, **settings: Any) -> Path:
    signature = _signature(entry) if entry.signed else False
    mlflow.pytorch.save_model(model, folder, signature=signature, pip_requirements=["torch"], **settings)
    return folder


def _signature(entry: Entry) -> ModelSignature:
    sides = [Schema([_tensor(spec) for spec in side]) for side in (entry.inputs, entry.outputs)]
    return ModelSignature(inputs=sides[0], outputs=sides[1])


def _tensor(spec: InputSpec | Tensor) -> TensorSpec:
    shape = tuple(-1 if isinstance(size, str) else size for size in spec.shape)
    return TensorSpec(np.dtype(spec.dtype), shape, spec.name)
