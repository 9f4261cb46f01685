"""Digests of artifact folders, and folders that appear as a whole."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_release.errors import ArtifactRefused, Transient
from onnx_release.limits import REPORTS
from onnx_release.records import FileDigest, OnnxArtifact

_AGAIN = "Release the training run again from its export. If it happens twice, find the program that writes there."


def describe_folder(folder: Path, known: Iterable[FileDigest] = ()) -> tuple[FileDigest, ...]:
    """Hash every file below a folder.

    Args:
        folder: The folder.
        known: Digests that the caller takes itself. These files are not read.

    Returns:
        One digest per file, sorted by path.

    Raises:
        ArtifactRefused: if `folder` is not a folder, or contains links or special files. The message names each.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise ArtifactRefused(
            f"The path '{folder.name}'",
            "is not a folder",
            "Run the export again, which writes it.",
            code="not_a_folder",
        )
    files, special = [], []
    taken = {file.path: file for file in known}
    for path in folder.rglob("*"):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISREG(mode):
            files.append(taken.get(name) or describe_file(folder, name))
        elif not stat.S_ISDIR(mode):
            special.append(f"{name} ({'a symbolic link' if stat.S_ISLNK(mode) else 'a special file'})")
    if special:
        raise ArtifactRefused(
            f"The artifact folder '{folder.name}'",
            f"contains {', '.join(sorted(special))}",
            "An artifact consists of plain files: replace each with a copy of the file.",
            code="special_file",
        )
    return tuple(sorted(files, key=lambda file: file.path))


def describe_file(folder: Path, name: str) -> FileDigest:
    """Hash one file of a folder; `name` is its path in the folder."""
    with (folder / name).open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        return FileDigest(path=name, sha256=sha256, size_bytes=os.fstat(file.fileno()).st_size)


def folder_sha256(files: Iterable[FileDigest]) -> str:
    """Return the sha256 over sorted ``path\\0sha256\\n`` lines of all files but `REPORTS`.

    The reports name this digest, and their timings differ from run to run.
    """
    return content_sha256(file for file in files if file.path not in REPORTS)


def content_sha256(files: Iterable[FileDigest]) -> str:
    """Return the sha256 over sorted ``path\\0sha256\\n`` lines of all files."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.path}\0{file.sha256}\n".encode())
    return digest.hexdigest()


def verify_folder(folder: Path, expected: Iterable[FileDigest]) -> None:
    """Hash a folder and compare its files with a record.

    Raises:
        ArtifactRefused: if a file is missing, extra or changed. The message names each.
    """
    require_same_files(f"The artifact folder '{folder.name}'", describe_folder(folder), expected)


def require_same_files(subject: str, found: Iterable[FileDigest], expected: Iterable[FileDigest]) -> None:
    """Compare digests that were just taken with those of a record.

    A report is not an extra file: it is written after the digests were taken.

    Args:
        subject: the name of the folder, for the message.
        found: the digests of the folder's files.
        expected: the digests in the record.

    Raises:
        ArtifactRefused: if a file is missing, extra or changed. The message names each.
    """
    old, new = {file.path: file for file in expected}, {file.path: file for file in found}
    problems = [f"{path} is missing" for path in sorted(old.keys() - new.keys())]
    problems += [f"{path} was not there before" for path in sorted(new.keys() - old.keys() - REPORTS)]
    problems += [
        f"{path} changed: {new[path].size_bytes} bytes with sha256 {new[path].sha256}, "
        f"not {old[path].size_bytes} with {old[path].sha256}"
        for path in sorted(old.keys() & new.keys())
        if old[path] != new[path]
    ]
    if problems:
        raise ArtifactRefused(subject, f"differs from its record: {'; '.join(problems)}", _AGAIN, code="changed_files")


def require_bytes(folder: Path, artifact: OnnxArtifact) -> None:
    """Compare a folder with an artifact's record.

    Raises:
        ArtifactRefused: if a file differs, or the record's sha256 is not that of its files.
    """
    verify_folder(folder, artifact.files)
    if (found := folder_sha256(artifact.files)) != artifact.sha256:
        raise ArtifactRefused(
            "The artifact's record",
            f"has sha256 {artifact.sha256}, but its files give {found}",
            "Export the training run again.",
            code="wrong_sha256",
        )


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`. It replaces `target` on success and is removed on failure.

    The replacement is a rename, so another process never sees a folder that is half written.

    Raises:
        Transient: if the disk is full or not writable. Errors of the body pass unchanged.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        yield temporary
        # A folder cannot be renamed onto a folder with files, so the old one is renamed first.
        old = temporary.with_name(f"{temporary.name}.old")
        with _disk_errors(target):
            if os.path.lexists(target):
                target.rename(old)
            temporary.rename(target)
            if old.is_dir() and not old.is_symlink():
                shutil.rmtree(old)
            else:
                old.unlink(missing_ok=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Transient(
            f"The folder '{target.name}'",
            f"cannot be written: {error.strerror or type(error).__name__}",
            "Check the worker's disk and its permissions.",
        ) from error
