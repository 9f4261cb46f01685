"""Files of weights or of a model among a run's artifacts, for a run that logged no model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from onnx_release import limits
from onnx_release.errors import Refused

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

Listing = Callable[[str], Iterable[tuple[str, bool]]]
"""Returns path and whether it is a folder, for each entry of a folder of artifacts; empty text is their root."""

# How deep and how far a run's artifacts are looked through: Lightning's logger keeps model/checkpoints/<name>/<file>.
_DEPTH_MAX = 5
_FOLDERS_MAX = 200


def is_file(model_uri: str) -> bool:
    """Say whether a URI names a file of a run, and not a model's folder."""
    return model_uri.startswith("runs:/") and PurePosixPath(model_uri).suffix in limits.MODEL_SUFFIXES


def find(hook: MlflowHook, run_id: str) -> tuple[str, str] | None:
    """Return the URI of the one file to release, and why it; None when there is no such file.

    :raises Refused: when several are as good, naming them.
    """

    def listing(folder: str) -> Iterator[tuple[str, bool]]:
        with hook.mlflow_errors(f"artifacts of run {run_id}"):
            yield from ((item.path, item.is_dir) for item in hook.client.list_artifacts(run_id, folder or None))

    files = sorted(model_files(listing))
    if not files:
        return None
    path = choose(files, run_id)
    others = f" of {len(files)}" if len(files) > 1 else ""
    return f"runs:/{run_id}/{path}", f"the run logged no model; the file {path}{others}"


def choose(files: list[str], run_id: str) -> str:
    """Return the file to release: one whose path says ``best`` before the others, then a program before weights.

    :raises Refused: when several are as good, naming them.
    """
    best = [path for path in files if "best" in path.lower()] or files
    by_kind = [[path for path in best if path.endswith(suffix)] for suffix in limits.MODEL_SUFFIXES]
    foremost = next(paths for paths in by_kind if paths)
    if len(foremost) > 1:
        raise Refused(
            f"training run {run_id}",
            f"logged no model, and {len(foremost)} files that could be it: {', '.join(foremost[:10])}",
            f"Name one: model_uri = runs:/{run_id}/{foremost[-1]}",
        )
    return foremost[0]


def model_files(listing: Listing) -> Iterator[str]:
    """Yield the path of every file that is called as a model or weights are, outside of logged models."""
    folders = [("", 0)]
    for _ in range(_FOLDERS_MAX):
        if not folders:
            return
        folder, depth = folders.pop(0)
        items = list(listing(folder))
        # The evidence of an earlier release is no source of another.
        if folder == "onnx_release" or any(PurePosixPath(path).name == "MLmodel" for path, _ in items):
            continue
        folders += [(path, depth + 1) for path, is_dir in items if is_dir and depth < _DEPTH_MAX]
        yield from (p for p, is_dir in items if not is_dir and PurePosixPath(p).suffix in limits.MODEL_SUFFIXES)
