"""Weights without a model: checkpoints and state dicts, loaded into the model of a factory."""

from __future__ import annotations

import copy
import difflib
import gc
import itertools
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch.nn.modules.lazy import LazyModuleMixin

from onnx_release import limits
from onnx_release.errors import Refused, TrainedModelRefused
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records import Finding
from onnx_release.text import shorten
from onnx_release.trained.checkpoint_file import (
    absent_in,
    is_index,
    origin_of,
    plain,
    read_checkpoint,
    shards_of,
)
from onnx_release.trained.checkpoint_weights import WeightSet, find_weights, listed
from onnx_release.trained.match_weights import Match, ModelNames, canonical, choose_match, is_of_training, shown
from onnx_release.trained.model_factory import FactoryOptions, make_model
from onnx_release.trained.model_values import (
    casts_exactly,
    equal_values,
    loads_plainly,
    meta_tensors,
    overflows,
    unsaved_values,
)
from onnx_release.trained.scan_torchscript import is_script_archive
from onnx_release.training_runs import refusals


def format_of_file(path: Path) -> Literal["pt2", "torchscript", "state_dict", "pickle"]:
    """Return the format of a file of weights or of a model, or of the index of such files. No code of it runs.

    A file without weights that has objects of other classes than tensors and plain values is a pickle.
    """
    if path.suffix.lower() == ".safetensors" or is_index(path):
        return "state_dict"
    if is_script_archive(path):
        return "torchscript"
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            names = {name.partition("/")[2] for name in archive.namelist()}
        if "archive_format" in names:
            return "pt2"
    try:
        content = read_checkpoint(path)
        find_weights(content, subject="")
    except TrainedModelRefused as refusal:
        if refusal.code != "no_weights":
            return "state_dict"
        items = (content, *(content.values() if isinstance(content, Mapping) else ()))
        return "pickle" if any(origin_of(item) for item in items) else "state_dict"
    except Exception as error:  # noqa: BLE001 - torch's restricted unpickler raises anything for a pickle
        raise_machine_failure(error)
        return "pickle"
    return "state_dict"


def load_checkpoint(
    path: Path, factory: FactoryOptions | None, *, allow_pickle: bool = False
) -> tuple[torch.nn.Module, tuple[Finding, ...]]:
    """Make the model and load the weights of a file into it.

    Args:
        path: A file with a state dict, also nested beside other training state, or an index of such files.
        factory: The factory of the model.
        allow_pickle: True to load objects among the file's other values, which run code. Without it they stay absent.

    Returns:
        The model in evaluation mode, and findings about the weights.

    Raises:
        TrainedModelRefused: There is no factory, the file cannot be read, or weights and model differ. The message
            lists the names.
    """
    subject = f"The file of weights {path.name}"
    try:
        content = read_checkpoint(path)
    except Refused:
        raise
    except Exception as error:  # a broken file raises anything
        raise_machine_failure(error)
        raise TrainedModelRefused(
            subject,
            f"cannot be loaded: {type(error).__name__}: {shorten(error, 400)}",
            "Save only the state dict: torch.save(model.state_dict(), path).",
            code="damaged_checkpoint",
        ) from error
    if allow_pickle and not is_index(path) and isinstance(content, Mapping) and absent_in(content):
        # The classes of its other values may be missing here, and the weights do not need them.
        with suppress(Exception):
            content = torch.load(path, map_location="cpu", weights_only=False, mmap=zipfile.is_zipfile(path))
    files = set(shards_of(path).values()) if is_index(path) else {path}
    return load_weights(content, factory, subject, size_bytes=sum(file.stat().st_size for file in files))


def load_weights(
    content: Any, factory: FactoryOptions | None, subject: str, *, size_bytes: int = 0
) -> tuple[torch.nn.Module, tuple[Finding, ...]]:
    """Make the model and load the weights in a checkpoint's content into it.

    Args:
        content: The content of a file.
        factory: The factory of the model.
        subject: The subject of a refusal.
        size_bytes: The size of the weights. A large model is made without memory if that gives the same model.

    Returns, Raises: as `load_checkpoint`.
    """
    sets = find_weights(content, factory.weights_key if factory else "", subject=subject)
    if factory is None or not factory.path:
        found = f": {listed(sets)} weights" if len(sets) > 1 else f" ({len(sets[0].values)} weights)"
        raise refusals.no_factory(subject, f"contains weights and no model{found}")
    hyper_parameters = plain(content.get("hyper_parameters")) if isinstance(content, Mapping) else None
    loading = _Loading(factory, hyper_parameters if isinstance(hyper_parameters, Mapping) else {}, sets, subject)
    model = loading.without_memory() if size_bytes >= limits.META_MODEL_MIN_BYTES else None
    if model is None:
        model = loading.with_memory()
    return model.eval(), tuple(loading.findings)


