"""Checks of the host on which tasks run: packages, staging folder, free space, usage data."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from airflow.sdk import conf

from airflow_onnx.deployment import settings
from airflow_onnx.errors import StorageRefused
from airflow_onnx.preflight.checks import Subject, failure, warning
from airflow_onnx.preflight.packages import check_packages, tasks_run_here
from airflow_onnx.preflight.store import MARK, StoreProbe, check_staging_copy
from airflow_onnx.storage import staging
from airflow_onnx.storage.staging_folder import FolderStaging
from onnx_release.errors import Transient

# A release of a small model writes 100 MB. One of a large model writes three times its size.
FREE_MIN_BYTES, FREE_WARN_BYTES = 5e8, 5e9


def check_worker(subject: Subject) -> None:
    """Make the checks of this host."""
    subject.check("worker.packages", check_packages)
    subject.check("worker.disk", check_disks)
    subject.check("worker.pickles", check_pickles)
    subject.check("worker.telemetry", check_telemetry)


def check_staging(subject: Subject, targets: Sequence[StoreProbe] = ()) -> None:
    """Make the checks of the staging folder.

    :param targets: the folders of the uploads, for a staging folder in a store.
    """
    uri = settings.staging_uri()
    subject.check("staging.uri", lambda: _staging_uri(uri))
    if not subject.passed("staging.uri"):
        return
    if uri.startswith("s3://"):
        probe = StoreProbe(settings.staging_conn_id(), uri)
        probe.run(subject)
        if subject.passed("store.put"):
            for target in targets:
                check_staging_copy(subject, probe, target)
    else:
        subject.check("staging.write", lambda: write_to_folder(FolderStaging(uri).folder))


def _staging_uri(uri: str) -> str:
    opened = staging.open_staging(uri)
    if not isinstance(opened, FolderStaging):
        return uri
    found = opened.folder.as_uri()
    if tasks_run_here():
        return found
    raise warning(
        f"{found}, a folder of each worker's own unless a shared disk is mounted there",
        "Mount shared storage there, or set [onnx_release] staging_uri to s3://bucket/prefix.",
    )


def write_to_folder(folder: Path) -> str:
    """Write a file to a folder and delete it. A missing folder is created, as the first release does.

    :raises Transient: if the disk or the rights do not allow it.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile(dir=folder, prefix=f"{MARK}-") as file:
            file.write(b"check")
            file.flush()
    except OSError as error:
        problem = f"cannot be written: {error.strerror or type(error).__name__}"
        raise Transient(f"The folder {folder}", problem, "Check its disk, its owner and its permissions.") from error
    return "a file was written and deleted"


def check_disks() -> str:
    """Return the free space of the disks of the temporary folder, of the cache and of the staging folder."""
    folders = {"temporary": Path(tempfile.gettempdir()), "cache": settings.cache_folder()}
    try:
        opened = staging.open_staging(settings.staging_uri())
        folders |= {"staging": opened.folder} if isinstance(opened, FolderStaging) else {}
    except StorageRefused:
        pass  # The check of the staging folder has the reason.
    free = {name: shutil.disk_usage(_existing(folder)).free for name, folder in folders.items()}
    found = ", ".join(f"{name} {_size(number)} free" for name, number in free.items())
    action = f"Free space in {', '.join(name for name in free if free[name] < FREE_WARN_BYTES)}."
    if min(free.values()) < FREE_MIN_BYTES:
        raise failure(f"{found}; a small release needs {_size(FREE_MIN_BYTES)}", action)
    if min(free.values()) < FREE_WARN_BYTES:
        raise warning(f"{found}; a release of a large model needs three times its size", action)
    return found


def _existing(folder: Path) -> Path:
    """Return the folder, or the nearest one above it that exists."""
    return next(one for one in (folder, *folder.parents) if one.exists())


def _size(number: float) -> str:
    return f"{number / 1e9:.3g} GB" if number >= 1e9 else f"{number / 1e6:.3g} MB"


def check_pickles() -> str:
    """Return the account of the processes that load pickles, or a warning if it is root.

    :raises RunnerRefused: if the worker cannot use the account of the option `pickle_user`.
    """
    if not (settings.allow_pickle() or settings.pickle_experiments()):
        return "pickles are refused"
    from onnx_release.runners.account import child_account

    account = child_account(settings.pickle_user(), {})
    if account.problem:
        raise warning(f"pickles run as root: {account.problem}", account.action)
    return f"pickles run as the account {os.geteuid() if account.user is None else account.user}"


def check_telemetry() -> str:
    """Return the libraries that send no usage data, or a warning with those that do."""
    import onnx_release  # noqa: F401 - its import turns ONNX Runtime's off

    off = {
        "Airflow": not conf.getboolean("usage_data_collection", "enabled", fallback=True),
        "MLflow": any(_is_set(name) for name in ("MLFLOW_DISABLE_TELEMETRY", "DO_NOT_TRACK")),
        "ONNX Runtime": _is_set("ORT_DISABLE_TELEMETRY"),
    }
    if on := [name for name, is_off in off.items() if not is_off]:
        action = "Set AIRFLOW__USAGE_DATA_COLLECTION__ENABLED=False and MLFLOW_DISABLE_TELEMETRY=true."
        raise warning(f"{' and '.join(on)} may send usage data", action)
    return f"off in {', '.join(off)}"


def _is_set(name: str) -> bool:
    return os.environ.get(name, "").lower() in ("1", "true")
