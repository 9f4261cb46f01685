"""Weights without a model: state dicts and Lightning checkpoints, put into what a factory makes."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch

from onnx_release.errors import Refused
from onnx_release.trained.model_factory import FactoryOptions, make_model

# Where training scripts keep the weights among other things (optimizer, epoch), most telling first.
_NESTS = ("state_dict", "model_state_dict", "model", "module", "net", "weights")
# What wrappers put before each name: Lightning's module holds the model as an attribute, DDP and compile wrap it.
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.", "network.", "backbone.")


def kind_of_file(path: Path) -> Literal["pt2", "torchscript", "state_dict", "pickle"]:
    """Tell what a file of weights or of a model is, by its contents; nothing in it is unpickled.

    A pickle that names globals beyond tensors and plain containers holds a module, or something else that runs code.
    """
    from onnx_release.trained.scan_torchscript import is_script_archive

    if path.suffix == ".safetensors":
        return "state_dict"
    if is_script_archive(path):
        return "torchscript"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
        if "archive_format" in names:
            return "pt2"
    return "state_dict" if _is_plain(path) else "pickle"


def _is_plain(path: Path) -> bool:
    try:
        torch.load(path, map_location="meta", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception:  # noqa: BLE001 - whatever torch's restricted unpickler does not like is not plain
        return False
    return True


def load_checkpoint(path: Path, factory: FactoryOptions | None) -> torch.nn.Module:
    """Make the model and put the file's weights into it, memory-mapped: they are read when they are used.

    :raises Refused: when there is no factory, or the weights and the model do not fit, with every name that differs.
    """
    content = _read(path)
    weights = _weights_of(content, path)
    if factory is None or not factory.path:
        raise Refused(
            f"checkpoint {path.name}",
            f"holds {len(weights)} weights and no model",
            "Say what makes the model: the parameter `factory` (package.module:name), from a package that the "
            "deployment allows.",
        )
    hyper_parameters = content.get("hyper_parameters") if isinstance(content, Mapping) else None
    hyper_parameters = hyper_parameters if isinstance(hyper_parameters, Mapping) else {}
    # Without memory of its own until the weights come, so that a model is never held twice.
    with torch.device("meta"):
        model = make_model(factory, hyper_parameters)
    if not isinstance(model, torch.nn.Module):
        raise Refused(f"factory {factory.path}", f"makes a {type(model).__name__}, no torch.nn.Module", "Return one.")
    return _filled(model, weights, path, lambda: make_model(factory, hyper_parameters)).eval()


def _read(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(str(path))
        return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except Exception as error:  # a broken file raises anything
        raise Refused(
            f"checkpoint {path.name}",
            f"cannot be loaded as weights: {type(error).__name__}: {' '.join(str(error).split())[:400]}",
            "Save the state dict alone: torch.save(model.state_dict(), path).",
        ) from error


def _weights_of(content: Any, path: Path) -> dict[str, torch.Tensor]:
    for nest in _NESTS:
        if isinstance(content, Mapping) and isinstance(content.get(nest), Mapping):
            content = content[nest]
            break
    tensors = (
        {str(k): v for k, v in content.items() if isinstance(v, torch.Tensor)} if isinstance(content, Mapping) else {}
    )
    if not tensors:
        raise Refused(f"checkpoint {path.name}", "holds no named tensors", "Save model.state_dict().")
    return tensors


def _filled(model: torch.nn.Module, weights: dict[str, torch.Tensor], path: Path, again: Any) -> torch.nn.Module:
    wanted = set(model.state_dict())
    weights = _best_prefix(weights, wanted)
    missing, extra = sorted(wanted - set(weights)), sorted(set(weights) - wanted)
    if missing or extra:
        raise Refused(
            f"checkpoint {path.name}",
            f"does not fit what the factory makes: {_some('it lacks', missing)}{_some('it also has', extra)}",
            "Check the factory and its arguments against those of the training.",
        )
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    unlike = [
        f"{name} is {tuple(tensor.shape)}, the model's {shapes[name]}"
        for name, tensor in weights.items()
        if tuple(tensor.shape) != shapes[name]
    ]
    if unlike:
        raise Refused(
            f"checkpoint {path.name}",
            f"has weights of other shapes: {'; '.join(unlike[:10])}",
            "Check the factory's arguments against those of the training.",
        )
    if _left_on_meta(model, weights):
        # A buffer that no checkpoint keeps (persistent=False) is computed when the model is made, so make it for real.
        model = again()
    model.load_state_dict(weights, assign=True)
    return model


def _left_on_meta(model: torch.nn.Module, weights: Mapping[str, torch.Tensor]) -> bool:
    tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    attributes = [value for module in model.modules() for value in vars(module).values()]
    plain = any(isinstance(value, torch.Tensor) and value.is_meta for value in attributes)
    return plain or any(name not in weights for name in tensors)


def _best_prefix(weights: dict[str, torch.Tensor], wanted: set[str]) -> dict[str, torch.Tensor]:
    """Return the weights without what a wrapper put before every name, if the model knows them so."""
    for prefix in ("", *_PREFIXES):
        stripped = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        if stripped and set(stripped) == wanted:
            return stripped
    return weights


def _some(what: str, names: list[str]) -> str:
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return f"{what} {', '.join(names[:8])}{more}; " if names else ""
