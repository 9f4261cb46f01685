"""Temporary folders of this package, all made by one function.

A folder contains the file `owner.lock`, which its process locks, and the folder `files`. The kernel releases the lock
of a process that was killed. The next process that needs a temporary folder then removes the old one.
"""

from __future__ import annotations

import fcntl
import os
import platform
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PREFIX = "onnx-release-"
_LOCK = "owner.lock"


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder that only this account can read. It is removed at the end, with all its files."""
    remove_abandoned()
    folder, lock = _made()
    try:
        files = folder / "files"
        files.mkdir()
        yield files
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def open_to_group(files: Path, group: int) -> None:
    """Let a group enter a temporary folder from `scratch_folder`, but not list it or change it. Only root can do so."""
    for folder in (files.parent, files):
        os.chown(folder, -1, group)
        folder.chmod(0o710)


def remove_abandoned() -> int:
    """Remove the temporary folders of this account whose process has ended on this host. Return their number.

    A folder without a lock file of this package belongs to another program and stays.
    """
    return sum(map(remove_if_abandoned, abandoned()))


def abandoned() -> list[Path]:
    """Return the temporary folders that `remove_abandoned` removes."""
    folders: list[Path] = []
    with suppress(OSError):
        folders = sorted(Path(tempfile.gettempdir()).glob(f"{PREFIX}*"))
    return [folder for folder in folders if _if_abandoned(folder, lambda _: None)]


def remove_if_abandoned(folder: Path) -> bool:
    """Remove a temporary folder unless its process lives. Return True if it was removed."""
    return _if_abandoned(folder, lambda path: shutil.rmtree(path, ignore_errors=True))


def _if_abandoned(folder: Path, action: Callable[[Path], None]) -> bool:
    """Do the action on a folder without a living process, with its lock. Return False for another folder."""
    # Another account's folder, or one that another process removes now.
    with suppress(OSError):
        if folder.is_symlink() or folder.lstat().st_uid != os.getuid():
            return False
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_NOFOLLOW)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Locks of another host that shares the folder may be invisible here.
            if os.read(lock, 256).decode(errors="replace") == platform.node():
                action(folder)
                return True
        finally:
            os.close(lock)
    return False


def _made() -> tuple[Path, int]:
    """Return a new folder and the descriptor of its locked file. A child process does not inherit the descriptor."""
    folder = Path(tempfile.mkdtemp(prefix=PREFIX))
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, folder, ignore_errors=True)
        lock = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
        stack.callback(os.close, lock)
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Only a folder with the host's name is removed, so not one that has no lock yet.
        os.write(lock, platform.node().encode())
        # Without an error both stay.
        stack.pop_all()
    return folder, lock
