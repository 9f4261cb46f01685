"""`make env`: every secret once, kept, private, and refused when it cannot work."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from deploy.compose import REPO
from deploy.env import SECRETS, complete, main, read
from deploy.errors import DeployError


def test_it_makes_every_secret_that_the_compose_file_asks_for(tmp_path: Path) -> None:
    asked = set(re.findall(r"\$\{(\w+):\?", (REPO / "docker-compose.yaml").read_text()))
    assert asked == set(complete(tmp_path / ".env")) == set(SECRETS)


def test_the_secrets_are_long_different_and_private(tmp_path: Path) -> None:
    complete(tmp_path / ".env")
    values = list(read(tmp_path / ".env").values())
    assert len(set(values)) == len(values)
    assert min(map(len, values)) >= 20
    assert (tmp_path / ".env").stat().st_mode & 0o777 == 0o600
    Fernet(read(tmp_path / ".env")["AIRFLOW_FERNET_KEY"])


def test_what_is_there_stays_and_what_is_missing_comes(tmp_path: Path) -> None:
    path = tmp_path / ".env"
    path.write_text(
        "# mine\nREDIS_PASSWORD='my-own-password'\nAIRFLOW_PORT=8081\nPOSTGRES_PASSWORD=\nWORKER_MEMORY=8g\n"
    )
    path.chmod(0o644)
    added = complete(path)
    assert set(added) == set(SECRETS) - {"REDIS_PASSWORD"}
    text = path.read_text()
    assert text.startswith("# mine\nREDIS_PASSWORD='my-own-password'\nAIRFLOW_PORT=8081\nWORKER_MEMORY=8g\n")
    assert text.count("POSTGRES_PASSWORD=") == 1
    assert path.stat().st_mode & 0o777 == 0o600
    assert complete(path) == []
    assert path.read_text() == text


@pytest.mark.parametrize("password", ["p@ss/word", "short", "with space", "ends#here"])
def test_a_password_that_breaks_an_address_is_refused(tmp_path: Path, password: str) -> None:
    path = tmp_path / ".env"
    path.write_text(f"REDIS_PASSWORD={password}\n")
    with pytest.raises(DeployError, match="REDIS_PASSWORD"):
        complete(path)
    assert path.read_text() == f"REDIS_PASSWORD={password}\n"


def test_the_command_says_what_it_did(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / ".env"
    assert main([str(path)]) == 0
    assert main([str(path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert f"{len(SECRETS)} secrets added" in first
    assert "every secret already" in second
    assert not any(value in first for value in read(path).values())


def test_it_needs_no_package(tmp_path: Path) -> None:
    """`make env` runs before anything is installed: -I -S hides the virtual environment."""
    code = f"import sys; sys.path.insert(0, {str(REPO)!r}); from deploy.env import main; sys.exit(main(['.env']))"
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
