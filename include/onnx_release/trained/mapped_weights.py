"""Weights that lie in a memory-mapped file: their pages come when they are read, and go when that is over.

The kernel would let go of them when it needs the room; until then they count as this process's memory, for the limit of
a container and for whoever looks at it.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from onnx_release.limits import MAPPED_PAGES_KEPT_BYTES

_MADV_DONTNEED = 4
# Of an entry of /proc/self/pagemap (Linux, admin-guide/mm/pagemap): a page that is this process's own copy is present
# or swapped out, and not the file's.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1) << np.uint64(bit) for bit in (63, 62, 61))


@dataclass
class MappedPages:
    """The file mappings that tensors lie in; empty, and doing nothing, where there are none."""

    ranges: tuple[tuple[int, int], ...]
    _read_bytes: int = field(default=0, init=False)

    @classmethod
    def behind(cls, tensors: Iterable[torch.Tensor]) -> MappedPages:
        """Find the mappings of files, private and of whole pages, that hold the values of these tensors."""
        addresses = [t.untyped_storage().data_ptr() for t in tensors if t.device.type == "cpu" and t.numel()]
        found = [(low, high) for low, high in _private_files() if any(low <= at < high for at in addresses)]
        return cls(tuple(found))

    def read(self, size_bytes: int) -> None:
        """Count what was read, and drop the pages when it is more than `MAPPED_PAGES_KEPT_BYTES`."""
        self._read_bytes += size_bytes
        if self._read_bytes > MAPPED_PAGES_KEPT_BYTES:
            self.drop()

    def drop(self) -> None:
        """Let go of the pages; they are read from the file again when they are needed.

        A mapping of which a page was written to is left alone: what was written is in this process's memory only.
        """
        self._read_bytes = 0
        for low, high in self.ranges:
            if not _written_to(low, high):
                # What it refuses stays in memory, which is all that was to be gained.
                _libc().madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), _MADV_DONTNEED)


def pages_of(model: object) -> MappedPages:
    """Return the mapped pages that a module's weights lie in; what is no module, such as a pt2 program, has none."""
    if not isinstance(model, torch.nn.Module):
        return MappedPages(())
    return MappedPages.behind([*model.parameters(), *model.buffers()])


@contextmanager
def dropping_pages(model: object) -> Iterator[None]:
    """Let go of the pages of each layer's weights soon after it ran, as long as the context lives, and of all after."""
    pages = pages_of(model)
    if not pages.ranges or not isinstance(model, torch.nn.Module):
        yield
        return
    hooks = []
    for module in model.modules():
        own = sum(tensor.nbytes for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)))
        if own:
            hooks.append(module.register_forward_hook(lambda *_, own=own: pages.read(own)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        pages.drop()


@contextmanager
def pages_dropped_after(model: object) -> Iterator[None]:
    """Let go of the pages of a model's weights at the end alone: what runs often would fetch them anew each time."""
    pages = pages_of(model)
    try:
        yield
    finally:
        pages.drop()


def return_free_memory() -> None:
    """Give the system back what this process has freed and its allocator keeps; elsewhere than on glibc, do nothing."""
    with suppress(AttributeError):
        _libc().malloc_trim(0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _private_files() -> Iterator[tuple[int, int]]:
    """Yield the address ranges of this process's private, not executable mappings of files."""
    try:
        lines = Path("/proc/self/maps").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        # address perms offset dev inode path
        span, permissions, _, _, inode, *path = line.split(maxsplit=5)
        if permissions[2:] == "-p" and inode != "0" and path:
            low, high = (int(edge, 16) for edge in span.split("-"))
            yield low, high


def _written_to(low: int, high: int) -> bool:
    """Say whether a page of the range is a copy of this process's own; True where that cannot be told."""
    first, count = low // mmap.PAGESIZE, (high - low) // mmap.PAGESIZE
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            entries = np.fromfile(file, dtype=np.uint64, count=count, offset=first * 8)
    except OSError:
        return True
    own = (entries & (_PRESENT | _SWAPPED) != 0) & (entries & _OF_FILE == 0)
    return len(entries) < count or bool(own.any())
