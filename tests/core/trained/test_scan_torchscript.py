"""Scan of TorchScript archives before torch opens them."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from onnx_release.trained.scan_torchscript import is_script_archive, refuse_foreign_operators
from tests.refusals import refused


class Plain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.LSTM(3, 2, batch_first=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.inner(x)
        if bool(y.sum() > 0):
            y = torch.softmax(y, dim=-1)
        return y


class Reads(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.from_file("/etc/passwd", size=1)


@pytest.fixture
def plain(tmp_path: Path) -> Path:
    torch.jit.save(torch.jit.script(Plain()), tmp_path / "plain.pt")
    return tmp_path / "plain.pt"


def _with_code(source: Path, target: Path, code: bytes, name: str = "plain/code/__torch__/more.py") -> Path:
    with zipfile.ZipFile(source) as source_archive, zipfile.ZipFile(target, "w") as after:
        for item in source_archive.namelist():
            after.writestr(item, source_archive.read(item))
        after.writestr(name, code)
    return target


def test_control_flow_and_recurrence_pass(plain: Path) -> None:
    assert is_script_archive(plain)
    refuse_foreign_operators(plain)


def test_a_pickled_module_is_not_a_script(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "m.pth")
    (tmp_path / "other").write_bytes(b"no archive")
    assert not is_script_archive(tmp_path / "m.pth")
    assert not is_script_archive(tmp_path / "other")


def test_an_operator_that_reads_files_is_refused(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(Reads()), tmp_path / "r.pt")
    with refused("foreign_operators", "torch.from_file"):
        refuse_foreign_operators(tmp_path / "r.pt")


@pytest.mark.parametrize(
    ("code", "part"),
    [
        (b"def f(x):\n  return ops.fbgemm_gpu.load(x)\n", "ops.fbgemm_gpu.load"),
        (b"def f(x):\n  return ops.aten.save(x, 'p')\n", "ops.aten.save"),
        (b"a : __torch__.torch.classes.dist_rpc.Shell\n", "class of torch.classes.dist_rpc"),
        (b"def f(:\n", "unreadable code"),
    ],
)
def test_operators_and_classes_of_libraries_are_refused(plain: Path, tmp_path: Path, code: bytes, part: str) -> None:
    with refused("foreign_operators", part):
        refuse_foreign_operators(_with_code(plain, tmp_path / "changed.pt", code))


def test_a_class_in_a_pickle_is_refused(plain: Path, tmp_path: Path) -> None:
    pickle = b"c__torch__.torch.classes.mine\nRunner\n."
    changed = _with_code(plain, tmp_path / "changed.pt", pickle, "plain/extra.pkl")
    with refused("foreign_operators", "class of torch.classes.mine"):
        refuse_foreign_operators(changed)
