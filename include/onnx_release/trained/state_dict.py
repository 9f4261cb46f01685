"""Weights without a model: state dicts and Lightning checkpoints, loaded into the model of a factory."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from onnx_release.errors import TrainedModelRefused, shorten
from onnx_release.trained.model_factory import FactoryOptions, make_model
from onnx_release.trained.scan_torchscript import is_script_archive

# Keys under which training scripts store the weights beside optimizer and epoch; the first match is used.
_WEIGHT_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
# Prefixes of wrappers: Lightning stores the model as an attribute; DDP and torch.compile wrap it.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")


def format_of_file(path: Path) -> Literal["pt2", "torchscript", "state_dict", "pickle"]:
    """Return the format of a file of weights or of a model. Nothing in it is unpickled.

    A pickle that names globals beyond tensors and plain containers is a module or another object that runs code.
    """
    if path.suffix == ".safetensors":
        return "state_dict"
    if is_script_archive(path):
        return "torchscript"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
        if "archive_format" in names:
            return "pt2"
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # noqa: BLE001 - torch's restricted unpickler rejects everything that can run code
        return "pickle"
    return "state_dict"


def load_checkpoint(path: Path, factory: FactoryOptions | None) -> torch.nn.Module:
    """Make the model and load the weights of a file into it. The weights are memory-mapped, and read when used.

    Args:
        path: A file of `torch.save` or of safetensors with a state dict, also nested beside other training state.
        factory: The factory of the model.

    Returns:
        The model in evaluation mode.

    Raises:
        TrainedModelRefused: There is no factory, the file cannot be read, or weights and model differ. The message
            lists the names.
    """
    subject = f"The file of weights {path.name}"
    weights, hyper_parameters = _read(path, subject)
    if factory is None or not factory.path:
        raise TrainedModelRefused(
            subject,
            f"contains {len(weights)} weights and no model",
            "Set the parameter `factory` to the function that makes the model (package.module:name), in a package that "
            "the deployment allows.",
            code="no_factory",
        )
    # A meta model has no memory, so the weights exist once.
    with torch.device("meta"):
        model = make_model(factory, hyper_parameters)
    if not isinstance(model, torch.nn.Module):
        raise TrainedModelRefused(
            f"The factory {factory.path}",
            f"returns a {type(model).__name__}, not a torch.nn.Module",
            "Return the model itself.",
            code="factory_result",
        )
    weights = _fit(model, weights, subject)
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    attributes = [value for module in model.modules() for value in vars(module).values()]
    plain = any(isinstance(value, torch.Tensor) and value.is_meta for value in attributes)
    if plain or any(name not in weights for name in tensors):
        # The weights do not replace every tensor: a buffer with persistent=False is in no checkpoint. It is computed
        # when the model is made with memory.
        model = make_model(factory, hyper_parameters)
    model.load_state_dict(weights, assign=True)
    return model.eval()  # type: ignore[no-any-return]


def _read(path: Path, subject: str) -> tuple[dict[str, torch.Tensor], Mapping[str, Any]]:
    """Return the weights in a file, and Lightning's hyperparameters, if it has them."""
    content: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            content = load_file(str(path))
        else:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken file raises anything
        raise TrainedModelRefused(
            subject,
            f"cannot be loaded: {type(error).__name__}: {shorten(error, 400)}",
            "Save only the state dict: torch.save(model.state_dict(), path).",
            code="damaged_checkpoint",
        ) from error
    hyper_parameters = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    for key in _WEIGHT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    items = content.items() if isinstance(content, Mapping) else ()
    tensors = {str(name): value for name, value in items if isinstance(value, torch.Tensor)}
    if not tensors:
        raise TrainedModelRefused(subject, "contains no named tensors", "Save model.state_dict().", code="no_weights")
    return tensors, hyper_parameters if isinstance(hyper_parameters, Mapping) else {}


def _fit(model: torch.nn.Module, weights: dict[str, torch.Tensor], subject: str) -> dict[str, torch.Tensor]:
    """Remove the prefix of a wrapper if the names then match the model's, and compare names and shapes."""
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for prefix in ("", *_PREFIXES):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if stripped and stripped.keys() == shapes.keys():
            weights = stripped
            break
    problems = []
    for verb, names in (("lacks", shapes.keys() - weights.keys()), ("also has", weights.keys() - shapes.keys())):
        if names:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            problems.append(f"{verb} {', '.join(sorted(names)[:8])}{more}")
    if not problems:
        problems = [
            f"has {name} as {tuple(tensor.shape)} instead of {shapes[name]}"
            for name, tensor in weights.items()
            if tuple(tensor.shape) != shapes[name]
        ]
    if problems:
        raise TrainedModelRefused(
            subject,
            f"does not fit the factory's model: it {'; it '.join(problems[:10])}",
            "Compare the factory and its arguments with those of the training.",
            code="weights_differ",
        )
    return weights
