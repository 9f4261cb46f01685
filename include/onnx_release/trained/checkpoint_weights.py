"""Weights in the content of a checkpoint: the keys that hold networks, and the choice of one by key."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from onnx_release.errors import TrainedModelRefused
from onnx_release.trained.checkpoint_file import Array

# Keys under which training scripts store the weights beside optimizer and epoch.
USUAL_KEYS = ("state_dict", "model_state_dict", "model", "module", "net", "network", "weights")
_DEPTH_MAX = 4
# Keys of other training state: an optimizer's tensors have names too.
_OTHER_STATE = re.compile(r"optim|sched|scaler|rng|random|^amp$|^loops$")
_AVERAGED = re.compile(r"(?<![A-Za-z])(?:ema|EMA|Ema|swa|SWA|polyak|shadow|averaged?|avg)(?![a-z])")
_FLATTENED = re.compile(r"(^|\.)_?flat_param(_\d+)?$")


@dataclass(frozen=True, slots=True)
class WeightSet:
    """One network's weights in a file.

    Attributes:
        key: The keys that lead to it, joined by dots; empty for the whole file.
        values: The tensors by name, and other values, such as extra state.
        versions: The versions of the module classes by module name, as `torch.nn.Module.state_dict` stores them.
        prefix: The part of the names that was chosen; empty for all.
    """

    key: str
    values: dict[str, Any]
    versions: Mapping[str, Any] = field(default_factory=dict)
    prefix: str = ""

    @property
    def averaged(self) -> bool:
        """True for averaged weights (EMA, SWA) by the name of their key, or by the counter of `AveragedModel`."""
        return is_averaged_key(self.key) or "n_averaged" in self.values


def is_averaged_key(key: str) -> bool:
    """Return True for a key of averaged weights by its words, such as ``ema``, ``model_ema`` or ``state_dict_ema``."""
    return bool(_AVERAGED.search(key))


def find_weights(content: Any, key: str = "", *, subject: str) -> list[WeightSet]:
    """Return the weights of each network in a checkpoint.

    Args:
        content: The content of the file.
        key: The key of the weights to take: keys joined by dots, then the beginning of their names; empty for all.
        subject: The subject of a refusal.

    Raises:
        TrainedModelRefused: There are no weights, none under the key, or only parts of them.
    """
    found = list(_walk(content, "", 0, 1)) or list(_walk(content, "", 0, 0))
    for one in found:
        if flattened := next((name for name in one.values if _FLATTENED.search(name)), None):
            raise TrainedModelRefused(
                subject,
                f"has parameters that FSDP flattened, such as {flattened!r:.120}, instead of the model's own",
                "Save the full state dict: torch.distributed.checkpoint.state_dict.get_model_state_dict(model, "
                "options=StateDictOptions(full_state_dict=True)).",
                code="sharded_weights",
            )
    if not found:
        raise _no_weights(content, subject)
    if not key:
        return found
    if chosen := _under(found, key):
        return [chosen]
    raise TrainedModelRefused(
        subject,
        f"has no weights under the key {key!r:.120}. It has weights under {listed(found)}",
        "Correct the parameter `weights_key`. Join nested keys by dots.",
        code="weights_key",
    )


def listed(sets: list[WeightSet]) -> str:
    """Return the keys of weights for a message, with the number of tensors."""
    shown = [f"{one.key or 'the file itself'} ({len(one.values)})" for one in sets[:12]]
    return ", ".join(shown) + (f" and {len(sets) - 12} more" if len(sets) > 12 else "")


def _under(found: list[WeightSet], key: str) -> WeightSet | None:
    for one in sorted(found, key=lambda one: -len(one.key)):
        if one.key == key:
            return one
        inner = key.removeprefix(f"{one.key}.") if one.key else key
        if (not one.key or inner != key) and any(name.startswith(f"{inner}.") for name in one.values):
            values = {name: value for name, value in one.values.items() if name.startswith(f"{inner}.")}
            return WeightSet(key=key, values=values, versions=one.versions, prefix=inner)
    return None


def _walk(value: Any, key: str, depth: int, least_dimensions: int) -> Iterator[WeightSet]:
    """Yield each mapping of names to tensors, and each module, except in the state of optimizers."""
    if isinstance(value, torch.nn.Module):
        value = value.state_dict()
    if not isinstance(value, Mapping) or "param_groups" in value:
        return
    values = {name: _as_tensor(item) for name, item in value.items() if isinstance(name, str)}
    # A checkpoint may hold its loss as a tensor, which has no dimension.
    if any(isinstance(item, torch.Tensor) and item.dim() >= least_dimensions for item in values.values()):
        yield WeightSet(key=key, values=values, versions=dict(getattr(value, "_metadata", {})))
    for name, item in values.items():
        nested = isinstance(item, Mapping | torch.nn.Module) and not name.endswith("_extra_state")
        if nested and depth < _DEPTH_MAX and not _OTHER_STATE.search(name):
            yield from _walk(item, f"{key}.{name}" if key else name, depth + 1, least_dimensions)


def _as_tensor(value: Any) -> Any:
    array = value.values if isinstance(value, Array) else value
    if isinstance(array, np.ndarray) and array.dtype.kind in "fiubc":
        return torch.from_numpy(np.ascontiguousarray(array).reshape(array.shape))
    return value


def _no_weights(content: Any, subject: str) -> TrainedModelRefused:
    items = dict(content) if isinstance(content, Mapping) else {}
    optimizers = [str(name) for name, value in items.items() if _OTHER_STATE.search(str(name))]
    if "param_groups" in items:
        optimizers = ["the file itself"]
    keys = ", ".join(str(name) for name in items)[:200]
    about = f"; it has the state of an optimizer ({', '.join(optimizers)[:120]})" if optimizers else ""
    return TrainedModelRefused(
        subject,
        f"contains no named tensors of a model{f' (its keys: {keys})' if keys else ''}{about}",
        "Save model.state_dict(). If the run has another file of weights, name it with the parameter `model_uri`.",
        code="no_weights",
    )
