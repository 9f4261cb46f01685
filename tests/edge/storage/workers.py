"""Workers that share no disk, and the bytes that their tasks move."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path

import pytest

BUCKET = "heimdall-models"
CACHE = "AIRFLOW__ONNX_RELEASE__CACHE_FOLDER"


class Workers:
    """Separate workers: each has its own cache and temporary folder."""

    def __init__(self, folder: Path, patch: pytest.MonkeyPatch) -> None:
        self._folder, self._patch = folder, patch

    def go(self, name: str) -> Path:
        """Run the next tasks on this worker. A worker that was used before still has its disk."""
        here = self._folder / name
        (here / "tmp").mkdir(parents=True, exist_ok=True)
        self._patch.setenv(CACHE, str(here / "cache"))
        self._patch.setattr(tempfile, "tempdir", str(here / "tmp"))
        return here


class Transfers(Counter[str]):
    """Bytes by kind of transfer: ``put``, ``copy``, ``fetch`` and ``read`` in the store, ``download`` from MLflow."""

    def take(self) -> dict[str, int]:
        """Return the counts and start again from zero."""
        taken = dict(self)
        self.clear()
        return taken
