"""A model is a folder, and these are its bytes: digests, their check, and a folder that appears whole or not at all."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from onnx_release.errors import Refused, Transient
from onnx_release.limits import REPORT_FILE, S3_PART_BYTES
from onnx_release.records import FileDigest, OnnxArtifact

_BLOCK_BYTES = 1 << 20
# After each block other threads may have their turn, and MD5 is slow enough as it is.
_MD5_BLOCK_BYTES = 1 << 23
# Times that are whole multiples of this come from a clock that is too coarse.
_COARSE_NS = 1_000_000


class Digests:
    """Digests taken before they were asked for, each good for as long as its file is the same and not written to.

    A file's stamp (device, inode, size, times of its last write and change) tells that: no program can set back the
    time of a change, and a file on another disk has another stamp.
    """

    def __init__(self) -> None:
        self._taken: dict[tuple[int, ...], str] = {}
        self._etags: dict[tuple[int, ...], str] = {}

    @classmethod
    def known(cls, artifact: OnnxArtifact) -> Digests:
        """Return the digests in an artifact's record, for the files on this machine that have its stamps."""
        digests, stamps = cls(), artifact.stamps
        digests._taken = {stamps[file.path]: file.sha256 for file in artifact.files if file.path in stamps}
        return digests

    def take(self, path: Path) -> str:
        """Read the file, for `of` to know."""
        before = _stamp(path)
        self._taken[before] = _file_sha256(path)
        return self._taken[before]

    def take_etag(self, path: Path) -> None:
        """Read the file for `FileDigest.etag`, which takes three times as long as its sha256."""
        before = _stamp(path)
        self._etags[before] = etag_of(path, S3_PART_BYTES)

    def of(self, path: Path) -> str:
        """Return the digest of the file as it is now."""
        return self._taken.get(_stamp(path)) or self.take(path)

    def etag(self, path: Path) -> str:
        """Return the ETag of the file as it is now, if it was taken."""
        return self._etags.get(_stamp(path), "")

    def stamps(self, folder: Path, files: Iterable[FileDigest]) -> dict[str, tuple[int, ...]]:
        """Return the stamps by which a later process of this machine knows that it need not read these files again.

        A file system that keeps time in seconds, or tenths, could not tell of a second write in the same one.
        """
        found = {file.path: _stamp(folder / file.path) for file in files}
        return {path: stamp for path, stamp in found.items() if stamp in self._taken and stamp[-1] % _COARSE_NS}


def _stamp(path: Path) -> tuple[int, ...]:
    stat = path.lstat()
    return stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns


def describe_folder(folder: Path, digests: Digests | None = None) -> tuple[FileDigest, ...]:
    """Return the digest of every file below `folder`, sorted by path; files are read in blocks.

    :param digests: those that were taken already.
    :raises Refused: when `folder` is no folder, or something in it is neither that nor a plain file; each is named.
    """
    if folder.is_symlink() or not folder.is_dir():
        raise Refused(f"artifact folder {folder}", "is not a folder", "Rerun the export, which writes it.")
    digests, files, strange = digests or Digests(), [], []
    for path in sorted(folder.rglob("*")):
        name, mode = path.relative_to(folder).as_posix(), path.lstat().st_mode
        if stat.S_ISREG(mode):
            sha256, etag = digests.of(path), digests.etag(path)
            files.append(FileDigest(path=name, sha256=sha256, size_bytes=path.lstat().st_size, etag=etag))
        elif not stat.S_ISDIR(mode):
            strange.append(f"{name} ({'a symbolic link' if stat.S_ISLNK(mode) else 'a special file'})")
    if strange:
        raise Refused(
            f"artifact folder {folder}",
            f"holds {', '.join(strange)}, whose bytes are not its own",
            "An artifact is plain files only: put copies in their place.",
        )
    return tuple(sorted(files, key=lambda file: file.path))


def folder_sha256(files: Iterable[FileDigest]) -> str:
    """Return the sha256 over sorted ``path\\0sha256\\n`` lines.

    `REPORT_FILE` is left out: the report names this digest, and holds timings, which are never twice the same.
    """
    return content_sha256(file for file in files if file.path != REPORT_FILE)


def content_sha256(files: Iterable[FileDigest]) -> str:
    """Return the same digest over every file, whatever its name."""
    digest = hashlib.sha256()
    for file in sorted(files, key=lambda file: file.path):
        digest.update(f"{file.path}\0{file.sha256}\n".encode())
    return digest.hexdigest()


def verify_folder(folder: Path, files: Iterable[FileDigest], digests: Digests | None = None) -> None:
    """Raise `Refused` naming every file that is missing, extra or changed; a report is no extra file.

    :param digests: those that were taken already, and where those are kept that are taken now.
    """
    wanted = {file.path: file for file in files}
    found = {file.path: file for file in describe_folder(folder, digests)}
    problems = [f"{path} is missing" for path in sorted(wanted.keys() - found.keys())]
    problems += [f"{path} was not there before" for path in sorted(found.keys() - wanted.keys() - {REPORT_FILE})]
    problems += [
        f"{path} changed: {found[path].size_bytes} bytes of sha256 {found[path].sha256}, "
        f"not {wanted[path].size_bytes} of {wanted[path].sha256}"
        for path in sorted(wanted.keys() & found.keys())
        if wanted[path] != found[path]
    ]
    if problems:
        raise Refused(
            f"artifact folder {folder}",
            f"is not what was exported: {'; '.join(problems)}",
            "Release the training run again from its export; if it happens twice, look for what writes there.",
        )


def require_bytes(folder: Path, artifact: OnnxArtifact) -> None:
    """Raise `Refused` unless the folder's files are those of the record, and amount to its digest."""
    verify_folder(folder, artifact.files, Digests.known(artifact))
    if (found := folder_sha256(artifact.files)) != artifact.sha256:
        raise Refused(
            "The artifact's record",
            f"says sha256 {artifact.sha256}, and its files amount to {found}",
            "Export the training run again.",
        )


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target` that takes its place on success and is removed on failure.

    An earlier `target` is replaced as a whole, so that a step can be run again. Nobody sees a half-written one.

    :raises Transient: when the disk refuses (full, no rights); the body's own errors pass through.
    """
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(8)}")
    with _disk_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary.mkdir()
    try:
        yield temporary
        with _disk_errors(target):
            _replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _replace(source: Path, target: Path) -> None:
    # A folder cannot be renamed onto one that has files, so the old one steps aside first.
    aside = source.with_name(f"{source.name}.old")
    if os.path.lexists(target):
        target.rename(aside)
    source.rename(target)
    if aside.is_dir() and not aside.is_symlink():
        shutil.rmtree(aside)
    else:
        aside.unlink(missing_ok=True)


@contextmanager
def _disk_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise Transient(f"folder {target}", f"cannot be written: {error}", "Check its disk and its rights.") from error


def etag_of(path: Path, part_bytes: int) -> str:
    """Return the ETag that S3 gives a file that is put in parts: over the MD5s of the parts, with their count."""
    parts = []
    with path.open("rb") as file:
        for first in range(0, os.fstat(file.fileno()).st_size, part_bytes):
            part = hashlib.md5(usedforsecurity=False)
            while block := file.read(min(first + part_bytes - file.tell(), _MD5_BLOCK_BYTES)):
                part.update(block)
            parts.append(part.digest())
    return f"{hashlib.md5(b''.join(parts), usedforsecurity=False).hexdigest()}-{len(parts)}"


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()
