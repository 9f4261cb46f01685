"""Files of weights or of a model among a run's artifacts, for a run that logged no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.tracking import tags
from onnx_release import limits

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

Listing = Callable[[str], Iterable[tuple[str, bool]]]
"""Function that returns the entries of an artifact folder as pairs: path, and True for a folder. "" is the root."""

# Limits of the search through a run's artifacts. Lightning's logger writes model/checkpoints/<name>/<file>.
_DEPTH_MAX = 5
_FOLDERS_MAX = 200


def is_file(model_uri: str) -> bool:
    """Return True for the URI of a file of a run, False for the folder of a model."""
    return model_uri.startswith("runs:/") and model_uri.endswith(limits.MODEL_SUFFIXES)


def find(hook: MlflowHook, run_id: str) -> tuple[str, str] | None:
    """Return the URI of the file to release and the reason for this choice, or None if there is no such file.

    :raises TrackingRefused: if several files match equally well.
    """

    def listing(folder: str) -> Iterator[tuple[str, bool]]:
        with hook.mlflow_errors(f"The artifact folder of run {run_id}"):
            yield from ((item.path, item.is_dir) for item in hook.client.list_artifacts(run_id, folder or None))

    files = sorted(model_files(listing))
    if not files:
        return None
    path = choose(files, run_id)
    others = f" of {len(files)}" if len(files) > 1 else ""
    return f"runs:/{run_id}/{path}", f"the run logged no model; the file {path}{others}"


def choose(files: list[str], run_id: str) -> str:
    """Return the file to release: one with ``best`` in its path before the others, then a program before weights.

    :raises TrackingRefused: if several files match equally well.
    """
    best = [path for path in files if "best" in path.lower()] or files
    by_suffix = [[path for path in best if path.endswith(suffix)] for suffix in limits.MODEL_SUFFIXES]
    first = next(paths for paths in by_suffix if paths)
    if len(first) > 1:
        raise TrackingRefused(
            f"The training run {run_id}",
            f"logged no model, but {len(first)} files that match equally well: {', '.join(first[:10])}",
            f"Choose one: model_uri = runs:/{run_id}/{first[-1]}",
            code="several_model_files",
        )
    return first[0]


def model_files(listing: Listing) -> Iterator[str]:
    """Yield the path of every file with a suffix of models or weights, except in the folders of logged models."""
    folders = [("", 0)]
    for _ in range(_FOLDERS_MAX):
        if not folders:
            return
        folder, depth = folders.pop(0)
        items = list(listing(folder))
        # The artifacts of an earlier release are not the source of another.
        if folder == tags.ROOT or any(PurePosixPath(path).name == "MLmodel" for path, _ in items):
            continue
        folders += [(path, depth + 1) for path, is_dir in items if is_dir and depth < _DEPTH_MAX]
        yield from (p for p, is_dir in items if not is_dir and p.endswith(limits.MODEL_SUFFIXES))
