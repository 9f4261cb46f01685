"""Account of a process that runs the training run's own code, where the worker runs as root on Linux.

The account is a number without a name and without other groups. It cannot signal, trace or read a process of root, and
it reads only files that all accounts may read. Python and its packages must be among them.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from onnx_release.errors import RunnerRefused
from onnx_release.limits import PICKLE_USER
from onnx_release.runners.child_process import clean_environment
from onnx_release.runners.python_files import editable_packages, is_module
from onnx_release.runners.system_calls import call

_PR_SET_DUMPABLE = 4
# The worker gives files to the account, takes them back, and ends its processes. Root can lack each in a container.
_CAPABILITIES = {"CAP_CHOWN": 0, "CAP_DAC_OVERRIDE": 1, "CAP_KILL": 5}
# It prints the first path that the account cannot use.
_TRIAL = """\
import os, sys
for line in sys.stdin.read().split("\\0"):
    if not os.access(line[1:], int(line[0])):
        print(line[1:], end="")
        break
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ChildAccount:
    """Account of a process of a pickle.

    Attributes:
        user: The user and group id. None: those of this process.
        problem: The reason why the process runs as root, else empty.
        action: The next step for a person, with a problem.
    """

    user: int | None = None
    problem: str = ""
    action: str = ""


def child_account(configured: int | None, needed: dict[Path, int]) -> ChildAccount:
    """Return the account of a process of a pickle.

    Only a worker that runs as root on Linux changes it. Where that would make a release fail, the worker's account
    stays, with a problem.

    Args:
        configured: The id that the deployment chose; 0 for the worker's account, None for the default.
        needed: By path, the access that the process needs, as in `os.access`. Those of Python are added.

    Raises:
        RunnerRefused: `step_account`: the worker cannot change to the id that the deployment chose.
    """
    if sys.platform != "linux" or os.geteuid() != 0 or configured == 0:
        return ChildAccount()
    user = PICKLE_USER if configured is None else configured
    closed, lacks = None, _missing_capabilities()
    if not lacks:
        try:
            closed = _closed_path(user, {Path(tempfile.gettempdir()): os.X_OK} | dict(_python()) | needed)
        except OSError as error:
            lacks = error.strerror or type(error).__name__
    if closed:
        return ChildAccount(
            problem=f"the account {user} has no access to {closed}",
            action="Give all accounts access to it (chmod o+rx), or run the worker as an account of its own.",
        )
    if not lacks:
        return ChildAccount(user=user)
    if configured is None:
        return ChildAccount(
            problem=f"this worker cannot change to the account {user} ({lacks})",
            action="Run the worker as an account of its own, or set [onnx_release] pickle_user.",
        )
    raise RunnerRefused(
        f"The account {user} of [onnx_release] pickle_user",
        f"cannot be used by this worker: {lacks}",
        "Give an id that exists in its container, or 0 to run pickles with the worker's account.",
        code="step_account",
    )


def become(user: int) -> None:
    """Give up root for the user and group of this number, without a way back. The process has one thread.

    Raises:
        OSError: This process may not change its account.
    """
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
    # The kernel gives /proc/self to root after a change of the account. A user namespace is set up by files there.
    call("prctl", _PR_SET_DUMPABLE, 1, 0, 0, 0)


def _missing_capabilities() -> str:
    status = Path("/proc/self/status").read_text()
    (effective,) = (int(line.split()[1], 16) for line in status.splitlines() if line.startswith("CapEff:"))
    missing = [name for name, number in _CAPABILITIES.items() if not effective >> number & 1]
    return f"it lacks {' and '.join(missing)}" if missing else ""


def _closed_path(user: int, needed: dict[Path, int]) -> Path | None:
    """Return the folder or file that the account cannot use, or None.

    Raises:
        OSError: This process cannot change to the account.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _TRIAL],
            input="\0".join(f"{access}{path}" for path, access in needed.items()),
            user=user,
            group=user,
            extra_groups=(),
            env=clean_environment("/"),
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
    except PermissionError as error:
        if error.errno != errno.EACCES:
            raise
        return _first_closed(Path(sys.executable))
    if done.returncode:  # Python has no access to its own library.
        return _first_closed(Path(os.__file__))
    return _first_closed(Path(done.stdout)) if done.stdout else None


def _first_closed(path: Path) -> Path:
    """Return the first folder on the way to a path that is closed to other accounts, or the path itself."""
    for one in (path.absolute(), path.resolve()):
        for folder in reversed(one.parents):
            if not folder.stat().st_mode & 0o001:
                return folder
    return path


def _python() -> Iterator[tuple[Path, int]]:
    """Yield the files of Python and the packages that a step imports, each with the access that it needs."""
    yield Path(sys.executable), os.R_OK | os.X_OK
    for folder in (Path(text).resolve() for text in sys.path if text):
        # A folder of the import path may have other files, such as secrets, or no modules at all.
        modules = [entry for entry in folder.iterdir() if is_module(entry)] if folder.is_dir() else []
        if modules or folder.is_file():
            yield from ((path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK) for path in (folder, *modules))
    yield from ((path, os.R_OK) for path in editable_packages())
