"""Faults of the worker among the errors of libraries: memory, disk and access.

A model is never refused for them: a later try may succeed.
"""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

from onnx_release.errors import ReleaseError, Transient
from onnx_release.text import shorten, without_folders

_FULL_DISK = {errno.ENOSPC, errno.EDQUOT}
_NO_ACCESS = {errno.EACCES, errno.EPERM, errno.EROFS}
# A broken disk, a lost network file system, and the limits of the account.
_BROKEN = {errno.EIO, errno.ESTALE, errno.EMFILE, errno.ENFILE, errno.EFBIG}
# Texts of torch, ONNX Runtime and C++ for an allocation that failed, and of writers that lose the error's number.
_NO_MEMORY_TEXT = re.compile(
    r"can(?:'t|not) allocate memory|out of memory|failed to allocate memory|std::bad_alloc|\bMemoryError\b"
    r"|can't start new thread",
    re.IGNORECASE,
)
_FULL_DISK_TEXT = re.compile(r"no space left on device|disk quota exceeded", re.IGNORECASE)
_BROKEN_TEXT = re.compile(r"\[Errno 5\]|input/output error|too many open files|stale file handle", re.IGNORECASE)


def machine_failure(error: BaseException) -> Transient | None:
    """Return the failure of the worker that caused an error, or None if the worker is not at fault.

    A model is not refused for too little memory or a full disk, so the causes of a refusal count too.
    """
    for cause in () if isinstance(error, Transient) else causes(error):
        text = "" if isinstance(cause, ReleaseError) else str(cause)
        number = cause.errno if isinstance(cause, OSError) else None
        if isinstance(cause, MemoryError) or number == errno.ENOMEM or _NO_MEMORY_TEXT.search(text):
            action = "Give the worker more memory, or release a smaller model."
            return Transient("The worker", f"has too little memory: {shorten(text) or 'MemoryError'}", action)
        if number in _FULL_DISK or _FULL_DISK_TEXT.search(text):
            action = "Free space in its temporary folder, its cache folder and the staging folder."
            return Transient("The worker", "has no space left on a disk", action)
        if number in _BROKEN or _BROKEN_TEXT.search(text):
            action = "Check its disks, its shared folders and the limits of its account."
            return Transient("The worker", f"cannot read or write a file: {without_folders(shorten(text))}", action)
        if number in _NO_ACCESS and isinstance(cause, OSError) and cause is error:
            action = "Give its account access to its temporary folder, its cache folder and the staging folder."
            return Transient("The worker", f"has no access to a file: {cause.strerror}", action)
    return None


def causes(error: BaseException) -> Iterator[BaseException]:
    """Yield the error, its cause, the cause of that, and so on."""
    cause: BaseException | None = error
    seen: set[int] = set()
    # Python allows an error that is its own cause.
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__


def raise_machine_failure(error: BaseException) -> None:
    """Raise the failure of the worker that caused an error. Return if the worker is not at fault.

    Code that turns any error into a refusal, a finding or a note calls this first.

    :raises Transient: as `machine_failure` returns it, or the error itself if it is one.
    """
    if isinstance(error, Transient):
        raise error
    if (failure := machine_failure(error)) is not None:
        raise failure from error
