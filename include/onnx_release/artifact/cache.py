"""Disk cache of fetched folders: addressed by content, bounded in size, shared by processes.

The cache folder must be on a local disk, because its locks are `flock` locks. An entry's name is the digest of its
content, and every entry is hashed before use. Only `keys` is not verified: it maps a key to the digest of its content.
A caller that has the digest from another source therefore passes the digest and no key.

    entries/<sha256>/   a complete entry; a rename adds or removes it
    leases/<sha256>     locked shared while the entry is in use; its time is that of the last use
    keys/<sha256>       the digest of a key's content
    fills/              one lock per running fetch, and `room` for eviction and publication
    work/               folders that are fetched, used but not kept, or removed; each is locked by its owner
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from onnx_release.artifact.digests import content_sha256, describe_folder, require_same_files
from onnx_release.errors import ArtifactRefused, Refused, Transient
from onnx_release.records import FileDigest
from onnx_release.scratch import scratch_folder

_log = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRequest:
    """A folder that the cache returns or fetches.

    Attributes:
        name: the folder's name in messages, as the subject of a sentence.
        fill: fetches the files into an empty folder.
        sha256: the digest of the content (`digests.content_sha256`), if the caller has it.
        key: a name whose content never changes, for a caller without the digest. With neither, the folder is fetched.
        files: the expected digests of the files, so that a message can name those that differ.
    """

    name: str
    fill: Callable[[Path], None]
    sha256: str | None = None
    key: str | None = None
    files: tuple[FileDigest, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheEntry:
    """A folder to be read, valid inside the context that returned it. `hit` is False if it was fetched now."""

    folder: Path
    files: tuple[FileDigest, ...]
    sha256: str
    hit: bool

    @property
    def size_bytes(self) -> int:
        """Size of all files in bytes."""
        return sum(file.size_bytes for file in self.files)


class Cache:
    """A cache in `folder` whose entries together have at most `max_bytes`.

    Folders that are being fetched, or that are too large to be kept, are not counted. With `max_bytes` 0 nothing is
    kept, and `folder` is not used.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._root = folder
        self._max_bytes = max_bytes

    @contextmanager
    def entry(self, request: CacheRequest) -> Iterator[CacheEntry]:
        """Yield the folder, from the cache or fetched. Of several processes with the same request, one fetches.

        Raises:
            ArtifactRefused: if the fetched files differ from the requested digest, in two fetches in the same way.
            Transient: if two fetches differ from each other, or the disk is full or not writable. A full disk removes
                every entry that is not in use.
        """
        with ExitStack() as stack:
            if self._max_bytes <= 0:
                folder = stack.enter_context(scratch_folder())
                entry = _fetch(request, folder / "entry")
            else:
                with self._disk_errors():
                    self._set_up()
                    # Without a digest or a key, no other process can have the same request.
                    name = request.sha256 or _text_sha256(request.key or secrets.token_hex(16))
                    with _locked(self._root / "fills" / name, remove=True):
                        entry = self._hit(stack, request) or self._miss(stack, request)
            yield entry

    def add(self, name: str, folder: Path, files: tuple[FileDigest, ...]) -> None:
        """Move a folder that the caller has made into the cache, so that this worker does not fetch it.

        The folder is not hashed here, because every entry is hashed before use. If it does not fit, or the disk is
        full, nothing is kept.

        Args:
            name: The folder's name in messages, as the subject of a sentence.
            folder: The folder. The caller does not use it afterwards.
            files: The digests of its files.
        """
        entry = CacheEntry(folder=folder, files=files, sha256=content_sha256(files), hit=False)
        if entry.size_bytes > self._max_bytes:
            return
        try:
            with self._disk_errors(), ExitStack() as stack:
                self._set_up()
                # A rename, or a copy if the folder is on another disk.
                moved = Path(shutil.move(folder, stack.enter_context(self._work_folder()) / "entry"))
                with _locked(self._lease(entry.sha256), shared=True) as lease:
                    os.utime(lease)
                    self._publish(name, replace(entry, folder=moved), self._entry(entry.sha256))
        except Transient as refusal:
            _log.warning("%s is not kept in the cache: %s", name, refusal)

    def forget(self, key: str) -> None:
        """Remove a key, whose content was damaged when it was fetched. Its entry stays for requests by its digest."""
        if self._max_bytes > 0:
            self._key_file(key).unlink(missing_ok=True)

    def _hit(self, stack: ExitStack, request: CacheRequest) -> CacheEntry | None:
        sha256 = request.sha256 or (request.key and _read_sha256(self._key_file(request.key)))
        if not sha256:
            return None
        with ExitStack() as attempt:
            lease = attempt.enter_context(_locked(self._lease(sha256), shared=True))
            folder = self._entry(sha256)
            if not folder.is_dir():
                return None
            if (entry := _verified(folder, sha256)) is None:
                _log.warning("%s: the cached copy is damaged and is fetched again.", request.name)
                return None
            os.utime(lease)
            stack.push(attempt.pop_all())
        return entry

    def _miss(self, stack: ExitStack, request: CacheRequest) -> CacheEntry:
        work = stack.enter_context(self._work_folder())
        entry = _fetch(request, work / "entry")
        # The lease comes before publication, so that no other process evicts the entry in between.
        lease = stack.enter_context(_locked(self._lease(entry.sha256), shared=True))
        os.utime(lease)
        target = self._entry(entry.sha256)
        if not self._publish(request.name, entry, target):
            return entry
        if request.key:
            key_file = self._key_file(request.key)
            temporary = key_file.with_name(f"{key_file.name}.{secrets.token_hex(8)}")
            temporary.write_text(entry.sha256)
            temporary.replace(key_file)
        return replace(entry, folder=target)

    def _publish(self, name: str, entry: CacheEntry, target: Path) -> bool:
        """Move a folder on the cache's disk to its place, unless an intact one is there. Return False without room."""
        with _locked(self._root / "fills" / "room"):
            if not target.is_dir() or _verified(target, entry.sha256) is None:
                if not self._make_room(entry.size_bytes, entry.sha256):
                    _log.info("%s, %d bytes, does not fit into the cache.", name, entry.size_bytes)
                    return False
                # A process that still uses the damaged entry continues with the intact files.
                self._discard(target)
                entry.folder.rename(target)
        return True

    def _make_room(self, size_bytes: int, sha256: str) -> bool:
        """Evict the least recently used entries until the size fits. Entries in use stay."""
        if size_bytes > self._max_bytes:
            return False
        sizes = {
            path.name: sum(file.lstat().st_size for file in path.rglob("*") if file.is_file())
            for path in (self._root / "entries").iterdir()
            if path.name != sha256
        }
        total = sum(sizes.values())
        leases = {name: self._lease(name) for name in sizes}
        last_use = {name: lease.stat().st_mtime if lease.exists() else 0.0 for name, lease in leases.items()}
        for name in sorted(sizes, key=last_use.__getitem__):
            if total + size_bytes <= self._max_bytes:
                break
            if self._evict(name):
                total -= sizes[name]
        return total + size_bytes <= self._max_bytes

    def _evict(self, sha256: str) -> bool:
        """Remove an entry and its keys. Return False if the entry is in use."""
        with ExitStack() as stack:
            try:
                stack.enter_context(_locked(self._lease(sha256), wait=False, remove=True))
            except BlockingIOError:
                return False
            self._discard(self._entry(sha256))
        for key in (self._root / "keys").iterdir():
            if _read_sha256(key) == sha256:
                key.unlink(missing_ok=True)
        return True

    def _discard(self, folder: Path) -> None:
        """Remove an entry. It disappears as a whole by a rename before its files are deleted."""
        if folder.is_dir():
            with self._work_folder() as work:
                folder.rename(work / "entry")

    def _entry(self, sha256: str) -> Path:
        return self._root / "entries" / sha256

    def _lease(self, sha256: str) -> Path:
        return self._root / "leases" / sha256

    def _key_file(self, key: str) -> Path:
        return self._root / "keys" / _text_sha256(key)

    @contextmanager
    def _work_folder(self) -> Iterator[Path]:
        """Yield a folder of this process. Its lock shows other processes that the owner still runs."""
        folder = self._root / "work" / secrets.token_hex(8)
        with _locked(folder.with_suffix(".lock"), remove=True):
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _set_up(self) -> None:
        """Make the folders, and remove the files of processes that were killed."""
        self._root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self._root, *(self._root / name for name in ("entries", "leases", "keys", "fills", "work"))):
            folder.mkdir(exist_ok=True, mode=0o700)
        leases = [path for path in (self._root / "leases").iterdir() if not self._entry(path.name).is_dir()]
        for unused in [*leases, *(path for path in (self._root / "fills").iterdir() if path.name != "room")]:
            with suppress(BlockingIOError), _locked(unused, wait=False, remove=True):
                pass
        for path in (self._root / "work").iterdir():
            with suppress(BlockingIOError), _locked(path.with_suffix(".lock"), wait=False, remove=True):
                shutil.rmtree(path.with_suffix(""), ignore_errors=True)

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                with suppress(OSError), _locked(self._root / "fills" / "room"):
                    for entry in (self._root / "entries").iterdir():
                        self._evict(entry.name)
            raise Transient(
                "The worker's cache folder",
                f"cannot be used: {error.strerror or type(error).__name__}",
                "Check its disk and its permissions. [onnx_release] cache_max_bytes limits its size; 0 turns it off.",
            ) from error


