"""Files of weights or of a model among a run's artifacts, for a run that logged no model."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import PurePosixPath

from onnx_release.errors import TrainingRunRefused
from onnx_release.limits import INDEX_SUFFIXES, MODEL_SUFFIXES
from onnx_release.training_runs import tags

Listing = Callable[[str], Iterable[tuple[str, bool]]]
"""Function that returns the entries of an artifact folder as pairs: path, and True for a folder. "" is the root."""

# Limits of the search through a run's artifacts. Hydra with Lightning writes
# outputs/<day>/<time>/lightning_logs/version_0/checkpoints/<file>, and a logger may put a folder or two before it.
DEPTH_MAX = 12
FOLDERS_MAX = 200
INCOMPLETE = (
    f"the search ended after {FOLDERS_MAX} folders of artifacts or below the {DEPTH_MAX}th level: a file there needs "
    "model_uri = runs:/<run id>/<path>"
)

_LISTED_MAX = 20
_SUFFIXES = (*MODEL_SUFFIXES, *INDEX_SUFFIXES)
_BEST = {"best", *(f"best{word}" for word in ("model", "checkpoint", "ckpt", "weights", "net", "val", "epoch"))}
_LAST = {"last", "latest", "final"}
# Words of files with other parts of the training's state.
_STATE = {"optimizer", "optimizers", "optim", "scheduler", "schedulers", "sched", "scaler", "gradscaler", "rng"}
_STATE_PAIRS = {
    ("training", "args"),
    ("train", "args"),
    ("trainer", "state"),
    ("random", "state"),
    ("random", "states"),
}
_AVERAGED = {"ema", "swa"}
# A .tar or .bin file is one of PyTorch's only if its name has one of these words.
_MODEL_WORDS = {"model", "checkpoint", "ckpt", "weights", "weight", "epoch", "net", "network", *_BEST, *_LAST}
_SHARED_SUFFIXES = (".tar", ".bin")
_SHARD = re.compile(r"-\d+-of-\d+(?=\.(safetensors|bin|pt|pth)$)", re.IGNORECASE)
# The number of an epoch or step, and a measured value.
_STEP = re.compile(r"(?<![a-z])(epoch|step|iter|iteration|checkpoint|ckpt)([=_ -]?)(\d+)(?!\d|\.\d)", re.IGNORECASE)
_VALUE = re.compile(r"\d+\.\d+(?=\D|$)")


@dataclass(slots=True)
class Artifacts:
    """Files and model folders that a search found.

    :param model_folders: the folders with a file MLmodel.
    :param files: the files with a suffix of models or weights, except in these folders, sorted.
    :param complete: False if the search ended at one of its limits.
    """

    model_folders: list[str] = field(default_factory=list)
    files: list[str] = field(default_factory=list)
    complete: bool = True


def is_file(model_uri: str) -> bool:
    """Return True for the URI of a file of a run, False for the folder of a model."""
    return model_uri.startswith("runs:/") and model_uri.lower().endswith(_SUFFIXES)


def search(listing: Listing, depth_max: int = DEPTH_MAX, logged: Collection[str] = ()) -> Artifacts:
    """Return models and weights of a run, found level by level.

    :param logged: folders of models, which are not listed.
    """
    found, folders, listed = Artifacts(), deque([("", 0)]), 0
    while folders:
        if listed == FOLDERS_MAX:
            found.complete = False
            break
        folder, depth = folders.popleft()
        if folder in logged:
            found.model_folders.append(folder)
            continue
        items, listed = list(listing(folder)), listed + 1
        names = {PurePosixPath(path).name for path, _ in items}
        if folder and "MLmodel" in names:
            found.model_folders.append(folder)
            continue
        below = sorted(path for path, is_dir in items if is_dir and path != tags.ROOT)
        if depth < depth_max:
            folders += [(path, depth + 1) for path in below]
        elif below:
            found.complete = False
        found.files += [path for path, is_dir in items if not is_dir and _is_candidate(path, names)]
    found.files.sort()
    return found


def choose(files: Sequence[str], run_id: str) -> str:
    """Return the file to release; docs/sources.md has the rules.

    :raises TrainingRunRefused: if several files match equally well, or if the weights are in shards.
    """
    whole = [path for path in files if f"{_SHARD.sub('', path)}.index.json" not in files]
    candidates = _first_formats(_without_training_state(whole))
    rank = min(map(_rank, candidates))
    first = _newest([path for path in candidates if _rank(path) == rank])
    refuse_shards(first, f"The training run {run_id}")
    if len(first) > 1:
        raise TrainingRunRefused(
            f"The training run {run_id}",
            f"logged no model, but {len(first)} files that match equally well: {_listed(first)}",
            f"Choose one: model_uri = runs:/{run_id}/{first[-1]}",
            code="several_model_files",
        )
    return first[0]


def refuse_shards(paths: Sequence[str], subject: str) -> None:
    """Refuse files that are a part of the weights each, by their names.

    :raises TrainingRunRefused: if there is such a file.
    """
    if sharded := [path for path in paths if _SHARD.search(path)]:
        raise TrainingRunRefused(
            subject,
            f"has its weights in shards: {_listed(sharded)}",
            "Log their index beside them (model.safetensors.index.json, as transformers writes it) and release the "
            "index, or merge them into one file: torch.save(model.state_dict(), 'model.pt').",
            code="weights_in_shards",
        )


def is_index(path: str) -> bool:
    """Return True for the index of weights in several files."""
    return path.lower().endswith(INDEX_SUFFIXES)


def indexed_files(index: str) -> list[str]:
    """Return the names of the files of weights beside an index. The core refuses an index with other names.

    :param index: its JSON.
    """
    try:
        names = {str(name) for name in json.loads(index)["weight_map"].values()}
    except (ValueError, TypeError, KeyError, AttributeError):
        return []
    plain = (name for name in names if PurePosixPath(name).name == name and name.lower().endswith(MODEL_SUFFIXES))
    return sorted(plain)


def is_weights(path: str) -> bool:
    """Return True if a file of this name always contains weights without a model."""
    return path.lower().endswith((".safetensors", ".ckpt")) or is_index(path)


def _is_candidate(path: str, siblings: set[str]) -> bool:
    name = PurePosixPath(path).name
    if not name.lower().endswith(_SUFFIXES):
        return False
    if not name.lower().endswith(_SHARED_SUFFIXES) or name.lower().endswith((".pth.tar", ".pt.tar")):
        return True
    # OpenVINO writes model.xml with model.bin.
    return bool(_MODEL_WORDS & set(_words(name))) and f"{PurePosixPath(name).stem}.xml" not in siblings


def _words(name: str) -> list[str]:
    """Return the words of a name in lower case, without its suffix. ``bestModel-2.pt`` has best and model."""
    stem = name[: -len(_suffix(name))] if _suffix(name) else name
    return [word.lower() for word in re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", stem)]


def _suffix(path: str) -> str:
    return next((suffix for suffix in MODEL_SUFFIXES if path.lower().endswith(suffix)), "")


def _without_training_state(files: list[str]) -> list[str]:
    """Omit optimizers and the like, and averaged weights beside the weights that they belong to, if a file remains."""
    models = [path for path in files if not _is_training_state(path)] or files
    raw = {tuple(_words(path)) for path in models}
    return [path for path in models if not _AVERAGED & set(words := _words(path)) or _raw(words) not in raw]


def _raw(words: list[str]) -> tuple[str, ...]:
    return tuple(word for word in words if word not in _AVERAGED)


def _is_training_state(path: str) -> bool:
    words = _words(PurePosixPath(path).name)
    return bool(_STATE & set(words)) or words == ["opt"] or bool(_STATE_PAIRS & set(pairwise(words)))


def _first_formats(files: list[str]) -> list[str]:
    """Of files in one folder that differ in their suffix only, return the one of the first suffix."""
    by_stem: dict[str, str] = {}
    for path in sorted(files, key=lambda path: MODEL_SUFFIXES.index(_suffix(path) or ".bin")):
        by_stem.setdefault(path[: -len(_suffix(path))] if _suffix(path) else path, path)
    return sorted(by_stem.values())


def _rank(path: str) -> int:
    place = PurePosixPath(path)
    words = set(_words(place.name))
    if words & _BEST:
        return 0
    if place.parent.name.lower() in _BEST:
        return 1
    if _suffix(path) == ".pt2":
        return 2
    return 3 if words & _LAST or place.parent.name.lower() in _LAST else 4


def _newest(files: list[str]) -> list[str]:
    """Return the file of the highest epoch or step if the names differ only in these numbers and in measured values."""
    if len({_VALUE.sub("#", _STEP.sub(r"\1\2#", path)) for path in files}) != 1:
        return files
    steps = {path: [int(number) for _, _, number in _STEP.findall(path)] for path in files}
    highest = max(steps.values())
    return [path for path in files if steps[path] == highest]


def _listed(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _LISTED_MAX} more" if len(paths) > _LISTED_MAX else ""
    return ", ".join(paths[:_LISTED_MAX]) + more
