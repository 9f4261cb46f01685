"""Search for planted secrets: each form of one is found."""

from __future__ import annotations

import base64
import subprocess
import time
from pathlib import Path

import pytest

from soak.canaries import Canaries

SECRET = "canary/+with signs-4711"


def test_each_form_of_a_secret_is_found(tmp_path: Path) -> None:
    canaries = Canaries({"password": SECRET})
    header = base64.b64encode(f"user:{SECRET}".encode()).decode()
    for text in (SECRET, "https://x?p=canary%2F%2Bwith%20signs-4711", header, SECRET.encode().hex()):
        assert list(canaries.in_text("log", f"before {text} after")) == ["log: password"]
    assert list(canaries.in_text("log", "canary")) == []
    (tmp_path / "large").write_bytes(b"x" * (2**22 - 5) + SECRET.encode() + b"y" * 2**22)
    assert list(canaries.in_folders(tmp_path)) == [f"{tmp_path / 'large'}: password"]
    with pytest.raises(ValueError, match="password"):
        Canaries({"password": "short"})


def test_an_environment_with_a_secret_is_found() -> None:
    canaries = Canaries({"password": SECRET})
    with subprocess.Popen(["sleep", "60"], env={"P": SECRET}) as process:
        # The kernel fills in the environment after it has closed the pipe for which Popen waits.
        while not Path(f"/proc/{process.pid}/environ").read_bytes():
            time.sleep(0.01)
        assert list(canaries.in_environments([process.pid])) == [f"environ of process {process.pid}: password"]
        process.kill()