@dataclass(slots=True)
class _Loading:
    """One factory's model and the sets of weights in a file."""

    factory: FactoryOptions
    hyper_parameters: Mapping[str, Any]
    sets: list[WeightSet]
    subject: str
    findings: list[Finding] = field(default_factory=list)

    def with_memory(self) -> torch.nn.Module:
        """Return the model with the weights copied into it, in the model's own dtypes."""
        model = self._make()
        if first := dict(unsaved_values(model)):
            # Read before the second model exists, so that there is one of them in memory.
            first = {
                name: copy.copy(value) if isinstance(value, np.ndarray) else value.clone()
                for name, value in first.items()
            }
            del model
            model = self._make()
            second = dict(unsaved_values(model))
            if random := [n for n, value in first.items() if n not in second or not equal_values(value, second[n])]:
                raise TrainedModelRefused(
                    f"The factory {self.factory.path}",
                    f"gives other values to tensors of the model at each call, and a state dict does not have them: "
                    f"{shown(random)}",
                    "Register them as parameters or persistent buffers, and their modules as submodules, so that they "
                    "are saved with the weights. Or compute them without random numbers.",
                    code="random_factory",
                )
        if any(tensor.device.type != "cpu" for tensor in (*model.parameters(), *model.buffers())):
            model.to("cpu")
        self._load(model, assign=False)
        _finish_lazy_modules(model)
        return model

    def without_memory(self) -> torch.nn.Module | None:
        """Return the model of the mapped weights themselves; None where that could be another model.

        The factory runs on the device meta. Every tensor that it made must then be replaced by one of the file, in the
        same dtype, and no code of the model may take part in that.
        """
        before = list(meta_tensors())  # alive, so that no identity is used twice
        known = {id(tensor) for tensor in before}
        try:
            with torch.device("meta"):
                model = self._make()
            if not loads_plainly(model):
                return None
            if not self._fits_in_its_dtypes(model):
                return None
            self._load(model, assign=True)
        except Exception:  # noqa: BLE001 - a factory may need values; the error of the call with memory counts
            self.findings.clear()
            return None
        gc.collect()
        if any(id(tensor) not in known for tensor in meta_tensors()):
            self.findings.clear()
            return None
        return model

    def _fits_in_its_dtypes(self, model: torch.nn.Module) -> bool:
        """Return True if the file has every tensor of the model in its dtype. No tensor outlives the call."""
        match, _ = choose_match(ModelNames.of(model), self.sets, self.subject)
        dtypes = {name: tensor.dtype for name, tensor in model.state_dict().items()}
        return match.fits and all(dtypes[name] == match.weights.values[own].dtype for name, own in match.names.items())

    def _make(self) -> torch.nn.Module:
        model = make_model(self.factory, self.hyper_parameters)
        if not isinstance(model, torch.nn.Module):
            raise TrainedModelRefused(
                f"The factory {self.factory.path}",
                f"returns a {type(model).__name__}, not a torch.nn.Module",
                "Return the model itself.",
                code="factory_result",
            )
        return model

    def _load(self, model: torch.nn.Module, *, assign: bool) -> None:
        """Load the weights by the model's own `load_state_dict`, which decides about names and shapes."""
        names = ModelNames.of(model)
        match, findings = choose_match(names, self.sets, self.subject)
        state = _State(match, {name: match.weights.values[own] for name, own in match.names.items()})
        self._complete(state, names)
        findings += self._dtype_findings(state, names)
        problem = ""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                result = model.load_state_dict(state.with_versions(model, names.wrappers), strict=False, assign=assign)
            missing = sorted(result.missing_keys)
            unexpected = [name for name in sorted(result.unexpected_keys) if not is_of_training(name)]
        except Exception as error:  # noqa: BLE001 - the hooks of a model raise anything
            raise_machine_failure(error)
            missing = [name for name in sorted(names.tensors) if name not in state.values]
            unexpected = [name for name in sorted(match.surplus) if not is_of_training(name)]
            problem = shorten(error, 400)
        if missing or unexpected or problem:
            raise self._differ(_Differences(missing, unexpected, problem), names, state)
        self.findings += findings

    def _complete(self, state: _State, names: ModelNames) -> None:
        """Add the names that a file may lack: other names of a shared tensor, and counters of batches."""
        for group in names.ties:
            there = [name for name in group if name in state.values]
            for one, other in itertools.pairwise(there):
                if not equal_values(state.values[one], state.values[other]):
                    raise TrainedModelRefused(
                        self.subject,
                        f"has different values for '{one}' and '{other}', which are one tensor in the factory's model",
                        "Make the model without the shared tensor, as in the training.",
                        code="weights_differ",
                    )
            if there:
                state.values.update({name: state.values[there[0]] for name in group if name not in state.values})
        # Inference does not read the counters.
        counters = {name for name in names.tensors if name.endswith("num_batches_tracked")}
        state.values.update({name: names.tensors[name].detach() for name in counters - state.values.keys()})

    def _dtype_findings(self, state: _State, names: ModelNames) -> list[Finding]:
        """Return findings about weights that the model has in another dtype than the file."""
        rounded: dict[tuple[str, str, bool], list[str]] = {}
        for name, value in state.values.items():
            own = names.tensors.get(name)
            if not isinstance(value, torch.Tensor) or not isinstance(own, torch.Tensor) or own.dtype == value.dtype:
                continue
            if value.is_quantized:  # torch refuses it
                continue
            exact = casts_exactly(value, own.dtype)
            both_floats = value.is_floating_point() and own.is_floating_point()
            if not exact and (not both_floats or overflows(value, own.dtype)):
                raise TrainedModelRefused(
                    self.subject,
                    f"has '{name}' as {_name(value.dtype)}, and its values do not fit {_name(own.dtype)}, the dtype of "
                    "the factory's model",
                    "Make the model in the dtype of the weights, or save the weights in that of the model.",
                    code="weights_differ",
                )
            rounded.setdefault((_name(value.dtype), _name(own.dtype), exact), []).append(name)
        return [
            Finding(
                severity="info" if exact else "warning",
                code="weights_dtype",
                message=f"{len(group)} tensors are {stored} in the file and {own} in the factory's model: "
                f"their values are {'the same' if exact else 'rounded'} ({shown(group, 4)})",
                fix=f"model = model.to(torch.{stored})  # in the factory, for a {stored} model" if exact else None,
            )
            for (stored, own, exact), group in rounded.items()
        ]

    def _differ(self, found: _Differences, names: ModelNames, state: _State) -> TrainedModelRefused:
        problems = []
        if found.missing:
            near = {name: difflib.get_close_matches(name, found.unexpected, 1, 0.6) for name in found.missing[:8]}
            texts = [f"{name} (it has {close[0]})" if close else name for name, close in near.items()]
            problems.append(f"lacks {shown([*texts, *found.missing[8:]])}")
        if found.unexpected:
            problems.append(f"also has {shown(found.unexpected)}")
        shapes = [
            f"has {name} as {tuple(value.shape)} instead of {tuple(names.tensors[name].shape)}"
            for name, value in state.values.items()
            if isinstance(value, torch.Tensor)
            and isinstance(own := names.tensors.get(name), torch.Tensor)
            and not torch.nn.parameter.is_lazy(own)
            and own.shape != value.shape
        ]
        problems += shapes[:8] + ([f"has {len(shapes) - 8} more of other shapes"] if len(shapes) > 8 else [])
        objects = {name: origin for name, v in state.match.weights.values.items() if (origin := origin_of(v))}
        problems += [f"has {name} as {origin} instead of a tensor" for name, origin in list(objects.items())[:4]]
        if not problems:
            problems = [f"is refused by its load_state_dict: {found.problem}"]
        key = f" (its weights under {state.match.key!r})" if state.match.key else ""
        others = [one for one in self.sets if one is not state.match.weights]
        also = f" It also has weights under {listed(others)}; the parameter `weights_key` names them." if others else ""
        return TrainedModelRefused(
            self.subject + key,
            f"does not fit the factory's model: it {'; it '.join(problems)}",
            f"Compare the factory and its arguments with those of the training.{also}",
            code="weights_differ",
        )


