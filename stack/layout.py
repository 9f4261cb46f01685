"""Where the stack keeps its state, and what it needs of the machine before it starts."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from stack.errors import StackError

REPO = Path(__file__).resolve().parents[1]
# A first demo writes about 250 MB; below this a database is torn in the middle of a release.
FREE_BYTES_MIN = 1024**3
TOOLS = ("airflow", "mlflow", "juicefs")
MARKER = ".stack-state"


@dataclass(frozen=True, slots=True)
class Layout:
    """The paths of one stack; two stacks with different `home` folders and ports do not touch each other."""

    home: Path

    @classmethod
    def from_environ(cls) -> Layout:
        """Return the layout under ``STACK_HOME``, or under ``.local`` of the repository."""
        return cls(Path(os.environ.get("STACK_HOME") or REPO / ".local").resolve())

    @property
    def logs(self) -> Path:
        """One log file for each service, appended to at each start."""
        return self.home / "logs"

    @property
    def pids(self) -> Path:
        """One file for each running service, see `processes.Record`."""
        return self.home / "run"

    @property
    def env_file(self) -> Path:
        """Shell exports for any client of the stack."""
        return self.home / "env"

    @property
    def airflow_home(self) -> Path:
        """Airflow's configuration, metadata database and task logs."""
        return self.home / "airflow"

    @property
    def minio(self) -> Path:
        """The object store: its metadata and its blocks."""
        return self.home / "minio"

    @property
    def mlflow(self) -> Path:
        """MLflow's database; its artifacts are in the object store."""
        return self.home / "mlflow"

    def create(self) -> None:
        """Make the folders, private to the user; an existing foreign folder is not taken over."""
        if self.home.is_dir() and any(self.home.iterdir()) and not (self.home / MARKER).exists():
            raise StackError(f"{self.home} holds files that the stack did not write. Point STACK_HOME elsewhere.")
        try:
            for folder in (self.home, self.logs, self.pids, self.airflow_home, self.minio, self.mlflow):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.home / MARKER).touch(mode=0o600)
        except OSError as error:
            raise StackError(f"{self.home} cannot be written: {error.strerror}. Point STACK_HOME elsewhere.") from error

    def remove(self) -> bool:
        """Delete the whole state; returns False when there was none. A folder without the stack's marker is refused."""
        if not self.home.exists():
            return False
        if not (self.home / MARKER).exists():
            raise StackError(f"{self.home} was not made by the stack (it has no {MARKER}): delete it yourself.")
        shutil.rmtree(self.home)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the stack's lock, so that two commands at once do not start every service twice."""
        with (self.home / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackError(f"Another command starts or stops the stack in {self.home}: wait for it.") from None
            yield


def tool(name: str) -> str:
    """Return the path of a program of the virtual environment that runs this process."""
    return str(Path(sys.executable).parent / name)


def check_machine(home: Path, free_bytes_min: int = FREE_BYTES_MIN) -> None:
    """Raise `StackError` naming a missing program or a full disk, before anything is started or written."""
    if missing := [name for name in TOOLS if not os.access(tool(name), os.X_OK)]:
        folder = Path(sys.executable).parent
        raise StackError(f"{', '.join(missing)} not found in {folder}: delete .venv and run make again.")
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < free_bytes_min:
        raise StackError(
            f"The disk of {existing} has {free / 1e6:.0f} MB free and the stack needs {free_bytes_min / 1e6:.0f} MB: "
            "free some, or point STACK_HOME at another disk."
        )
