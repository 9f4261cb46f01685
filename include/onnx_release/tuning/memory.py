"""How much memory is left for sessions that must be alive at the same time."""

from __future__ import annotations

from pathlib import Path

# A session holds the weights as they were read and a packed copy of them; activations come on top.
SESSION_PER_MODEL_BYTE = 2.2


def available_bytes(root: Path = Path("/")) -> int | None:
    """Return the memory that this process may still take, or None where the system does not tell.

    The least of what the host has and what the control group's limit leaves (cgroup v2).
    """
    left = [
        found for found in (_of_host(root / "proc/meminfo"), _of_group(root / "sys/fs/cgroup")) if found is not None
    ]
    return min(left, default=None)


def _of_host(meminfo: Path) -> int | None:
    try:
        lines = meminfo.read_text().splitlines()
    except OSError:
        return None
    found = (line.split()[1] for line in lines if line.startswith("MemAvailable:"))
    return next((int(kilobytes) * 1024 for kilobytes in found), None)


def _of_group(folder: Path) -> int | None:
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        # Pages of files count as used, and the kernel gives them back when asked.
        stat = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return None if limit == "max" else int(limit) - int(used) + int(stat.get("inactive_file", 0))
    except (OSError, ValueError):
        return None


def session_bytes(model_bytes: int) -> int:
    """Return about how much memory a session on a model of this size takes."""
    return int(model_bytes * SESSION_PER_MODEL_BYTE)
