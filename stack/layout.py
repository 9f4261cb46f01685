"""State folder of the stack, and checks of the machine before the start."""

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
# A first demo writes about 250 MB. With less free space a database write may fail during a release.
FREE_BYTES_MIN = 1024**3
TOOLS = ("airflow", "mlflow", "juicefs")
MARKER = ".stack-state"


@dataclass(frozen=True, slots=True)
class Layout:
    """Paths of one stack. Stacks with different `home` folders and ports are independent."""

    home: Path

    @classmethod
    def from_environ(cls) -> Layout:
        """Return the layout under ``STACK_HOME``, or under ``.local`` of the repository."""
        return cls(Path(os.environ.get("STACK_HOME") or REPO / ".local").resolve())

    @property
    def logs(self) -> Path:
        """Folder with one log file for each service. Each start appends to it."""
        return self.home / "logs"

    @property
    def pids(self) -> Path:
        """Folder with one file for each running service, see `processes.Record`."""
        return self.home / "run"

    @property
    def env_file(self) -> Path:
        """File with shell exports for clients of the stack."""
        return self.home / "env"

    @property
    def airflow_home(self) -> Path:
        """Folder with Airflow's configuration and task logs."""
        return self.home / "airflow"

    @property
    def minio(self) -> Path:
        """Folder with the object store's metadata and blocks."""
        return self.home / "minio"

    @property
    def postgres(self) -> Path:
        """Folder with the databases of Airflow and MLflow."""
        return self.home / "postgres"

    @property
    def mlflow(self) -> Path:
        """Working directory of MLflow. Its records are in the database, its artifacts in the object store."""
        return self.home / "mlflow"

    def create(self) -> None:
        """Create the folders, private to the user. Raise `StackError` for a folder that the stack did not create."""
        if self.home.is_dir() and any(self.home.iterdir()) and not (self.home / MARKER).exists():
            raise StackError(f"{self.home} has files that the stack did not write. Set STACK_HOME to another folder.")
        folders = (self.logs, self.pids, self.postgres, self.airflow_home, self.minio, self.mlflow)
        try:
            for folder in (self.home, *folders):
                folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            (self.home / MARKER).touch(mode=0o600)
        except OSError as error:
            raise StackError(
                f"{self.home} cannot be written: {error.strerror}. Set STACK_HOME to another folder."
            ) from error

    def remove(self) -> bool:
        """Delete the state folder; return False when there is none. Raise `StackError` without the stack's marker."""
        if not self.home.exists():
            return False
        if not (self.home / MARKER).exists():
            raise StackError(f"{self.home} was not created by the stack (it has no {MARKER}). Delete it yourself.")
        shutil.rmtree(self.home)
        return True

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the stack's lock. Without it, two parallel commands would start every service twice."""
        with (self.home / "lock").open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StackError(
                    f"Another command is starting or stopping the stack in {self.home}. Wait until it ends."
                ) from None
            yield


def tool(name: str) -> str:
    """Return the path of a program in the virtual environment of this process."""
    return str(Path(sys.executable).parent / name)


def check_machine(home: Path, free_bytes_min: int = FREE_BYTES_MIN) -> None:
    """Raise `StackError` for a missing program or a full disk, before anything starts."""
    if missing := [name for name in TOOLS if not os.access(tool(name), os.X_OK)]:
        folder = Path(sys.executable).parent
        raise StackError(f"{', '.join(missing)} not found in {folder}. Delete .venv and run make again.")
    existing = next(path for path in (home, *home.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if free < free_bytes_min:
        raise StackError(
            f"The disk of {existing} has {free / 1e6:.0f} MB free and the stack needs {free_bytes_min / 1e6:.0f} MB: "
            "free some space, or set STACK_HOME to another disk."
        )
