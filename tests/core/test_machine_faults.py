"""Faults of the worker during a step: a full disk, too little memory, a lost process. The model is never refused."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnx_release import run_step
from onnx_release.errors import Transient
from onnx_release.export.export_model import ExportStepOptions
from tests.core.models import TwoHeads, save

PICKLED: dict[str, Any] = {"serialization_format": "pickle"}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this account cannot mount a file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


class Wide(TwoHeads):
    """A model of 1 MB."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.zeros(512, 512))

    def forward(self, signal: torch.Tensor) -> Any:
        positions, spread = super().forward(signal)
        return positions + self.wide.sum(), spread


class Greedy(TwoHeads):
    """A model that allocates more memory than any worker has."""

    def forward(self, signal: torch.Tensor) -> Any:
        return super().forward(signal + torch.empty(1 << 48).sum())


class Fails(TwoHeads):
    """A model whose loading raises an error of a library."""

    def __init__(self, name: str) -> None:
        super().__init__()
        self.name = name

    def __setstate__(self, state: dict[str, Any]) -> None:
        raise {"memory": MemoryError(), "disk": OSError(5, "Input/output error")}[state["name"]]


@pytest.mark.parametrize("place", ["artifact", "scratch"])
def test_a_full_disk_during_the_export_is_the_workers(
    tmp_path: Path, small_disk: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    trained = save(Wide().eval(), tmp_path / "trained")
    out = (small_disk if place == "artifact" else tmp_path) / "out"
    if place == "scratch":
        monkeypatch.setattr("tempfile.tempdir", str(small_disk))
        (small_disk / "filler").write_bytes(bytes(250_000))
    with pytest.raises(Transient, match="no space left on a disk"):
        run_step.export(trained, out, ExportStepOptions(device="cpu"))
    assert [path.name for path in small_disk.iterdir()] == (["filler"] if place == "scratch" else [])


def test_too_little_memory_for_the_model_is_the_workers(tmp_path: Path) -> None:
    trained = save(TwoHeads().eval(), tmp_path / "trained", **PICKLED)
    torch.save(Greedy().eval(), trained / "data" / "model.pth")
    with pytest.raises(Transient, match="too little memory"):
        run_step.export(trained, tmp_path / "out", ExportStepOptions(device="cpu", allow_pickle=True))


@pytest.mark.parametrize("name", ["memory", "disk"])
def test_a_fault_while_a_pickle_is_loaded_is_the_workers(tmp_path: Path, name: str) -> None:
    trained = save(Fails(name), tmp_path / "trained", **PICKLED)
    with pytest.raises(Transient, match="The worker"):
        run_step.export(trained, tmp_path / "out", ExportStepOptions(device="cpu", allow_pickle=True))
