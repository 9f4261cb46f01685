"""From the bytes that a training run left to a PyTorch model: what may be loaded, and what is refused before it is."""

from __future__ import annotations

import logging
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.export import ExportedProgram

from onnx_release.errors import Refused
from onnx_release.trained.mapped_weights import MappedPages
from onnx_release.trained.mlflow_model import TrainedPackage
from onnx_release.trained.model_factory import FactoryOptions
from onnx_release.trained.scan_pt2 import refuse_code
from onnx_release.trained.scan_torchscript import refuse_foreign_operators
from onnx_release.trained.state_dict import load_checkpoint

LoadedModel = ExportedProgram | torch.nn.Module
"""A loaded model: an exported program keeps the mode and device it was traced with, a module is in eval mode."""

_RELOG = "Log the model again from the training code; if the download was cut short, clear 'export'."


def load_trained(package: TrainedPackage, *, allow_pickle: bool, factory: FactoryOptions | None = None) -> LoadedModel:
    """Load a model onto the CPU, its weights checked; a module comes in eval mode.

    :param allow_pickle: whether the deployment lets a training run's own code run here. Without it a pickle is not
        opened, and an archive (pt2, TorchScript) is opened only when nothing in it is code of the run's own.
    :param factory: what makes the model that a state dict belongs to.
    :raises Refused: for a pickle that is not allowed, a broken file, something that is no model, weights that hold NaN
        or infinity. Every such tensor is named, with the count.
    """
    _require_intact(package)
    model: LoadedModel
    if package.kind == "pt2":
        model = _load_pt2(package, allow_pickle)
    elif package.kind == "torchscript":
        model = _load_script(package, allow_pickle)
    elif package.kind == "state_dict":
        model = load_checkpoint(package.data_path, factory)
    else:
        model = _load_pickle(package, allow_pickle)
    _refuse_non_finite(model)
    return model


def _require_intact(package: TrainedPackage) -> None:
    """Compare each record with its checksum, which torch's reader does not: it takes a flipped bit for a weight."""
    with _loading(package):
        # A pickle of torch 1.5 or before is no archive, and has no checksums.
        if zipfile.is_zipfile(package.data_path):
            with zipfile.ZipFile(package.data_path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"record {damaged} is damaged, its checksum is another")


def _load_pt2(package: TrainedPackage, allow_pickle: bool) -> ExportedProgram:
    if not allow_pickle:
        refuse_code(package.data_path)
    with _loading(package), _quiet():
        return torch.export.load(package.data_path)


def _load_script(package: TrainedPackage, allow_pickle: bool) -> torch.jit.ScriptModule:
    if not allow_pickle:
        refuse_foreign_operators(package.data_path)
    with _loading(package), _quiet():
        model: torch.jit.ScriptModule = torch.jit.load(package.data_path, map_location="cpu")
    return model.eval()


def _load_pickle(package: TrainedPackage, allow_pickle: bool) -> torch.nn.Module:
    if not allow_pickle:
        raise Refused(
            f"model file {package.data_path.name}",
            "is a pickle, which runs code of the training run when it is loaded, and this deployment allows none",
            "Log the model with serialization_format='pt2' (MLflow's default since 3.14) or its state dict, "
            "or let the deployment trust its training runs: [onnx_release] allow_pickle = True.",
        )
    with _loading(package), _quiet(), _importable(package.code_paths):
        model = torch.load(package.data_path, map_location="cpu", weights_only=False)
    # What torch.compile returns wraps the module that was written.
    model = getattr(model, "_orig_mod", model)
    if not isinstance(model, torch.nn.Module):
        raise Refused(
            f"model file {package.data_path.name}",
            f"holds a {type(model).__name__}, which is no model",
            "Log the torch.nn.Module itself, or its state dict together with a model factory.",
        )
    return model.eval()


@contextmanager
def _loading(package: TrainedPackage) -> Iterator[None]:
    try:
        yield
    except ModuleNotFoundError as error:
        raise Refused(
            f"model file {package.data_path.name}",
            f"is of a class in module '{error.name}', which is neither installed here nor logged with the model",
            "Log the model with the code that it needs: mlflow.pytorch.log_model(..., code_paths=['src']), "
            "or install the package where Airflow's tasks run.",
        ) from error
    except Exception as error:  # a broken archive raises anything, and a pickle runs its own code
        raise Refused(
            f"model file {package.data_path.name} (written by torch {package.pytorch_version})",
            f"cannot be loaded by torch {torch.__version__}: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:600]}",
            _RELOG,
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave the log to what this project says: torch warns of TorchScript's and its own archive formats."""
    logger = logging.getLogger("torch.export")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)


@contextmanager
def _importable(folders: tuple[Path, ...]) -> Iterator[None]:
    before = list(sys.path)
    sys.path[:0] = [str(folder) for folder in folders]
    try:
        yield
    finally:
        sys.path[:] = before


def _refuse_non_finite(model: LoadedModel) -> None:
    bad = []
    tensors = dict(_tensors(model))
    pages = MappedPages.behind(tensors.values())
    for name, tensor in tensors.items():
        if tensor.is_meta:
            bad.append(f"{name} has no values (device meta)")
        elif not _looks_finite(tensor) and (count := _count_non_finite(tensor)):
            bad.append(f"{name} has {count} of {tensor.numel()}")
        pages.read(tensor.nbytes)
    pages.drop()
    if bad:
        raise Refused(
            "The model's weights",
            f"hold NaN or infinity: {'; '.join(bad[:20])}{f'; and {len(bad) - 20} more' if len(bad) > 20 else ''}",
            "The training diverged: train again with a lower learning rate or clipped gradients.",
        )


def _tensors(model: LoadedModel) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(model, ExportedProgram):
        named = {**model.constants, **model.state_dict}
    else:
        named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    yield from ((name, tensor) for name, tensor in named.items() if isinstance(tensor, torch.Tensor))


def _looks_finite(tensor: torch.Tensor) -> bool:
    """Say whether the least and the greatest value are finite: one pass, and no second tensor of the size."""
    if not tensor.is_floating_point() and not tensor.is_complex():
        return True
    if tensor.is_complex() or tensor.itemsize < 2 or not tensor.numel():
        # No such comparison exists for complex numbers, nor in torch for the floats of 8 bits.
        return False
    low, high = torch.aminmax(tensor.detach())
    return bool(torch.isfinite(low) & torch.isfinite(high))


def _count_non_finite(tensor: torch.Tensor) -> int:
    tensor = tensor.detach()
    finite = torch.isfinite(tensor)
    # An attention mask is a buffer of 0 and -inf, and is meant so.
    if tensor.is_floating_point() and not isinstance(tensor, torch.nn.Parameter):
        finite |= (tensor == -torch.inf) & bool((tensor.nan_to_num(neginf=0.0) == 0).all())
    return int(finite.numel() - finite.sum())