def _fetch(request: CacheRequest, folder: Path) -> CacheEntry:
    """Fetch the folder. A fetch with other bytes than requested is repeated, because a network can damage them."""
    first = _filled(request, folder)
    if (refusal := _difference(request, first)) is None:
        return first
    shutil.rmtree(folder)
    second = _filled(request, folder)
    if _difference(request, second) is None:
        _log.warning("%s was damaged on its way, and is fetched again.", request.name)
        return second
    if first.sha256 == second.sha256:
        raise refusal
    action = "Airflow tries again. If that does not help, check the network."
    raise Transient(request.name, f"is damaged on its way: {refusal.problem}", action)


def _filled(request: CacheRequest, folder: Path) -> CacheEntry:
    folder.mkdir()
    request.fill(folder)
    files = describe_folder(folder)
    return CacheEntry(folder=folder, files=files, sha256=content_sha256(files), hit=False)


def _difference(request: CacheRequest, entry: CacheEntry) -> ArtifactRefused | None:
    """Return the refusal of a folder with other bytes than requested, or None."""
    try:
        if request.files is not None:
            require_same_files(request.name, entry.files, request.files)
    except ArtifactRefused as refusal:
        return refusal
    if request.sha256 in (None, entry.sha256):
        return None
    return ArtifactRefused(
        request.name,
        f"has other bytes than before: sha256 {entry.sha256}, not {request.sha256}",
        "Release the training run again from its export. If it happens twice, find the program that writes there.",
        code="changed_content",
    )


