"""Where the tasks of one release hand the artifact to each other: a folder behind a URI."""

from __future__ import annotations

import hashlib
import re
import shutil
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

from onnx_release.errors import Refused, Transient

ARTIFACT = "artifact"
TUNED = "tuned"


def work_uri(root_uri: str, dag_id: str, dag_run_id: str) -> str:
    """Return the work folder of one DAG run. Run ids are free text, so they are hashed, never made a path."""
    digest = hashlib.sha256(f"{dag_id}\0{dag_run_id}".encode()).hexdigest()
    return f"{root_uri.rstrip('/')}/{digest[:24]}"


def local_path(uri: str) -> Path:
    """Return the folder that a ``file://`` URI names; raises `Refused` for any other scheme."""
    parts = urlsplit(uri)
    if parts.scheme != "file" or parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
        raise Refused(
            f"staging folder {uri!r:.200}",
            "is no file:// URI with an absolute path",
            "Set [onnx_release] staging_uri to a folder that every worker of the release sees.",
        )
    return Path(unquote(parts.path))


def prepare(uri: str, keep_s: float) -> None:
    """Make an empty-or-existing work folder, and sweep siblings that nothing has touched for `keep_s` seconds."""
    folder = local_path(uri)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.touch()
        for sibling in folder.parent.iterdir():
            if sibling != folder and _is_left_over(sibling, keep_s):
                shutil.rmtree(sibling, ignore_errors=True)
    except OSError as error:
        raise Transient(
            f"staging folder {folder}", f"cannot be used: {error}", "Check its disk and its rights."
        ) from error


def _is_left_over(folder: Path, keep_s: float) -> bool:
    # Only names that `work_uri` makes: the root may be a folder that others use too.
    ours = re.fullmatch(r"[0-9a-f]{24}", folder.name) and folder.is_dir() and not folder.is_symlink()
    return bool(ours) and time.time() - folder.stat().st_mtime > keep_s


def staged(uri: str) -> Path:
    """Return the local folder of a staged artifact, or raise `Refused` when it is not there."""
    folder = local_path(uri)
    if not folder.is_dir():
        raise Refused(
            f"staged artifact {uri}",
            "is not there (swept away, or staged on a disk that this worker does not see)",
            "Clear 'export' with its downstream tasks; workers on several hosts need shared storage at staging_uri.",
        )
    return folder


def remove(uri: str) -> None:
    """Delete a work folder; one that is gone already is no error."""
    shutil.rmtree(local_path(uri), ignore_errors=True)
