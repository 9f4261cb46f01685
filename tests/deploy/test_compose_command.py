"""The choice of docker and Compose, and the errors without them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.compose import Project, compose, docker, main, require_engine
from deploy.errors import DeployError

# Answers of the clients: 28 cannot build without the plugin buildx, 20 includes BuildKit.
WITHOUT_BUILDX = 'case "$*" in --version) echo "Docker version 28.2.2, build e6534b4";; *) exit 1;; esac'
OLD = 'case "$*" in --version) echo "Docker version 20.10.24+dfsg1, build 297e128";; *) exit 1;; esac'
COMPLETE = 'case "$*" in --version) echo "Docker version 28.2.2, build e6534b4";; *) exit 0;; esac'


@pytest.fixture(autouse=True)
def fresh(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("DOCKER", raising=False)
    docker.cache_clear()
    compose.cache_clear()
    yield
    docker.cache_clear()
    compose.cache_clear()


def program(folder: Path, name: str, script: str) -> str:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def on_path(monkeypatch: pytest.MonkeyPatch, *folders: Path) -> None:
    monkeypatch.setenv("PATH", ":".join(map(str, folders)))


def test_a_client_that_cannot_build_is_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = program(tmp_path / "first", "docker", WITHOUT_BUILDX)
    second = program(tmp_path / "second", "docker", OLD)
    on_path(monkeypatch, tmp_path / "first", tmp_path / "second")
    assert docker() == second
    docker.cache_clear()
    on_path(monkeypatch, tmp_path / "first")
    assert docker() == first, "the image may exist already"
    docker.cache_clear()
    monkeypatch.setenv("DOCKER", "/opt/docker")
    assert docker() == "/opt/docker"


def test_the_plugin_is_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path / "new", "docker", COMPLETE)
    program(tmp_path / "old", "docker", OLD)
    older = program(tmp_path / "old", "docker-compose", "exit 0")
    on_path(monkeypatch, tmp_path / "old")
    assert compose() == (older,)
    docker.cache_clear()
    compose.cache_clear()
    on_path(monkeypatch, tmp_path / "new", tmp_path / "old")
    assert compose() == (str(tmp_path / "new" / "docker"), "compose")


def test_a_missing_program_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    on_path(monkeypatch, tmp_path)
    assert main(["up"]) == 1
    assert "There is no docker command" in capsys.readouterr().err
    program(tmp_path, "docker", 'echo "cannot connect to the daemon" >&2; exit 1')
    with pytest.raises(DeployError, match="does not answer: cannot connect to the daemon"):
        require_engine()
    with pytest.raises(DeployError, match="There is no Docker Compose"):
        compose()


def test_a_failed_command_shows_the_text_of_compose(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "docker", OLD)
    program(tmp_path, "docker-compose", 'echo "run make env" >&2; exit 1')
    on_path(monkeypatch, tmp_path)
    with pytest.raises(DeployError, match="`ps` ended with status 1: run make env"):
        Project(env_file=tmp_path / ".env").output("ps")


def test_more_workers_change_no_other_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "docker", OLD)
    program(tmp_path, "docker-compose", f'echo "$*" >> {tmp_path}/calls')
    on_path(monkeypatch, tmp_path)
    Project(env_file=tmp_path / ".env").scale("airflow-worker", 3)
    up, _ = (tmp_path / "calls").read_text().splitlines()
    assert up.endswith(" up --detach --no-deps --no-recreate --scale airflow-worker=3 airflow-worker")


def test_compose_v2_waits_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(tmp_path, "docker", f'echo "$*" >> {tmp_path}/calls; {COMPLETE}')
    on_path(monkeypatch, tmp_path, Path("/usr/bin"), Path("/bin"))
    Project(env_file=tmp_path / ".env").up("--scale", "airflow-worker=2")
    last = (tmp_path / "calls").read_text().splitlines()[-1]
    assert last.endswith(" up --detach --wait --wait-timeout 600 --scale airflow-worker=2")