def _verified(folder: Path, sha256: str) -> CacheEntry | None:
    """Hash a cached folder. Return None if a byte differs."""
    try:
        files = describe_folder(folder)
    except (Refused, OSError):
        return None
    if content_sha256(files) != sha256:
        return None
    return CacheEntry(folder=folder, files=files, sha256=sha256, hit=True)


@contextmanager
def _locked(path: Path, *, shared: bool = False, wait: bool = True, remove: bool = False) -> Iterator[Path]:
    """Lock a file. The kernel releases the lock when the process ends, also when it is killed.

    Args:
        path: the lock file, which is made if it is missing.
        shared: take a shared lock, for readers.
        wait: wait for the lock.
        remove: delete the file at the end. A process that waited for it makes a new one.

    Raises:
        BlockingIOError: if another process has the lock and `wait` is False.
    """
    # Not `filelock`: its locks are exclusive, and several processes use one entry at the same time.
    operation = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(descriptor, operation)
            # The file may have been removed, or replaced, while this process waited.
            with suppress(FileNotFoundError):
                if os.path.samestat(path.stat(), os.fstat(descriptor)):
                    break
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
    try:
        yield path
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(descriptor)


def _text_sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read_sha256(path: Path) -> str | None:
    """Return the digest in a file of `keys`, or None if there is no digest."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return None
    return text if _SHA256.fullmatch(text) else None
