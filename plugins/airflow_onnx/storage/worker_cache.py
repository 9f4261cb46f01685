"""The worker's cache of trained models from MLflow and of artifacts from the staging store."""

from __future__ import annotations

import logging
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from airflow_onnx.deployment import settings
from onnx_release.errors import Refused, Transient
from onnx_release.scratch import scratch_folder
from onnx_release.training_runs import weight_files

if TYPE_CHECKING:
    from airflow_onnx.hooks.mlflow import MlflowHook
    from onnx_release.artifact.cache import CacheEntry, CacheRequest
    from onnx_release.records import FileDigest

log = logging.getLogger(__name__)

LOGGED_MODEL = "models:/m-[0-9a-zA-Z]+"
# Codes that a damaged download can cause. The core's own checks of checksums find the damage.
_DAMAGED = (
    "damaged_checkpoint",
    "damaged_pt2",
    "damaged_torchscript",
    "load_failed",
    "nan_weights",
    "no_mlmodel",
    "no_model_file",
    "unreadable_file",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FetchedModel:
    """A trained model on this disk, a folder or a file, and the digest of everything that was downloaded for it."""

    path: Path
    sha256: str


@contextmanager
def cached_folder(request: CacheRequest) -> Iterator[CacheEntry]:
    """Yield a folder from this worker's cache, or fetch it. The log line names which."""
    from onnx_release.artifact.cache import Cache
    from onnx_release.report.numbers import seconds_text, size_text

    began = time.monotonic()
    with Cache(settings.cache_folder(), settings.cache_max_bytes()).entry(request) as entry:
        source = "from this worker's cache" if entry.hit else f"fetched in {seconds_text(time.monotonic() - began)}"
        log.info("%s, %s, %s.", request.name, size_text(entry.size_bytes), source)
        yield entry


def keep_folder(name: str, folder: Path, files: tuple[FileDigest, ...]) -> None:
    """Move a folder that this task has made into this worker's cache. See `Cache.add`."""
    from onnx_release.artifact.cache import Cache

    Cache(settings.cache_folder(), settings.cache_max_bytes()).add(name, folder, files)


@contextmanager
def trained_model(hook: MlflowHook, model_uri: str, sha256: str | None = None) -> Iterator[FetchedModel]:
    """Yield a trained model.

    With a digest, the cached or downloaded model must have it. Without one, only a logged model is taken from the
    cache, because MLflow never changes it, and only if pickles are not allowed. A pickle's code runs with this
    worker's account. It could change the entry of another run's model, and MLflow has no digest to detect that.

    :param sha256: the digest that an earlier task of the release recorded.
    :raises ArtifactRefused: if MLflow has other bytes now.
    """
    from onnx_release.artifact.cache import CacheRequest

    runs_pickles = settings.allow_pickle() or settings.pickle_experiments()
    key = None if sha256 or runs_pickles else _cache_key(hook, model_uri)
    fill = partial(_fill, hook, model_uri)
    request = CacheRequest(name=f"The trained model {model_uri}", fill=fill, sha256=sha256, key=key)
    with cached_folder(request) as entry:
        yield FetchedModel(path=entry.folder / _name(model_uri), sha256=entry.sha256)


def require_sound(hook: MlflowHook, model_uri: str, refusal: Refused, sha256: str) -> None:
    """Download a model again that was refused as damaged, and compare both downloads.

    MLflow has no digest of a file, so one download does not show where the damage is.

    :param refusal: the refusal. Only the codes of a damaged file are examined.
    :param sha256: the digest of the first download.
    :raises Transient: if the second download differs. Then neither counts, and the next try downloads again.
    """
    from onnx_release.artifact.cache import Cache
    from onnx_release.artifact.digests import content_sha256, describe_folder

    if refusal.code not in _DAMAGED:
        return
    with scratch_folder() as scratch:
        folder = scratch / "again"
        folder.mkdir()
        _fill(hook, model_uri, folder)
        if content_sha256(describe_folder(folder)) == sha256:
            return
    if key := _cache_key(hook, model_uri):
        Cache(settings.cache_folder(), settings.cache_max_bytes()).forget(key)
    action = "Airflow tries again. If that does not help, check the network and MLflow's artifact store."
    raise Transient(f"The trained model {model_uri}", "was damaged on its way: two downloads differ", action)


def _fill(hook: MlflowHook, model_uri: str, folder: Path) -> None:
    """Download a model into an empty folder."""
    name = _name(model_uri)
    if weight_files.is_index(model_uri):
        _download_shards(hook, model_uri, folder / name)
        return
    # MLflow's client chooses the path below the folder.
    local = hook.download(model_uri, folder / "download")
    local.rename(folder / name)
    shutil.rmtree(folder / "download", ignore_errors=True)


def _name(model_uri: str) -> str:
    """Return the name of the downloaded model. That of a file stays: its suffix selects the reader."""
    is_plain_file = weight_files.is_file(model_uri) and not weight_files.is_index(model_uri)
    return PurePosixPath(model_uri).name if is_plain_file else "model"


def _download_shards(hook: MlflowHook, index_uri: str, folder: Path) -> None:
    """Download the index of sharded weights and the files that it names into one folder."""
    folder.mkdir()
    scratch = folder.parent / "download"
    index = hook.download(index_uri, scratch / "index").rename(folder / PurePosixPath(index_uri).name)
    for name in weight_files.indexed_files(index.read_text(encoding="utf-8", errors="replace")):
        uri = f"{index_uri.rpartition('/')[0]}/{name}"
        hook.download(uri, scratch / name).rename(folder / name)
    shutil.rmtree(scratch, ignore_errors=True)


def _cache_key(hook: MlflowHook, model_uri: str) -> str | None:
    """Return a key for a logged model: server, URI and listing of its files. Return None for other URIs.

    A file below a run (``runs:/…``) can be overwritten with the same size, as weights of one architecture are.
    """
    if not re.fullmatch(LOGGED_MODEL, model_uri):
        return None
    listed = "\n".join(f"{path}\0{size}" for path, size in sorted(hook.model_files(model_uri)))
    return f"{hook.server.tracking_uri}\n{model_uri}\n{listed}"
