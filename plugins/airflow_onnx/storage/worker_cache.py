"""What a task reads from afar, through this worker's cache: the trained model, and what is staged in a store."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from airflow_onnx.deployment import settings
from airflow_onnx.tracking import weight_files

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook
    from onnx_release.artifact.cache import Entry, Wanted

log = logging.getLogger(__name__)

LOGGED_MODEL = "models:/m-"


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedModel:
    """A trained model on this disk, a folder or a file, and the sha256 of all that was downloaded for it."""

    path: Path
    sha256: str


@contextmanager
def cached(wanted: Wanted) -> Iterator[Entry]:
    """Yield the folder from this worker's cache, or fetch it; the log names which."""
    from onnx_release.artifact.cache import Cache

    with Cache(settings.cache_folder(), settings.cache_max_bytes()).entry(wanted) as entry:
        log.info("%s, %d bytes: %s.", wanted.name, entry.size_bytes, "in the cache" if entry.hit else "fetched")
        yield entry


@contextmanager
def trained_model(hook: MlflowHook, model_uri: str, sha256: str = "") -> Iterator[FetchedModel]:
    """Yield a trained model.

    :param sha256: what an earlier task of the release found it to be: it must still be that, from the cache or from
        MLflow. Without it, only a logged model, which MLflow never changes, is looked for in the cache, and only where
        no pickles are loaded: a pickle's code has this account, could change what the cache says of another run's
        model, and MLflow has no digest to hold that against.
    :raises Refused: when MLflow has other bytes by now.
    """
    from onnx_release.artifact.cache import Wanted

    # A file's name tells what it is, in messages and by its suffix, and so it cannot be a special one.
    where = PurePosixPath(model_uri).name if weight_files.is_file(model_uri) else "model"

    def fill(folder: Path) -> None:
        # MLflow's client chooses where below the folder it puts them.
        local = hook.download(model_uri, folder / "download")
        local.rename(folder / where)
        shutil.rmtree(folder / "download", ignore_errors=True)

    key = "" if sha256 or settings.allow_pickle() else _key(hook, model_uri)
    with cached(Wanted(name=f"trained model {model_uri}", fill=fill, sha256=sha256, key=key)) as entry:
        yield FetchedModel(path=entry.folder / where, sha256=entry.sha256)


def _key(hook: MlflowHook, model_uri: str) -> str:
    """Return what names a logged model and how its files look from afar; empty for what may change as it is.

    Files below a run (``runs:/…``) may be written again with the same sizes, as weights of one architecture are.
    """
    if not model_uri.startswith(LOGGED_MODEL):
        return ""
    listed = "\n".join(f"{path}\0{size}" for path, size in sorted(hook.model_files(model_uri)))
    return f"{hook.server.tracking_uri}\n{model_uri}\n{listed}"
