"""Files of weights or of a model among a run's artifacts, for a run that logged no model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from onnx_release import limits
from onnx_release.errors import Refused

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook

# How deep and how far a run's artifacts are looked through: Lightning's logger keeps model/checkpoints/<name>/<file>.
_DEPTH_MAX = 5
_FOLDERS_MAX = 200


def is_file(model_uri: str) -> bool:
    """Say whether a URI names a file of a run, and not a model's folder."""
    return model_uri.startswith("runs:/") and PurePosixPath(model_uri).suffix in limits.MODEL_SUFFIXES


def find(hook: MlflowHook, run_id: str) -> tuple[str, str] | None:
    """Return the URI of the one file to release, and why it; None when there is no such file.

    One whose path says ``best`` comes before the others, then a program before weights.

    :raises Refused: when several are as good, naming them.
    """
    files = sorted(_files(hook, run_id))
    if not files:
        return None
    best = [path for path in files if "best" in path.lower()] or files
    by_kind = [[path for path in best if path.endswith(suffix)] for suffix in limits.MODEL_SUFFIXES]
    foremost = next(paths for paths in by_kind if paths)
    if len(foremost) > 1:
        raise Refused(
            f"training run {run_id}",
            f"logged no model, and {len(foremost)} files that could be it: {', '.join(foremost[:10])}",
            f"Name one: model_uri = runs:/{run_id}/{foremost[-1]}",
        )
    others = f" of {len(files)}" if len(files) > 1 else ""
    return f"runs:/{run_id}/{foremost[0]}", f"the run logged no model; the file {foremost[0]}{others}"


def _files(hook: MlflowHook, run_id: str) -> Iterator[str]:
    folders: list[tuple[str | None, int]] = [(None, 0)]
    looked_at = 0
    while folders and looked_at < _FOLDERS_MAX:
        folder, depth = folders.pop(0)
        looked_at += 1
        with hook.explained(f"artifacts of run {run_id}"):
            items = hook.client.list_artifacts(run_id, folder)
        # The evidence of an earlier release is no source of another.
        if any(item.path.endswith("/MLmodel") for item in items) or folder == "onnx_release":
            continue
        for item in items:
            if item.is_dir and depth < _DEPTH_MAX:
                folders.append((item.path, depth + 1))
            elif not item.is_dir and PurePosixPath(item.path).suffix in limits.MODEL_SUFFIXES:
                yield item.path
