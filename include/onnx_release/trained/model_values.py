"""Values of a model's tensors: those that a state dict lacks, comparisons, and casts to another dtype."""

from __future__ import annotations

import gc
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.modules.lazy import LazyModuleMixin

from onnx_release.trained.match_weights import ModelNames

# Attributes of every module that are not the model's own.
_OF_TORCH = frozenset(vars(torch.nn.Module()))


def unsaved_values(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """Yield the arrays and tensors of a model that its state dict does not have, by their places."""
    saved = {id(tensor) for tensor in model.state_dict(keep_vars=True).values()}
    for place, module in model.named_modules():
        # The hooks of weight norm, spectral norm and pruning compute an attribute before each call.
        if module._forward_pre_hooks:
            continue
        own = {name: value for name, value in vars(module).items() if name not in _OF_TORCH} | module._buffers
        for name, value in own.items():
            for inner, tensor in _tensors_in(value, f"{place}.{name}" if place else name, 0):
                if id(tensor) not in saved and not getattr(tensor, "is_meta", False):
                    yield inner, tensor.detach() if isinstance(tensor, torch.Tensor) else tensor


def _tensors_in(value: Any, place: str, depth: int) -> Iterator[tuple[str, Any]]:
    if isinstance(value, torch.Tensor):
        if not torch.nn.parameter.is_lazy(value):
            yield place, value
    elif isinstance(value, np.ndarray):
        if value.dtype.kind in "fiubc":
            yield place, value
    elif depth < 3:
        items: Any = ()
        if isinstance(value, torch.nn.Module) and depth:
            items = value.state_dict(keep_vars=True).items()
        elif isinstance(value, Mapping):
            items = value.items()
        elif isinstance(value, list | tuple):
            items = enumerate(value)
        for key, item in items:
            yield from _tensors_in(item, f"{place}.{key}", depth + 1)


def loads_plainly(model: torch.nn.Module) -> bool:
    """Return True if only torch's own code loads weights, and every tensor has its own memory and a plain class."""
    for module in model.modules():
        hooks = (module._load_state_dict_pre_hooks, module._load_state_dict_post_hooks)
        if any(hooks) or isinstance(module, LazyModuleMixin):
            return False
        if not type(module)._load_from_state_dict.__module__.startswith("torch.nn."):
            return False
    tensors = [*model.parameters(), *model.buffers()]
    plainly = all(type(tensor) in (torch.nn.Parameter, torch.nn.Buffer, torch.Tensor) for tensor in tensors)
    return plainly and not ModelNames.of(model).ties


def meta_tensors() -> Iterator[torch.Tensor]:
    """Yield every tensor without memory in the process."""
    for candidate in gc.get_objects():
        # `isinstance` would run the code of proxies.
        if issubclass(type(candidate), torch.Tensor) and candidate.is_meta:
            yield candidate


def equal_values(one: Any, other: Any) -> bool:
    """Return True for arrays or tensors of the same shape, dtype and bytes."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if one.shape != other.shape or one.dtype != other.dtype:
            return False
        if one.data_ptr() == other.data_ptr() and one.stride() == other.stride():
            return True
    return bool(np.array_equal(_bits(one), _bits(other)))


def _bits(value: Any) -> np.ndarray[Any, Any]:
    """Return the bytes of an array or tensor, so that NaN equals NaN."""
    if isinstance(value, torch.Tensor):
        return value.detach().contiguous().flatten().view(torch.uint8).cpu().numpy()
    return np.ascontiguousarray(value).reshape(-1).view(np.uint8)


def casts_exactly(value: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return True if the values are the same in the other dtype."""
    if value.dtype != torch.bool and torch.promote_types(value.dtype, dtype) == dtype and value.is_floating_point():
        return True
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return equal_values(value.to(dtype).to(value.dtype), value)


def overflows(value: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return True if the cast of a float tensor makes a finite value infinite."""
    return bool((torch.isfinite(value.double()) & ~torch.isfinite(value.to(dtype).double())).any())
