"""Memory for ONNX Runtime sessions that are open at the same time."""

from __future__ import annotations

from pathlib import Path

# A session has the weights as they were read and a packed copy of them; activations are extra.
SESSION_PER_MODEL_BYTE = 2.2


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process can still use, or None where the system does not report it.

    The smaller of the host's available memory and the rest of the control group's limit (cgroup v2).

    Args:
        root: the folder of ``proc`` and ``sys``.
    """
    known = [
        size for size in (_host_bytes(root / "proc/meminfo"), _group_bytes(root / "sys/fs/cgroup")) if size is not None
    ]
    return min(known, default=None)


def _host_bytes(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    kilobytes = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(size) * 1024 for size in kilobytes), None)


def _group_bytes(folder: Path) -> int | None:
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        # Cached pages of files count as used, and the kernel frees them on demand.
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - int(used) + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def session_bytes(model_bytes: int) -> int:
    """Estimate the memory of a session from the size of its model."""
    return int(model_bytes * SESSION_PER_MODEL_BYTE)
