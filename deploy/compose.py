"""Start and stop of docker-compose.yaml: ``python -m deploy.compose up|down``.

Compose v2 waits for healthy services itself (`up --wait`). docker-compose 1.29, which Debian 12 has, does not; `_await`
polls for it.
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
# The service that builds the image; all other services of ours use the same one.
BUILT = "mlflow"
WAIT_S = 600
POLL_S = 2.0
LOG_LINES = "25"


def _succeeds(*command: str) -> bool:
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def _can_build(docker: str) -> bool:
    """Return True when this client builds with BuildKit. From version 23 on it needs the plugin buildx."""
    version = subprocess.run([docker, "--version"], capture_output=True, text=True, check=False).stdout
    major = version.removeprefix("Docker version ").split(".")[0]
    return _succeeds(docker, "buildx", "version") or (major.isdecimal() and int(major) < 23)


@cache
def docker() -> str:
    """Return the docker client: $DOCKER, else the first one on the path that can build, else the first."""
    if configured := os.environ.get("DOCKER"):
        return configured
    folders = os.get_exec_path()
    found = [path for folder in folders if (path := shutil.which("docker", path=folder))]
    if not found:
        raise DeployError("There is no docker command. Install Docker Engine: https://docs.docker.com/engine/install/")
    return next(filter(_can_build, found), found[0])


@cache
def compose() -> tuple[str, ...]:
    """Return the command of Compose: the plugin of docker (v2), else docker-compose (1.29)."""
    if _succeeds(docker(), "compose", "version"):
        return (docker(), "compose")
    if old := shutil.which("docker-compose"):
        return (old,)
    raise DeployError(
        "There is no Docker Compose. Install the plugin (docker-compose-plugin), or docker-compose 1.29 or newer."
    )


def require_engine() -> None:
    """Raise `DeployError` with the client's message when no engine answers."""
    info = subprocess.run([docker(), "info"], capture_output=True, text=True, check=False)
    if info.returncode != 0:
        raise DeployError(f"Docker Engine does not answer: {info.stderr.strip():.500}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Project:
    """One deployment.

    :param env_file: its settings and secrets.
    :param name: its project name; None for the folder's name.
    :param file: the compose file; None for docker-compose.yaml and the user's docker-compose.override.yaml.
    :param extra: environment variables that take precedence over the settings.
    """

    env_file: Path = REPO / ".env"
    name: str | None = None
    file: Path | None = None
    extra: dict[str, str] = field(default_factory=dict)

    def command(self, *arguments: str) -> list[str]:
        """Return the whole command line of Compose."""
        name = ["--project-name", self.name] if self.name else []
        files = ["--file", str(self.file)] if self.file else []
        return [*compose(), *files, "--env-file", str(self.env_file), *name, *arguments]

    def environment(self) -> dict[str, str]:
        """Return the caller's environment, plus the variables that make docker-compose 1.29 build with BuildKit."""
        path = os.pathsep.join([str(Path(docker()).parent), *os.get_exec_path()])
        return {**os.environ, "DOCKER_BUILDKIT": "1", "COMPOSE_DOCKER_CLI_BUILD": "1", "PATH": path, **self.extra}

    def run(self, *arguments: str) -> None:
        """Run Compose in the foreground; raises `DeployError` when it fails."""
        done = subprocess.run(self.command(*arguments), env=self.environment(), cwd=REPO, check=False)
        if done.returncode != 0:
            raise DeployError(f"`{' '.join(arguments)}` ended with status {done.returncode}.")

    def output(self, *arguments: str) -> str:
        """Return the output of Compose; raises `DeployError` with its error text when it fails."""
        command, env = self.command(*arguments), self.environment()
        done = subprocess.run(command, env=env, cwd=REPO, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DeployError(f"`{' '.join(arguments)}` ended with status {done.returncode}: {done.stderr[-2000:]}")
        return done.stdout

    def build(self) -> None:
        """Build the image, unless the settings name an existing one."""
        if not {**read(self.env_file), **self.environment()}.get("AIRFLOW_ONNX_IMAGE"):
            self.run("build", BUILT)

    def up(self, *arguments: str) -> None:
        """Start every service and return when all are healthy."""
        if len(compose()) == 2:
            self.run("up", "--detach", "--wait", "--wait-timeout", str(WAIT_S), *arguments)
        else:
            self.run("up", "--detach", *arguments)
            self._await()

    def scale(self, service: str, count: int) -> None:
        """Run this number of containers of a service, and return when all are healthy. Other services do not change."""
        # --no-deps: otherwise Compose also runs airflow-init again, under running workers.
        self.up("--no-deps", "--no-recreate", "--scale", f"{service}={count}", service)

    def containers(self, *services: str) -> list[Container]:
        """Return the containers of these services, or of all; stopped ones too."""
        ids = self.output("ps", "--quiet", "--all", *services).split()
        if not ids:
            return []
        # Without check: a container that has gone since is left out.
        done = subprocess.run([docker(), "inspect", *ids], capture_output=True, text=True, check=False)
        return [Container(facts) for facts in json.loads(done.stdout or "[]")]

    def _await(self) -> None:
        """Wait until all containers are ready; raises `DeployError` with the log of a failed one."""
        deadline = time.monotonic() + WAIT_S
        while waiting := [one for one in self.containers() if not one.is_ready]:
            failed = next((one for one in waiting if one.has_failed), None)
            if failed or time.monotonic() > deadline:
                states = "; ".join(map(str, [failed] if failed else waiting))
                raise DeployError(f"{states}. Last lines of the log:\n{(failed or waiting[0]).log()}")
            time.sleep(POLL_S)


@dataclass(frozen=True, slots=True)
class Container:
    """A container; `facts` is the output of `docker inspect`."""

    facts: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.service} ({self.name}) is {self.facts['State']['Status']} {self._health}".rstrip()

    @property
    def id(self) -> str:
        """The whole id. Its first twelve digits are the host name inside."""
        return str(self.facts["Id"])

    @property
    def name(self) -> str:
        """The name in the engine."""
        return str(self.facts["Name"]).removeprefix("/")

    @property
    def service(self) -> str:
        """The name in docker-compose.yaml."""
        return str(self.facts["Config"]["Labels"]["com.docker.compose.service"])

    @property
    def is_ready(self) -> bool:
        """True for a healthy container, and for a one-time container that ended with status 0."""
        state = self.facts["State"]
        if state["Status"] == "running":
            return self._health in ("healthy", "")
        return self._runs_once and state["Status"] == "exited" and state["ExitCode"] == 0

    @property
    def has_failed(self) -> bool:
        """True for a container that does not become ready any more."""
        state = self.facts["State"]
        ended = self._runs_once and state["Status"] == "exited" and state["ExitCode"] != 0
        return bool(self._health == "unhealthy" or ended or self.facts["RestartCount"] >= 3)

    @property
    def _health(self) -> str:
        return str(self.facts["State"].get("Health", {}).get("Status", ""))

    @property
    def _runs_once(self) -> bool:
        return bool(self.facts["HostConfig"]["RestartPolicy"]["Name"] in ("no", ""))

    def log(self) -> str:
        """Return the last lines of the output."""
        command = [docker(), "logs", "--tail", LOG_LINES, self.id]
        return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False).stdout


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Return 0 when every service is healthy, or stopped."""
    parser = argparse.ArgumentParser(prog="python -m deploy.compose", description=__doc__)
    parser.add_argument("command", choices=("up", "down"))
    parser.add_argument("--workers", type=int, default=1, metavar="N", help="number of Airflow's workers")
    options = parser.parse_args(arguments)
    project = Project()
    try:
        require_engine()
        if options.command == "down":
            project.run("down", "--remove-orphans")
        else:
            project.build()
            project.up("--scale", f"airflow-worker={options.workers}")
            project.run("ps")
    except DeployError as error:
        print(f"{options.command}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