@dataclass(frozen=True, slots=True)
class _Differences:
    missing: list[str]
    unexpected: list[str]
    problem: str


@dataclass(frozen=True, slots=True)
class _State:
    """Values to load, by the names of the model."""

    match: Match
    values: dict[str, Any]

    def with_versions(self, model: torch.nn.Module, wrappers: frozenset[str]) -> Mapping[str, Any]:
        """Return the state dict for `load_state_dict`, with the versions of the module classes in the file.

        Surplus values stay, because a hook of the model may rename them.
        """
        state = dict(self.values)
        for name, own in self.match.surplus.items():
            state.setdefault(name, self.match.weights.values[own])
        versions = {
            canonical(f"{module}.", wrappers): version for module, version in self.match.weights.versions.items()
        }
        result = _StateDict(state)
        result._metadata = {
            name: versions[key]
            for name, _ in model.named_modules(remove_duplicate=False)
            if (key := self.match.prefix + canonical(f"{name}." if name else "", wrappers)) in versions
        }
        return result


class _StateDict(dict[str, Any]):
    """A state dict with versions, as torch's."""

    _metadata: dict[str, Any]


def _finish_lazy_modules(model: torch.nn.Module) -> None:
    """Turn lazy modules with loaded weights into their plain classes, as their first call does."""
    for module in model.modules():
        if isinstance(module, LazyModuleMixin) and not module.has_uninitialized_params():
            module._initialize_hook.remove()
            module._load_hook.remove()
            del module._initialize_hook, module._load_hook
            if module.cls_to_become is not None:
                module.__class__ = module.cls_to_become


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
