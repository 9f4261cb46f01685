"""Loading of a trained model into PyTorch, with checks before its file is opened."""

from __future__ import annotations

import logging
import sys
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from torch.export import ExportedProgram

from onnx_release.errors import Refused, TrainedModelRefused
from onnx_release.limits import NO_CODE_SUFFIXES
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records import Finding
from onnx_release.text import shorten
from onnx_release.trained.checkpoint_file import foreign_globals, is_index, is_pickle, shards_of
from onnx_release.trained.mapped_weights import MappedPages
from onnx_release.trained.match_weights import shown
from onnx_release.trained.mlflow_model import TrainedPackage
from onnx_release.trained.model_factory import FactoryOptions
from onnx_release.trained.pickled_model import choose_module, unwrapped
from onnx_release.trained.scan_pt2 import refuse_code
from onnx_release.trained.scan_torchscript import refuse_foreign_operators
from onnx_release.trained.state_dict import load_checkpoint, load_weights
from onnx_release.training_runs import refusals

LoadedModel = ExportedProgram | torch.nn.Module
"""A model on the CPU. An exported program has the mode of its trace; a module is in evaluation mode."""


def load_trained(package: TrainedPackage, *, allow_pickle: bool, factory: FactoryOptions | None = None) -> LoadedModel:
    """Load a trained model as `load_unchecked` does, and check its weights as `value_findings` does."""
    model, _ = load_unchecked(package, allow_pickle=allow_pickle, factory=factory)
    for _ in value_findings(model):
        pass
    return model


def load_unchecked(
    package: TrainedPackage, *, allow_pickle: bool, factory: FactoryOptions | None = None
) -> tuple[LoadedModel, tuple[Finding, ...]]:
    """Load a trained model onto the CPU. The values of its weights are not checked.

    Args:
        package: The description of the model's files.
        allow_pickle: True where the deployment lets the training run's own code run. Without it a pickle is refused
            unopened, and an archive (pt2, TorchScript) is opened only when it contains no such code.
        factory: The function that makes the model of a state dict, and the key of the weights in a file.

    Returns:
        An exported program, or a module in evaluation mode; and findings about the loading.

    Raises:
        TrainedModelRefused: The file is a pickle that is not allowed, is broken, or is not a model.
    """
    with _loading(package):
        shards = set(shards_of(package.data_path).values()) if is_index(package.data_path) else ()
        # torch's reader ignores the checksums of an archive. A pickle of torch 1.5 or older is not an archive.
        for path in filter(zipfile.is_zipfile, shards or [package.data_path]):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"the checksum of record {damaged} differs")
    # `run_step` loads files with these names in its own process.
    named_safe = package.data_path.name.lower().endswith(NO_CODE_SUFFIXES)
    if named_safe and package.format in ("pickle", "state_dict"):
        allow_pickle = False
    model: LoadedModel
    findings: tuple[Finding, ...] = ()
    if package.format == "pt2":
        if not allow_pickle:
            refuse_code(package.data_path)
        with _loading(package), _without_warnings():
            model = torch.export.load(package.data_path)
    elif package.format == "torchscript":
        if not allow_pickle:
            refuse_foreign_operators(package.data_path)
        with _loading(package), _without_warnings():
            model = torch.jit.load(package.data_path, map_location="cpu").eval()
    elif package.format == "state_dict":
        model, findings = load_checkpoint(package.data_path, factory, allow_pickle=allow_pickle)
    else:
        model, findings = _load_pickle(package, allow_pickle, factory)
    return model, findings


def _load_pickle(
    package: TrainedPackage, allow_pickle: bool, factory: FactoryOptions | None
) -> tuple[torch.nn.Module, tuple[Finding, ...]]:
    subject = f"The model file {package.data_path.name}"
    if not is_pickle(package.data_path):
        raise TrainedModelRefused(
            subject,
            "is not a complete file of torch.save",
            "Log it again. If the download was cut short, repeat the export.",
            code="load_failed",
        )
    if not allow_pickle:
        names = foreign_globals(package.data_path)
        raise refusals.pickle_not_allowed(subject, f" (of {shown(names, 4)})" if names else "")
    former_path = list(sys.path)
    sys.path[:0] = [str(folder) for folder in package.code_paths]
    try:
        with _loading(package), _without_warnings():
            content = _unpickle(package.data_path)
    finally:
        sys.path[:] = former_path
    if factory is not None and factory.path and not isinstance(content, torch.nn.Module):
        return load_weights(content, factory, subject)
    model, findings = choose_module(content, factory.weights_key if factory else "", subject)
    module = unwrapped(model)
    if module.training:
        message = "The model was logged in training mode. The export and the comparison run it in evaluation mode"
        fix = "model.eval()  # before it is logged"
        findings = (*findings, Finding(severity="warning", code="logged_in_training", message=message, fix=fix))
    return module.eval(), findings


