"""Fresh virtual environment with a stock Airflow, MLflow and torch, as a deployment has them.

These packages are installed once for each set of versions, from the index that pip is configured for. torch from PyPI
has the CUDA packages on Linux, some gigabytes; PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu avoids them.
The installed environment is kept. Each adoption gets a copy of it at the path that its scripts name, made of hard
links: pip replaces files and never writes into one, so the copy takes seconds and no space.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from adoption.packages import frozen
from stack import children
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO, check_machine

_PINS = REPO / "requirements.txt"
# Without the CUDA packages of torch.
INSTALLED_BYTES = 3 * 1024**3
# The servers of Airflow 3.2 do not start with a later FastAPI. Airflow 3.3 requires the same itself.
_HELD = {"3.2": ("fastapi<0.137",)}


@dataclass(frozen=True, slots=True)
class Environment:
    """The virtual environment below `folder`, and beside it the kept one without this package."""

    folder: Path

    @property
    def venv(self) -> Path:
        """Folder of the virtual environment."""
        return self.folder / "venv"

    def program(self, name: str) -> str:
        """Return the path of a program of the environment."""
        return str(self.venv / "bin" / name)

    def variables(self, **extra: str) -> dict[str, str]:
        """Return the variables of its processes. The environment of this process must not reach them."""
        kept = clean_environment(**extra)
        own = str(Path(sys.executable).parent)
        path = [folder for folder in kept["PATH"].split(os.pathsep) if folder != own]
        return {**kept, "PATH": os.pathsep.join([str(self.venv / "bin"), *path]), "VIRTUAL_ENV": str(self.venv)}

    def run(self, argv: list[str], cwd: Path, **extra: str) -> str:
        """Run a program of the environment and return its output. Raise `StackError` with it if the program fails."""
        status, output = children.run([self.program(argv[0]), *argv[1:]], self.variables(**extra), cwd)
        if status != 0:
            raise StackError(f"`{' '.join(argv)}` ended with status {status}:\n{output[-8000:]}")
        return output

    def packages(self) -> dict[str, str]:
        """Return the version of each installed package."""
        return frozen(self.run(["python", "-m", "pip", "freeze", "--all"], self.folder))


def pins(airflow: str) -> dict[str, str]:
    """Return the versions to install: Airflow's, and those of MLflow and torch that the project is tested with."""
    found = dict(re.findall(r"^(mlflow|torch)==(\S+)$", _PINS.read_text(), re.MULTILINE))
    return {"apache-airflow": airflow, **found}


def key(versions: Mapping[str, str]) -> str:
    """Return the name of the folder for an interpreter and versions."""
    names = "-".join(f"{name.removeprefix('apache-')}-{version}" for name, version in versions.items())
    return f"python-{sys.version_info.major}.{sys.version_info.minor}-{names}"


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Refuse a second process: it would replace the environment under the programs of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError(f"Another `make adopt` uses {folder}. Wait until it ends.") from None
        yield


def fresh(folder: Path, versions: Mapping[str, str]) -> Environment:
    """Return a fresh environment with these packages alone; install them first if that was never done."""
    environment, base = Environment(folder), folder / "base"
    shutil.rmtree(environment.venv, ignore_errors=True)
    if not base.exists():
        check_machine(folder, INSTALLED_BYTES)
        held = _HELD.get(versions["apache-airflow"].rpartition(".")[0], ())
        _install(environment, [*(f"{name}=={version}" for name, version in versions.items()), *held])
        environment.venv.rename(base)
    shutil.copytree(base, environment.venv, symlinks=True, copy_function=_link)
    return environment


def _install(environment: Environment, requirements: list[str]) -> None:
    argv = [sys.executable, "-m", "venv", str(environment.venv)]
    status, output = children.run(argv, environment.variables(), environment.folder)
    if status != 0:
        raise StackError(f"{environment.venv} cannot be created:\n{output[-800:]}")
    environment.run(["python", "-m", "pip", "install", "--quiet", "--upgrade", "pip"], environment.folder)
    environment.run(["python", "-m", "pip", "install", "--quiet", *requirements], environment.folder)


def _link(source: str, target: str) -> None:
    os.link(source, target, follow_symlinks=False)
