"""Folders fetched from afar and kept for whoever asks next: addressed by content, bounded, shared by processes.

The folder of a cache must lie on a local disk, as its locks are `flock`'s. Nothing in it is believed: an entry is
hashed as a whole before it is handed out, and its name is its hash. Only `keys`, which say what content a name stood
for, could mislead; so a caller who knows the content's hash from elsewhere gives that, and no key.

    entries/<sha256>/   a whole entry: it appears and goes by a rename
    leases/<sha256>     locked shared while an entry is in use, which keeps it; its time is that of the last use
    keys/<sha256>       the hash of a key's content
    fills/              one lock for each fill that goes on, and `room`, for whoever evicts or publishes
    work/               folders being filled, used without being kept, or on their way out; each locked by its owner
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
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from onnx_release.artifact.digests import Digests, content_sha256, describe_folder
from onnx_release.errors import Refused, Transient
from onnx_release.records import FileDigest

_log = logging.getLogger(__name__)
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What is asked of a cache: `fill` fetches it into an empty folder.

    `sha256` is the content's (`artifact.content_sha256`), where that is known. `key` names something that never
    changes, for a caller that does not know its content yet; empty: it is fetched anew. `name` is for messages, and
    `digests` are those that `fill` takes on its way.
    """

    name: str
    fill: Callable[[Path], None]
    sha256: str = ""
    key: str = ""
    digests: Digests = field(default_factory=Digests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """A folder that holds what was wanted, for as long as the block runs; to be read only. `hit`: not fetched.

    `stamps` are the files' own, by path (see `artifact.Digests`).
    """

    folder: Path
    files: tuple[FileDigest, ...]
    stamps: dict[str, tuple[int, ...]]
    sha256: str
    hit: bool

    @property
    def size_bytes(self) -> int:
        """The bytes of all its files."""
        return sum(file.size_bytes for file in self.files)


class Cache:
    """Entries in `folder`, of `max_bytes` together; what is being filled, or too large to be kept, comes on top.

    With `max_bytes` of 0 nothing is kept, and the folder is not touched.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._root = folder
        self._max_bytes = max_bytes

    @contextmanager
    def entry(self, wanted: Wanted) -> Iterator[Entry]:
        """Yield what is wanted, from the cache or fetched; of those who want the same at once, one fetches.

        :raises Refused: when what was fetched is not of the hash that was asked for.
        :raises Transient: when the disk refuses (full, no rights); a full disk costs every entry that is not in use.
        """
        with ExitStack() as held:
            if self._max_bytes <= 0:
                folder = held.enter_context(tempfile.TemporaryDirectory(prefix="onnx-release-"))
                found = _fetched(wanted, Path(folder, "entry"))
            else:
                with self._disk():
                    self._set_up()
                    found = self._obtained(held, wanted)
            yield found

    def _obtained(self, held: ExitStack, wanted: Wanted) -> Entry:
        # Without a hash or a key nobody else can want the same.
        name = wanted.sha256 or _digest(wanted.key or secrets.token_hex(16))
        with _locked(self._root / "fills" / name, remove=True):
            sha256 = wanted.sha256 or self._content_of(wanted.key)
            found = self._hit(held, sha256, wanted) if sha256 else None
            return found or self._miss(held, wanted)

    def _hit(self, held: ExitStack, sha256: str, wanted: Wanted) -> Entry | None:
        with ExitStack() as tried:
            lease = tried.enter_context(_locked(self._lease(sha256), shared=True))
            folder = self._entry(sha256)
            if not folder.is_dir():
                return None
            if (sound := _sound(folder, sha256)) is None:
                _log.warning("The cached copy of %s in %s is damaged; it is fetched again.", wanted.name, folder)
                return None
            os.utime(lease)
            held.push(tried.pop_all())
        return sound

    def _miss(self, held: ExitStack, wanted: Wanted) -> Entry:
        work = held.enter_context(self._work_folder())
        entry = _fetched(wanted, work / "entry")
        # Leased before it can be seen, so that nobody evicts it in between.
        lease = held.enter_context(_locked(self._lease(entry.sha256), shared=True))
        os.utime(lease)
        with _locked(self._root / "fills" / "room"):
            kept = self._published(entry)
        if kept is None:
            _log.info("%s, %d bytes, finds no room in the cache and is not kept.", wanted.name, entry.size_bytes)
            return entry
        if wanted.key:
            _write(self._root / "keys" / _digest(wanted.key), entry.sha256)
        # Moved, a file keeps its stamp.
        return replace(entry, folder=kept)

    def _published(self, entry: Entry) -> Path | None:
        """Move a filled folder to its place, or return None where no room can be made. The caller holds `room`."""
        target = self._entry(entry.sha256)
        if target.is_dir() and _sound(target, entry.sha256) is not None:
            return target
        if not self._make_room(entry.size_bytes, entry.sha256):
            return None
        # Whoever uses a damaged one finds sound files in its place.
        self._discard(target)
        entry.folder.rename(target)
        return target

    def _make_room(self, size_bytes: int, sha256: str) -> bool:
        """Evict the entries that were not used for longest until the size fits; those in use stay."""
        if size_bytes > self._max_bytes:
            return False
        sizes = {path.name: _size(path) for path in (self._root / "entries").iterdir() if path.name != sha256}
        total = sum(sizes.values())
        for name in sorted(sizes, key=lambda one: _last_use(self._lease(one))):
            if total + size_bytes <= self._max_bytes:
                break
            if self._evicted(name):
                total -= sizes[name]
        return total + size_bytes <= self._max_bytes

    def _evicted(self, name: str) -> bool:
        with ExitStack() as held:
            try:
                held.enter_context(_locked(self._lease(name), wait=False, remove=True))
            except BlockingIOError:
                return False
            self._discard(self._entry(name))
        for key in (self._root / "keys").iterdir():
            if _read(key) == name:
                key.unlink(missing_ok=True)
        return True

    def _discard(self, folder: Path) -> None:
        """Remove an entry: it goes out of sight as a whole, and then its files."""
        if folder.is_dir():
            with self._work_folder() as work:
                folder.rename(work / "entry")

    def _content_of(self, key: str) -> str:
        return _read(self._root / "keys" / _digest(key)) if key else ""

    def _entry(self, sha256: str) -> Path:
        return self._root / "entries" / sha256

    def _lease(self, sha256: str) -> Path:
        return self._root / "leases" / sha256

    @contextmanager
    def _work_folder(self) -> Iterator[Path]:
        """Yield a folder of this process; the lock tells others that its owner lives."""
        folder = self._root / "work" / secrets.token_hex(8)
        with _locked(folder.with_suffix(".lock"), remove=True):
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    def _set_up(self) -> None:
        """Make the folders, and sweep what a process that was killed left behind."""
        self._root.parent.mkdir(parents=True, exist_ok=True)
        for folder in (self._root, *(self._root / name for name in ("entries", "leases", "keys", "fills", "work"))):
            folder.mkdir(exist_ok=True, mode=0o700)
        leases = [path for path in (self._root / "leases").iterdir() if not self._entry(path.name).is_dir()]
        for unused in [*leases, *(path for path in (self._root / "fills").iterdir() if path.name != "room")]:
            with suppress(BlockingIOError), _locked(unused, wait=False, remove=True):
                pass
        for left in (self._root / "work").iterdir():
            with suppress(BlockingIOError), _locked(left.with_suffix(".lock"), wait=False, remove=True):
                shutil.rmtree(left.with_suffix(""), ignore_errors=True)

    @contextmanager
    def _disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                with suppress(OSError):
                    self._clear()
            raise Transient(
                f"cache folder {self._root}",
                f"cannot be used: {error}",
                "Check its disk and its rights; [onnx_release] cache_max_bytes bounds it, and 0 turns it off.",
            ) from error

    def _clear(self) -> None:
        with _locked(self._root / "fills" / "room"):
            for entry in (self._root / "entries").iterdir():
                self._evicted(entry.name)


def _fetched(wanted: Wanted, folder: Path) -> Entry:
    folder.mkdir()
    wanted.fill(folder)
    files = describe_folder(folder, wanted.digests)
    found = content_sha256(files)
    if wanted.sha256 not in ("", found):
        raise Refused(
            wanted.name,
            f"has other bytes than before: sha256 {found}, not {wanted.sha256}",
            "Release the training run again from its export; if it happens twice, look for what writes there.",
        )
    return Entry(folder=folder, files=files, stamps=wanted.digests.stamps(folder, files), sha256=found, hit=False)


def _sound(folder: Path, sha256: str) -> Entry | None:
    """Return the entry in a folder whose every byte is as it was, else None."""
    digests = Digests()
    try:
        files = describe_folder(folder, digests)
        stamps = digests.stamps(folder, files)
    except (Refused, OSError):
        return None
    if content_sha256(files) != sha256:
        return None
    return Entry(folder=folder, files=files, stamps=stamps, sha256=sha256, hit=True)


@contextmanager
def _locked(path: Path, *, shared: bool = False, wait: bool = True, remove: bool = False) -> Iterator[Path]:
    """Hold a lock file, which the kernel lets go of when the process ends, however that does.

    :param remove: delete it at the end; whoever waited for it then makes a new one.
    :raises BlockingIOError: when another holds it and `wait` is False.
    """
    how = (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB)
    while True:
        opened = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(opened, how)
            if _is_there(path, opened):
                break
        except BaseException:
            os.close(opened)
            raise
        os.close(opened)
    try:
        yield path
    finally:
        if remove:
            path.unlink(missing_ok=True)
        os.close(opened)


def _is_there(path: Path, opened: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(opened))
    except FileNotFoundError:
        return False


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


def _last_use(lease: Path) -> float:
    return lease.stat().st_mtime if lease.exists() else 0.0


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _read(path: Path) -> str:
    """Return a digest that `_write` wrote, or an empty string."""
    try:
        text = path.read_text(errors="replace")
    except FileNotFoundError:
        return ""
    return text if _SHA256.fullmatch(text) else ""


def _write(path: Path, text: str) -> None:
    half_done = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    half_done.write_text(text)
    half_done.replace(path)
