"""What a task moves between machines, counted where it is moved, so that a release can say what it cost."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from typing import Any

from onnx_release.errors import Refused

# The key of the XCom that each task of a release leaves its counts under.
MOVED_KEY = "moved"
# What crosses the network between a worker and a server. The store's own copies do not.
TRANSFERS = (
    "mlflow_down_bytes",
    "mlflow_up_bytes",
    "staging_up_bytes",
    "staging_down_bytes",
    "store_up_bytes",
    "store_down_bytes",
)
COPIED = "store_copied_bytes"
CACHED = ("cache_hits", "cache_misses", "cache_hit_bytes", "cache_miss_bytes")


class Moved(Counter[str]):
    """Counts by name: bytes by partner and direction, and what the worker's cache spared or did not."""

    def __str__(self) -> str:
        """Name what is not zero, for a line in the log."""
        return ", ".join(f"{name} {self[name]}" for name in (*TRANSFERS, COPIED, *CACHED) if self[name]) or "nothing"


def total(parts: Iterable[Any]) -> Moved:
    """Add up what tasks have left in XCom; a task that was skipped left None. `Refused` for what is no such count."""
    counted = Moved()
    for part in parts:
        found = json.loads(part) if isinstance(part, str) else part
        if found is None:
            continue
        if not isinstance(found, dict) or not all(type(number) is int for number in found.values()):
            raise Refused(
                f"XCom '{MOVED_KEY}'", f"is {found!r:.200}", "It holds whole numbers by name: clear the task before."
            )
        counted.update({str(name): number for name, number in found.items()})
    return counted
