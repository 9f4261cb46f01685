"""Temporary folders: removed at their end, and those of killed processes by the next process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_release import scratch
from onnx_release.scratch import remove_abandoned, scratch_folder

CODE = """
import sys, time
from onnx_release.scratch import scratch_folder
with scratch_folder() as folder:
    (folder / "file").write_text("x")
    print(folder, flush=True)
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def process_with_folder(temporary: Path) -> tuple[subprocess.Popen[str], Path]:
    env = os.environ | {"TMPDIR": str(temporary), "PYTHONPATH": str(Path(scratch.__file__).parents[1])}
    process = subprocess.Popen([sys.executable, "-c", CODE], env=env, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_process_is_removed_by_the_next_one_and_a_used_one_stays(temporary: Path) -> None:
    process, folder = process_with_folder(temporary)
    with process:
        with scratch_folder() as own:
            assert (folder / "file").exists(), "its process runs"
            assert own.stat().st_mode & 0o077 == 0 or own.parent.stat().st_mode & 0o077 == 0
        process.send_signal(signal.SIGKILL)
    assert folder.exists()
    with scratch_folder() as own:
        assert not folder.parent.exists()
        assert remove_abandoned() == 0
        assert own.is_dir(), "this process has it"
    assert list(temporary.iterdir()) == []


def test_folders_of_other_programs_accounts_and_hosts_stay(temporary: Path) -> None:
    foreign = temporary / f"{scratch.PREFIX}of-another-program"
    (foreign / "files").mkdir(parents=True)
    elsewhere = temporary / f"{scratch.PREFIX}of-another-host"
    elsewhere.mkdir()
    (elsewhere / "owner.lock").write_text("another-host")
    link = temporary / f"{scratch.PREFIX}link"
    target = temporary / "target"
    target.mkdir()
    (target / "owner.lock").write_text(scratch.platform.node())
    link.symlink_to(target)
    assert remove_abandoned() == 0
    assert {path.name for path in temporary.iterdir()} == {foreign.name, elsewhere.name, link.name, target.name}


def test_all_temporary_folders_are_made_by_this_module() -> None:
    root = Path(scratch.__file__).parents[2]
    makers = ("mkdtemp", "TemporaryDirectory", "mkstemp", "NamedTemporaryFile")
    found = [
        path.name
        for folder in ("include/onnx_release", "plugins/airflow_onnx")
        for path in (root / folder).rglob("*.py")
        for line in path.read_text().splitlines()
        if any(maker in line for maker in makers) and "dir=" not in line
    ]
    assert found == ["scratch.py"]
