"""Release of the memory of weights in a memory-mapped file after their use.

The kernel releases such pages itself when memory is short. Until then they count as memory of this process, also for
the limit of a container.
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
# Bits of an entry of /proc/self/pagemap (Linux, admin-guide/mm/pagemap): a private copy of a page is present or swapped
# out, and does not belong to the file.
_PRESENT, _SWAPPED, _OF_FILE = (np.uint64(1) << np.uint64(bit) for bit in (63, 62, 61))


@dataclass
class MappedPages:
    """The address ranges of the file mappings behind tensors. Without such mappings every method does nothing."""

    ranges: tuple[tuple[int, int], ...]
    _read_bytes: int = field(default=0, init=False)

    @classmethod
    def behind(cls, tensors: Iterable[torch.Tensor]) -> MappedPages:
        """Return the private file mappings that contain the values of these tensors."""
        addresses = [t.untyped_storage().data_ptr() for t in tensors if t.device.type == "cpu" and t.numel()]
        try:
            lines = Path("/proc/self/maps").read_text().splitlines()
        except OSError:
            return cls(())
        found = []
        for line in lines:
            # address perms offset dev inode path
            span, permissions, _, _, inode, *path = line.split(maxsplit=5)
            # Executable mappings are libraries.
            if permissions[2:] == "-p" and inode != "0" and path:
                low, high = (int(edge, 16) for edge in span.split("-"))
                if any(low <= at < high for at in addresses):
                    found.append((low, high))
        return cls(tuple(found))

    def read(self, size_bytes: int) -> None:
        """Add to the bytes read, and drop the pages above `MAPPED_PAGES_KEPT_BYTES`."""
        self._read_bytes += size_bytes
        if self._read_bytes > MAPPED_PAGES_KEPT_BYTES:
            self.drop()

    def drop(self) -> None:
        """Release the pages. The next access reads them from the file again.

        A mapping with a modified page is kept, because the modification exists only in memory.
        """
        self._read_bytes = 0
        for low, high in self.ranges:
            if not _modified(low, high):
                # A failure leaves the pages in memory, which costs memory only.
                _libc().madvise(ctypes.c_void_p(low), ctypes.c_size_t(high - low), _MADV_DONTNEED)


def pages_of(model: object) -> MappedPages:
    """Return the mapped pages of a module's weights; empty for any other object, such as a pt2 program."""
    if not isinstance(model, torch.nn.Module):
        return MappedPages(())
    return MappedPages.behind([*model.parameters(), *model.buffers()])


@contextmanager
def dropping_pages(model: object) -> Iterator[None]:
    """Release the pages of each layer's weights after its call, and all pages at the end."""
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
    """Release the pages of a model's weights at the end. Repeated calls would otherwise read them from disk each time.

    Use it for measurements, and `dropping_pages` for single calls.
    """
    pages = pages_of(model)
    try:
        yield
    finally:
        pages.drop()


def return_free_memory() -> None:
    """Return freed memory of the allocator to the system. Only glibc supports it; elsewhere nothing happens."""
    with suppress(AttributeError):
        _libc().malloc_trim(0)


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _modified(low: int, high: int) -> bool:
    """Return True when a page of the range is a private copy, or when the kernel does not show it."""
    first, count = low // mmap.PAGESIZE, (high - low) // mmap.PAGESIZE
    try:
        with Path("/proc/self/pagemap").open("rb", buffering=0) as file:
            entries = np.fromfile(file, dtype=np.uint64, count=count, offset=first * 8)
    except OSError:
        return True
    private = (entries & (_PRESENT | _SWAPPED) != 0) & (entries & _OF_FILE == 0)
    return len(entries) < count or bool(private.any())
