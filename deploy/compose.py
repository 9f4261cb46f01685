"""docker-compose.yaml, brought up and down by whichever Compose there is: ``python -m deploy.compose up|down``.

Compose 2 has a `--wait` of its own; docker-compose 1.29, which Debian 12 still ships, has none, and needs to be told of
BuildKit. What is here works with both.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from deploy.env import read
from deploy.errors import DeployError

REPO = Path(__file__).resolve().parents[1]
# The image is built once, by this service's name; all others of ours run the same one.
BUILT = "mlflow"
WAIT_S = 600.0
POLL_S = 2.0
# A service that has ended so often is not going to come up.
RESTARTS_MAX = 3
LOG_LINES = "25"


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _can_build(docker: str) -> bool:
    """Tell whether this client builds with BuildKit: from version 23 on it needs the plugin buildx for that."""
    asked = subprocess.run([docker, "--version"], capture_output=True, text=True, check=False).stdout
    major = asked.removeprefix("Docker version ").split(".")[0]
    return _succeeds(docker, "buildx", "version") or (major.isdecimal() and int(major) < 23)


@cache
def docker() -> str:
    """Return the docker client: $DOCKER, else the first on the path that can build, else the first."""
    if given := os.environ.get("DOCKER"):
        return given
    folders = os.get_exec_path()
    found = [path for folder in folders if (path := shutil.which("docker", path=folder))]
    if not found:
        raise DeployError("There is no docker command. Install Docker Engine: https://docs.docker.com/engine/install/")
    return next(filter(_can_build, found), found[0])


@cache
def compose() -> tuple[str, ...]:
    """Return the words that call Compose: its plugin for docker, else the older program of its own."""
    if _succeeds(docker(), "compose", "version"):
        return (docker(), "compose")
    if old := shutil.which("docker-compose"):
        return (old,)
    raise DeployError(
        "There is no Docker Compose. Install the plugin (docker-compose-plugin), or docker-compose 1.29 or newer."
    )


def require_engine() -> None:
    """Raise `DeployError` when no engine answers, with what its client says."""
    asked = subprocess.run([docker(), "info"], capture_output=True, text=True, check=False)
    if asked.returncode != 0:
        raise DeployError(f"Docker Engine does not answer: {asked.stderr.strip():.500}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One deployment: its settings, and its name when it is not the folder's; `extra` comes before the settings.

    Without `file` it is docker-compose.yaml with the user's docker-compose.override.yaml, if there is one.
    """

    env_file: Path = REPO / ".env"
    name: str | None = None
    file: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        """Return the whole command line of Compose."""
        named = ["--project-name", self.name] if self.name else []
        files = ["--file", str(self.file)] if self.file else []
        return [*compose(), *files, "--env-file", str(self.env_file), *named, *arguments]

    def environment(self) -> dict[str, str]:
        """Return the caller's environment with what the older Compose needs to build with BuildKit."""
        path = os.pathsep.join([str(Path(docker()).parent), *os.get_exec_path()])
        return {**os.environ, "DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1", "PATH": path, **self.extra}

    def run(self, *arguments: str) -> None:
        """Run Compose in the foreground; raises `DeployError` when it fails."""
        done = subprocess.run(self.command(*arguments), env=self.environment(), cwd=REPO, check=False)
        if done.returncode != 0:
            raise DeployError(f"`{' '.join(arguments)}` ended with status {done.returncode}.")

    def output(self, *arguments: str) -> str:
        """Return what Compose prints; raises `DeployError` with its complaint when it fails."""
        command, env = self.command(*arguments), self.environment()
        done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DeployError(f"`{' '.join(arguments)}` ended with status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def build(self) -> None:
        """Build the image, unless the settings name one that somebody else has built."""
        if not {**read(self.env_file), **self.environment()}.get("AIRFLOW_ONNX_IMAGE"):
            self.run("build", BUILT)

    def up(self, *arguments: str, wait_s: float = WAIT_S) -> None:
        """Start every service and return once all are healthy."""
        self.run("up", "--detach", *arguments)
        self.wait(wait_s)

    def scale(self, service: str, count: int) -> None:
        """Have so many containers of a service and return once all are healthy; the other services are left alone."""
        # With what it depends on, Compose would also run again what is run once: airflow-init, under live workers.
        self.up("--no-deps", "--no-recreate", "--scale", f"{service}={count}", service)

    def wait(self, timeout_s: float = WAIT_S) -> None:
        """Return once every service is healthy; raises `DeployError` with the log of one that failed."""
        deadline = time.monotonic() + timeout_s
        while waiting := [one for one in self.containers() if not one.is_ready]:
            if failed := [one for one in waiting if one.has_failed]:
                raise DeployError(f"{failed[0]}. Its log ends with:\n{failed[0].log()}")
            if time.monotonic() > deadline:
                states = "; ".join(map(str, waiting))
                raise DeployError(f"Not healthy after {timeout_s:.0f} s: {states}.\n{waiting[0].log()}")
            time.sleep(POLL_S)

    def containers(self, *services: str) -> list[Container]:
        """Return the containers of these services, or of all, stopped ones too."""
        ids = self.output("ps", "--quiet", "--all", *services).split()
        return [Container(facts) for facts in inspect(*ids)]


@dataclass(frozen=True, slots=True)
class Container:
    """A container as `docker inspect` describes it."""

    facts: dict[str, Any]

    def __str__(self) -> str:
        state = self.facts["State"]
        health = state.get("Health", {}).get("Status", "")
        return f"{self.service} ({self.name}) is {state['Status']} {health}".rstrip()

    @property
    def id(self) -> str:
        """Its whole id; the first twelve digits are the host's name inside."""
        return str(self.facts["Id"])

    @property
    def name(self) -> str:
        """Its name in the engine."""
        return str(self.facts["Name"]).removeprefix("/")

    @property
    def service(self) -> str:
        """Its name in docker-compose.yaml."""
        return str(self.facts["Config"]["Labels"]["com.docker.compose.service"])

    @property
    def is_ready(self) -> bool:
        """Whether it is healthy, or has done what it was to do once."""
        state = self.facts["State"]
        if state["Status"] == "running":
            return bool(state.get("Health", {}).get("Status", "healthy") == "healthy")
        return self._is_once and state["Status"] == "exited" and state["ExitCode"] == 0

    @property
    def has_failed(self) -> bool:
        """Whether it is of no use to wait for it."""
        state = self.facts["State"]
        unhealthy = state.get("Health", {}).get("Status") == "unhealthy"
        ended = self._is_once and state["Status"] == "exited" and state["ExitCode"] != 0
        return bool(unhealthy or ended or self.facts["RestartCount"] >= RESTARTS_MAX)

    @property
    def _is_once(self) -> bool:
        return bool(self.facts["HostConfig"]["RestartPolicy"]["Name"] in ("no", ""))

    def log(self) -> str:
        """Return the last lines that it has printed."""
        command = [docker(), "logs", "--tail", LOG_LINES, self.id]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


def inspect(*ids: str) -> list[dict[str, Any]]:
    """Return what the engine knows of containers; those that are gone meanwhile are left out."""
    if not ids:
        return []
    done = subprocess.run([docker(), "inspect", *ids], capture_output=True, text=True, check=False)
    found: list[dict[str, Any]] = json.loads(done.stdout or "[]")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns 0 when every service is healthy, or stopped."""
    parser = argparse.ArgumentParser(prog="python -m deploy.compose", description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="of Airflow, each in a container")
    chosen = parser.parse_args(arguments)
    project = Project()
    try:
        require_engine()
        if chosen.command == "down":
            project.run("down", "--remove-orphans")
        else:
            project.build()
            project.up("--scale", f"airflow-worker={chosen.workers}")
            project.run("ps")
    except DeployError as error:
        print(f"{chosen.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
