"""Model in the content of a pickle: the module itself, one of a checkpoint's modules, and modules without wrappers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch

from onnx_release.errors import TrainedModelRefused
from onnx_release.records import Finding
from onnx_release.trained.checkpoint_weights import USUAL_KEYS, is_averaged_key
from onnx_release.trained.match_weights import WRAPPERS

_DEPTH_MAX = 3


def choose_module(content: Any, key: str, subject: str) -> tuple[torch.nn.Module, tuple[Finding, ...]]:
    """Return the module in the content of a pickle, with a finding when there were several.

    Args:
        content: A module, or a training script's dict around modules.
        key: The keys of the module, joined by dots; empty for the only one, or the one that is not averaged.
        subject: The subject of a refusal.

    Raises:
        TrainedModelRefused: There is no module, none under the key, or several.
    """
    found = dict(_modules(content, "", 0))
    keys = ", ".join(map(repr, found))
    if not found:
        raise TrainedModelRefused(
            subject,
            f"contains a {type(content).__name__} instead of a model",
            "Log the torch.nn.Module itself, or its state dict together with a model factory.",
            code="not_a_module",
        )
    if key:
        if key not in found:
            raise TrainedModelRefused(
                subject,
                f"has no model under the key {key!r:.120}; it has models under {keys}",
                "Correct the parameter `weights_key`.",
                code="weights_key",
            )
        return found[key], ()
    plain = [name for name in found if not is_averaged_key(name)] or list(found)
    usual = [name for name in plain if name in USUAL_KEYS]
    taken = next((names[0] for names in (plain, usual) if len(names) == 1), None)
    if taken is None:
        raise TrainedModelRefused(
            subject,
            f"has several models, under the keys {keys}",
            f"Name one of them with the parameter `weights_key`, for example {plain[0]!r}.",
            code="several_networks",
        )
    others = [name for name in found if name != taken]
    if not others:
        return found[taken], ()
    finding = Finding(
        severity="warning",
        code="chosen_weights",
        message=f"Released is the model under the key {taken!r}; the file also has {', '.join(map(repr, others[:12]))}",
        fix=f"weights_key = {others[0]!r}  # a parameter of the release",
    )
    return found[taken], (finding,)


def unwrapped(model: torch.nn.Module) -> torch.nn.Module:
    """Return the model without wrappers of compilation, data parallelism, averaging and activation checkpoints."""
    while (inner := _inner(model)) is not None:
        model = inner
    for module in model.modules():
        for name, child in module._modules.items():
            while child is not None and (inner := _inner(child)) is not None:
                module._modules[name] = child = inner
    return model


def _inner(model: torch.nn.Module) -> torch.nn.Module | None:
    name = next((name for name in model._modules if name in WRAPPERS), None)
    wrappers = torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel, torch.optim.swa_utils.AveragedModel
    if isinstance(model, wrappers):
        name = "module"
    return model._modules[name] if name else None


def _modules(value: Any, key: str, depth: int) -> Iterator[tuple[str, torch.nn.Module]]:
    if isinstance(value, torch.nn.Module):
        # A loss is a module too, and has no weights.
        if not depth or any(True for _ in value.parameters()):
            yield key, value
    elif isinstance(value, Mapping) and depth < _DEPTH_MAX:
        for name, item in value.items():
            yield from _modules(item, f"{key}.{name}" if key else str(name), depth + 1)
