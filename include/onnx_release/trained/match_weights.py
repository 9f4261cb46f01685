"""Match of a model's names with the names in a file, without the prefixes of wrappers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.nn.parameter import is_lazy

from onnx_release.errors import TrainedModelRefused
from onnx_release.records import Finding
from onnx_release.trained.checkpoint_weights import USUAL_KEYS, WeightSet, is_averaged_key, listed

# Names of modules that only wrap another one: torch.compile, FSDP, FairScale, activation checkpoints, and DDP,
# DataParallel and AveragedModel.
WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_fpw_module", "_checkpoint_wrapped_module"})
_ALL_WRAPPERS = WRAPPERS | {"module"}
_COUNTER = "num_batches_tracked"
# Tensors of losses and metrics, which no inference uses, and the counter of AveragedModel.
_OF_TRAINING = re.compile(
    r"(^|[._])(loss|losses|criterion|criterions|metrics?|accuracy|acc|auroc|f1)(_?\w*)?(\.|$)|n_averaged$"
)


@dataclass(frozen=True, slots=True)
class ModelNames:
    """Names in a model's state dict.

    Attributes:
        tensors: The parameters, buffers and extra state by name. Lazy ones have no shape.
        ties: The groups of names of one tensor.
        wrappers: The names of wrapper modules that the match ignores.
    """

    tensors: Mapping[str, Any]
    ties: tuple[tuple[str, ...], ...]
    wrappers: frozenset[str]

    @classmethod
    def of(cls, model: torch.nn.Module) -> ModelNames:
        """Return the names of a model."""
        tensors = model.state_dict(keep_vars=True)
        by_tensor: dict[Any, list[str]] = {}
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor) and not is_lazy(tensor):
                place = (tensor.untyped_storage()._cdata, tensor.storage_offset(), tensor.shape, tensor.stride())
                by_tensor.setdefault(place, []).append(name)
        ties = tuple(tuple(names) for names in by_tensor.values() if len(names) > 1)
        for wrappers in (_ALL_WRAPPERS, WRAPPERS, frozenset[str]()):
            if len({canonical(name, wrappers) for name in tensors}) == len(tensors):
                return cls(tensors, ties, wrappers)
        raise AssertionError("names are unique")

    @property
    def optional(self) -> frozenset[str]:
        """Names that a file may lack: counters of batches, and all but one name of a shared tensor."""
        counters = {name for name in self.tensors if name.endswith(_COUNTER)}
        return frozenset(counters.union(*self.ties))


@dataclass(frozen=True, slots=True)
class Match:
    """Names of a file that belong to a model's names.

    Attributes:
        weights: The set of weights in the file.
        prefix: The prefix of the names in the file, without wrappers; it ends with a dot, or is empty.
        names: The file's name of each model's name.
        surplus: The other names below the prefix, without it, with the file's name.
        left_out: The names outside the prefix.
        fits: True when every required name is there with its shape, and nothing below the prefix is left.
    """

    weights: WeightSet
    prefix: str
    names: Mapping[str, str]
    surplus: Mapping[str, str]
    left_out: tuple[str, ...]
    fits: bool

    @property
    def key(self) -> str:
        """Return the value of `weights_key` that chooses exactly these weights."""
        if self.weights.prefix:
            return self.weights.key
        return ".".join(part for part in (self.weights.key, self.prefix.rstrip(".")) if part)

    @property
    def averaged(self) -> bool:
        """True for averaged weights (EMA, SWA)."""
        return self.weights.averaged or is_averaged_key(self.key)


def choose_match(model: ModelNames, sets: list[WeightSet], subject: str) -> tuple[Match, list[Finding]]:
    """Return the weights to load into the model, with a finding about the choice.

    Weights that fit the model by name and shape come first. Of several, weights under a usual key come before others,
    and weights that are not averaged before averaged ones. Without such weights the most similar ones are returned.

    Raises:
        TrainedModelRefused: Several networks of the file fit equally well.
    """
    matches = [match for one in sets for match in _matches(model, one)]
    fitting = [match for match in matches if match.fits]
    if not fitting:
        best = max(matches, key=lambda match: (len(match.names), _is_usual(match), -len(match.prefix)))
        if not best.names and len(sets) > 1:
            raise TrainedModelRefused(
                subject,
                f"has several sets of weights, and no name of the model is in them: {listed(sets)}",
                "Compare the factory and its arguments with those of the training. Name the weights with the parameter "
                "`weights_key`.",
                code="several_networks",
            )
        return best, []
    plain = [match for match in fitting if not match.averaged] or fitting
    usual = [match for match in plain if _is_usual(match)]
    taken = next((few[0] for few in (plain, usual) if len(few) == 1), None)
    if taken is None:
        keys = ", ".join(repr(match.key) if match.key else "none (the names as they are)" for match in plain[:12])
        example = next(match.key for match in plain if match.key)
        raise TrainedModelRefused(
            subject,
            f"has several networks that fit the factory's model, under the keys {keys}",
            f"Name one of them with the parameter `weights_key`, for example {example!r}.",
            code="several_networks",
        )
    return taken, _choice_findings(taken, fitting)


def canonical(name: str, wrappers: frozenset[str]) -> str:
    """Return a name without the names of wrapper modules."""
    *modules, last = name.split(".")
    return ".".join([*(part for part in modules if part not in wrappers), last])


def is_of_training(name: str) -> bool:
    """Return True for a tensor of a loss, a metric or a counter of averaged weights."""
    return bool(_OF_TRAINING.search(name))


def same_shape(model: Any, value: Any) -> bool:
    """Return True when torch loads the value into the model's tensor; also for lazy tensors and extra state."""
    if not isinstance(model, torch.Tensor) or not isinstance(value, torch.Tensor) or is_lazy(model):
        return True
    # torch 0.3 stored single numbers with one dimension.
    return model.shape == value.shape or (model.dim() == 0 and value.shape == (1,))