def _unpickle(path: Path) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=False)
    except ValueError:
        # DistributedDataParallel needs its process group when it is loaded. A group of this process alone opens no
        # connection.
        if not distributed.is_available() or distributed.is_initialized():
            raise
        store = distributed.HashStore()  # type: ignore[attr-defined]
        distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
        try:
            return torch.load(path, map_location="cpu", weights_only=False)
        finally:
            distributed.destroy_process_group()


@contextmanager
def _loading(package: TrainedPackage) -> Iterator[None]:
    subject = f"The model file {package.data_path.name}"
    try:
        yield
    except Refused:
        raise
    except ModuleNotFoundError as error:
        raise TrainedModelRefused(
            subject,
            f"needs the module '{error.name}', which is neither installed here nor logged with the model",
            "Log the model with its code: mlflow.pytorch.log_model(..., code_paths=['src']). Or install the package "
            "where Airflow's tasks run.",
            code="missing_code",
        ) from error
    except Exception as error:  # a broken archive raises anything, and a pickle runs its own code
        raise_machine_failure(error)
        raise TrainedModelRefused(
            f"{subject} (written by torch {package.pytorch_version})",
            f"cannot be loaded by torch {torch.__version__}: {type(error).__name__}: {shorten(error, 600)}",
            "Log the model again from the training code. If the download was cut short, repeat the export.",
            code="load_failed",
        ) from error


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Suppress torch's warnings about TorchScript and about its own archive formats."""
    logger = logging.getLogger("torch.export")
    former = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(former)


def value_findings(model: LoadedModel) -> Iterator[Finding]:
    """Refuse parameters with NaN or infinity, and yield a finding about buffers with them.

    Only parameters are trained. A buffer may have infinite bounds, or NaN for a value that is not set; the comparison
    of the outputs decides about it.

    Raises:
        TrainedModelRefused: Parameters contain NaN or infinity (``nan_weights``). The message lists those tensors with
            the number of values.
    """
    if isinstance(model, ExportedProgram):
        named = {**model.constants, **model.state_dict}
        trained = set(model.graph_signature.parameters)
    else:
        parameters = dict(model.named_parameters())
        named = {**parameters, **dict(model.named_buffers())}
        trained = set(parameters)
    tensors = {name: tensor for name, tensor in named.items() if isinstance(tensor, torch.Tensor)}
    fatal: list[str] = []
    harmless: list[str] = []
    pages = MappedPages.behind(tensors.values())
    for name, tensor in tensors.items():
        if tensor.is_meta:
            fatal.append(f"{name} has no values (device meta)")
        elif count := _count_non_finite(tensor.detach()):
            # Nobody trains a frozen parameter, so infinity in it is intended; NaN may be older than the freezing.
            frozen = not tensor.requires_grad and not bool(torch.isnan(tensor).any())
            (fatal if name in trained and not frozen else harmless).append(f"{name} has {count} of {tensor.numel()}")
        pages.read(tensor.nbytes)
    pages.drop()
    if fatal:
        raise TrainedModelRefused(
            "The model's weights",
            f"contain NaN or infinity: {shown([*fatal, *harmless], 20).replace(', ', '; ')}",
            "The training diverged. Train again with a lower learning rate or with clipped gradients. If these values "
            "are intended, register the tensor as a buffer.",
            code="nan_weights",
        )
    if harmless:
        yield Finding(
            severity="warning",
            code="non_finite_buffers",
            message=f"Buffers of the model contain NaN or infinity: {shown(harmless, 20)}",
        )


def _count_non_finite(tensor: torch.Tensor) -> int:
    if not tensor.numel() or not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    # Complex numbers have no order, and torch has no comparison of 8-bit floats.
    if tensor.is_floating_point() and tensor.itemsize >= 2:
        # One pass, without a second tensor of this size.
        low, high = torch.aminmax(tensor)
        if torch.isfinite(low) & torch.isfinite(high):
            return 0
    finite = torch.isfinite(tensor)
    # A tensor of only 0 and -inf is an attention mask.
    if tensor.is_floating_point():
        finite |= (tensor == -torch.inf) & bool((tensor.nan_to_num(neginf=0.0) == 0).all())
    return int(finite.numel() - finite.sum())
