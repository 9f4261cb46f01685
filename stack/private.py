"""Files of the state folder that must not be read by others, half written, or kept half made."""

from __future__ import annotations

import os
from pathlib import Path


def write_private(path: Path, text: str) -> None:
    """Write `text` with mode 600; a reader sees the old file or the new one, nothing between."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    # The mode is given to open(2): a chmod afterwards would leave a moment in which others can read.
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(text)
    temporary.replace(path)


def remove_database(path: Path) -> None:
    """Remove a SQLite file with its journals: one whose tables were being made when it was interrupted."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