def _matches(model: ModelNames, weights: WeightSet) -> list[Match]:
    """Return a match for each prefix under which the model's names are in the file, and one for the best of them."""
    wrappers = model.wrappers
    if len({canonical(name, wrappers) for name in weights.values}) < len(weights.values):
        wrappers = frozenset()
    own = {canonical(name, wrappers): name for name in model.tensors}
    stored = {canonical(name, wrappers): name for name in weights.values}
    counts: Counter[str] = Counter({"": 0})
    for name in stored:
        parts = name.split(".")
        counts.update(
            ".".join([*parts[:at], ""]) for at in range(len(parts)) if ".".join(parts[at:]) in own
        )  # fmt: skip
    required = len(own) - len(model.optional)
    prefixes = [prefix for prefix, count in counts.items() if count >= max(required, 1)]
    best = max(counts, key=lambda prefix: (counts[prefix], -len(prefix)))
    matches = [_match(model, weights, prefix, own, stored) for prefix in dict.fromkeys([*prefixes, best])]
    # The names of another complete match are not counted as surplus: both are ways to load the model.
    claimed = {name for match in matches if match.fits for name in match.names.values()}
    return [
        replace(match, fits=match.fits and all(is_of_training(n) for n in match.surplus.values() if n not in claimed))
        for match in matches
    ]


def _match(
    model: ModelNames, weights: WeightSet, prefix: str, own: Mapping[str, str], stored: Mapping[str, str]
) -> Match:
    """Return the match under a prefix. It fits when it is complete; the surplus is not judged."""
    names = {name: stored[prefix + short] for short, name in own.items() if prefix + short in stored}
    used = set(names.values())
    below = {short.removeprefix(prefix): name for short, name in stored.items() if short.startswith(prefix)}
    # Values that are neither tensors nor extra state are training state beside the weights.
    surplus = {
        short: name
        for short, name in below.items()
        if name not in used and (isinstance(weights.values[name], torch.Tensor) or short.endswith("_extra_state"))
    }
    missing = model.tensors.keys() - names.keys()
    complete = missing <= model.optional and all(any(name in names for name in group) for group in model.ties)
    shapes = all(same_shape(model.tensors[name], weights.values[stored]) for name, stored in names.items())
    return Match(
        weights=weights,
        prefix=prefix,
        names=names,
        surplus=surplus,
        left_out=tuple(name for short, name in stored.items() if not short.startswith(prefix)),
        fits=complete and shapes,
    )


def _is_usual(match: Match) -> bool:
    return not match.weights.key or match.weights.key in USUAL_KEYS


def _choice_findings(taken: Match, fitting: list[Match]) -> list[Finding]:
    others = [match for match in fitting if match is not taken]
    findings = []
    if others or taken.averaged:
        also = f"; the file also has {', '.join(_described(match) for match in others[:12])}" if others else ""
        findings.append(
            Finding(
                severity="warning" if others else "info",
                code="chosen_weights",
                message=f"Released are the {_described(taken)}{also}",
                fix=f"weights_key = {others[0].key!r}  # a parameter of the release" if others else None,
            )
        )
    in_others = {name for match in others if match.weights is taken.weights for name in match.names.values()}
    if left := [n for n in (*taken.left_out, *taken.surplus.values()) if n not in in_others and n != "n_averaged"]:
        left = [name for name in left if isinstance(taken.weights.values[name], torch.Tensor)]
    if left:
        training = all(is_of_training(name) or taken.weights.values[name].numel() == 1 for name in left)
        findings.append(
            Finding(
                severity="info" if training else "warning",
                code="unused_weights",
                message=f"The file has tensors that the model does not have ({len(left)}): {shown(left)}",
            )
        )
    return findings


def _described(match: Match) -> str:
    kind = "averaged weights" if match.averaged else "weights"
    return f"{kind} under the key {match.key!r}" if match.key else f"{kind} of the file itself"


def shown(names: Iterable[str], most: int = 8) -> str:
    """Return the first names for a message."""
    listing = list(names)
    more = f" and {len(listing) - most} more" if len(listing) > most else ""
    return ", ".join(listing[:most]) + more
