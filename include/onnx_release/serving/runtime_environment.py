"""Environments of other versions of ONNX Runtime, made once per worker with pip or uv.

An environment has two packages, onnxruntime and numpy. The package index is that of the worker's own settings of pip:
its configuration file, or the variables ``PIP_…``.
"""

from __future__ import annotations

import contextlib
import fcntl
import importlib.metadata
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from onnx_release.errors import ParameterRefused, RunnerRefused, Transient
from onnx_release.limits import TARGET_RUNTIME_PATTERN, TARGET_RUNTIMES_MAX
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.records.base import Record
from onnx_release.runners.child_process import clean_environment, run_guarded
from onnx_release.runners.distribution import installed_distribution
from onnx_release.scratch import scratch_folder
from onnx_release.text import shorten

INSTALL_MAX_S = 600.0
LIST_MAX_S = 60.0
IMPORT_MAX_S = 60.0
_LOCK_POLL_S = 0.5
_READY = "ready"
_IMPORT = ("-I", "-c", "import onnxruntime, numpy; print(onnxruntime.__version__)")
# Builds before this version were compiled for numpy 1 and cannot be imported with numpy 2.
_NUMPY_2_SINCE = (1, 19)
# Settings of pip and of the network. All other variables of the parent stay out: it has secrets of Airflow.
_PASSED_ON = re.compile(r"(PIP|UV)_\w+|(https?|no|all)_proxy|SSL_CERT_(FILE|DIR)|REQUESTS_CA_BUNDLE", re.IGNORECASE)
_ALSO_PASSED_ON = ("HOME", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "PATH", "XDG_CONFIG_HOME")
# They would install into another place, or pin the version that this worker itself has.
_NOT_PASSED_ON = (
    "PIP_CONSTRAINT", "PIP_PREFIX", "PIP_PYTHON", "PIP_REQUIRE_VIRTUALENV", "PIP_ROOT",
    "PIP_TARGET", "PIP_USER", "UV_CONSTRAINT", "UV_OVERRIDE", "UV_PROJECT_ENVIRONMENT", "UV_SYSTEM_PYTHON", "UV_TARGET",
)  # fmt: skip
_NO_NETWORK = re.compile(
    r"connection|timed? ?out|temporary failure|name resolution|unreachable|network|dns error|max retries|"
    # pip hides the reason, and then lists no version.
    r"could not fetch|failed to fetch|SSL|certificate|50[0234] |from versions: none",
    re.IGNORECASE,
)


class RuntimeEnvironment(Record):
    """Python of an environment with one version of ONNX Runtime.

    Attributes:
        version: The version of ONNX Runtime.
        python: The path of the interpreter.
        is_own: True for the environment of this process.
    """

    version: str
    python: str
    is_own: bool = False


def require_versions(versions: Iterable[object]) -> tuple[str, ...]:
    """Return versions of ONNX Runtime without duplicates, the oldest first.

    Raises:
        ParameterRefused: `target_runtimes`, for a value that is not an exact version, or for too many versions.
    """
    found = [*dict.fromkeys(versions)]
    wrong = [one for one in found if not isinstance(one, str) or not re.fullmatch(TARGET_RUNTIME_PATTERN, one)]
    if wrong or len(found) > TARGET_RUNTIMES_MAX:
        problem = f"has {wrong[0]!r:.80}" if wrong else f"has {len(found)} versions"
        raise ParameterRefused(
            "The parameter 'target_runtimes'",
            problem,
            f"Give at most {TARGET_RUNTIMES_MAX} exact versions of ONNX Runtime, such as 1.20.1.",
            code="target_runtimes",
        )
    return tuple(sorted(map(str, found), key=_numbers))


def installed_version() -> str | None:
    """Return the version of ONNX Runtime in this process, or None."""
    return next(iter(installed_distribution().values()), None)


def prepare_environments(
    versions: Iterable[object], folder: Path, timeout_s: float = INSTALL_MAX_S
) -> tuple[RuntimeEnvironment, ...]:
    """Return an environment for each version. The installed version needs none.

    An environment that is missing is made. One that does not import its packages any more is made again, once.

    Args:
        versions: Exact versions of ONNX Runtime.
        folder: The folder with the environments of this worker.
        timeout_s: The longest installation of one version, and the longest wait for that of another process.

    Raises:
        ParameterRefused: A version is not exact.
        RunnerRefused: `runtime_unavailable`: the package index has no wheel of this version for this worker.
        Transient: The package index does not answer in time.
    """
    made = []
    for version in require_versions(versions):
        if version == installed_version():
            made.append(RuntimeEnvironment(version=version, python=sys.executable, is_own=True))
            continue
        python = sys.version_info
        target = folder / f"onnxruntime-{version}-py{python.major}.{python.minor}"
        if not _is_sound(target, version):
            folder.mkdir(parents=True, exist_ok=True)
            with _locked(folder / f"{target.name}.lock", version, timeout_s):
                # Another process may have made it meanwhile.
                if not _is_sound(target, version):
                    _make(version, target, timeout_s)
        made.append(RuntimeEnvironment(version=version, python=str(_python_of(target))))
    return tuple(made)


def existing_environment(path: Path, name: str) -> RuntimeEnvironment:
    """Return an environment that exists already. Nothing is installed into it.

    Args:
        path: The interpreter, or the folder of a virtual environment.
        name: The name of the environment for messages.

    Raises:
        RunnerRefused: `runtime_unavailable`: there is no interpreter, or it cannot import onnxruntime and numpy.
    """
    python = (_python_of(path) if path.is_dir() else path).absolute()
    subject = f"The environment {name!r:.200}"
    if not python.is_file() or not os.access(python, os.X_OK):
        raise _unusable(subject, "has no interpreter")
    try:
        done = _import(python)
    except subprocess.TimeoutExpired as error:
        raise _unusable(subject, f"does not import onnxruntime within {IMPORT_MAX_S:g} s") from error
    version = (done.stdout.split() or [""])[-1]
    if done.returncode or not re.fullmatch(r"[0-9][0-9A-Za-z.+-]{0,39}", version):
        raise _unusable(subject, f"does not import onnxruntime and numpy: {_last_error(done.stdout)}")
    return RuntimeEnvironment(version=version, python=str(python))


def listed_versions() -> tuple[str, ...]:
    """Return the versions of ONNX Runtime with a wheel for this Python in the worker's package index.

    Raises:
        RunnerRefused: `runtime_unavailable`: this worker has no pip, or its index has no version.
        Transient: The package index does not answer in time.
    """
    if importlib.util.find_spec("pip") is None:
        problem = "cannot be listed: this worker has no pip"
        raise RunnerRefused("The versions of ONNX Runtime", problem, "Name exact versions.", code="runtime_unavailable")
    pip = [sys.executable, "-m", "pip", "--no-input", "--disable-pip-version-check"]
    output = _call([*pip, "index", "versions", "--only-binary", ":all:", "onnxruntime"], None, LIST_MAX_S)
    found = re.search(r"^Available versions: (.*)$", output, re.MULTILINE)
    return tuple(re.findall(r"[0-9][0-9a-z.]*", found[1])) if found else ()


def _unusable(subject: str, problem: str) -> RunnerRefused:
    action = "Name the Python of an environment with onnxruntime and numpy."
    return RunnerRefused(subject, problem, action, code="runtime_unavailable")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _is_sound(environment: Path, version: str) -> bool:
    """Return True for an environment that imports this version. A lost file or a full disk may have damaged it."""
    # The interpreter is a link, which an update of Python can break.
    if not (environment / _READY).exists() or not _python_of(environment).exists():
        return False
    try:
        done = _import(_python_of(environment))
    except subprocess.TimeoutExpired:
        # A busy host does not damage it.
        return True
    # Signals come from outside, such as that of too little memory.
    return done.returncode < 0 or (done.returncode == 0 and done.stdout.split()[-1:] == [version])


def _import(python: Path) -> subprocess.CompletedProcess[str]:
    """Import onnxruntime and numpy in an environment, and print the version as the last word."""
    with scratch_folder() as scratch:
        return run_guarded([str(python), *_IMPORT], clean_environment(str(scratch)), scratch, IMPORT_MAX_S)


def _python_of(environment: Path) -> Path:
    return environment / "bin" / "python"


@contextlib.contextmanager
def _locked(path: Path, version: str, timeout_s: float) -> Iterator[None]:
    """Lock a file, so that one process of this worker makes the environment."""
    with path.open("a") as file:
        until = time.monotonic() + timeout_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > until:
                    subject, problem = f"ONNX Runtime {version}", "is being installed by another process for too long"
                    raise Transient(subject, problem, "Look for a process of pip that does not end.") from error
                time.sleep(_LOCK_POLL_S)
        yield


def _make(version: str, target: Path, timeout_s: float) -> None:
    """Make an environment beside its place, import the package in it, and move it to its place."""
    for leftover in (target, *target.parent.glob(f".{target.name}-*")):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        made = Path(scratch, "environment")
        has_pip = importlib.util.find_spec("pip") is not None
        uv = None if has_pip else shutil.which("uv")
        python = str(_python_of(made))
        # ensurepip takes seconds, and pip installs into other environments.
        _call(
            [sys.executable, "-m", "venv", *(["--without-pip"] if has_pip or uv else []), str(made)], version, timeout_s
        )
        numpy = "numpy<2" if _numbers(version)[:2] < _NUMPY_2_SINCE else "numpy"
        packages = ["--no-deps", "--only-binary", ":all:", f"onnxruntime=={version}", numpy]
        if uv:
            command = [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--only-binary", ":all:"]
            command += packages[3:]
        else:
            pip = [sys.executable, "-m", "pip", "--python", python] if has_pip else [python, "-m", "pip"]
            command = [*pip, "--quiet", "--no-input", "--disable-pip-version-check", "install", *packages]
        _call(command, version, timeout_s)
        found = _call([python, *_IMPORT], version, timeout_s)
        if found.split()[-1:] != [version]:
            raise _unavailable(version, f"the installed package has the version {found.strip()[-40:]!r}")
        (made / _READY).touch()
        made.rename(target)


def _call(command: list[str], version: str | None, timeout_s: float) -> str:
    """Run a command with the settings of pip and of the network, and return its output.

    Args:
        command: The command.
        version: The version that it installs; None for a list of all versions.
        timeout_s: The longest run.
    """
    passed_on = {
        name: text for name, text in os.environ.items() if _PASSED_ON.fullmatch(name) or name in _ALSO_PASSED_ON
    }
    environment = {name: text for name, text in passed_on.items() if name.upper() not in _NOT_PASSED_ON}
    subject, verb = (f"ONNX Runtime {version}", "installed") if version else ("The versions of ONNX Runtime", "listed")
    action = "Check that this worker reaches its package index."
    try:
        done = run_guarded(command, environment, Path(tempfile.gettempdir()), timeout_s)
    except subprocess.TimeoutExpired as error:
        was = "was" if version else "were"
        raise Transient(subject, f"{was} not {verb} within {timeout_s:g} s", action) from error
    output = done.stdout
    if done.returncode:
        raise_machine_failure(RuntimeError(output[-600:]))
        if version is None or _NO_NETWORK.search(output):
            raise Transient(subject, f"cannot be {verb}: {_last_error(output)}", action)
        raise _unavailable(version, _last_error(output))
    return output


def _last_error(output: str) -> str:
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if line.lower().startswith("error") or "Error" in line]
    return shorten((errors or lines or ["no output"])[-1])


def _unavailable(version: str, problem: str) -> RunnerRefused:
    python = f"{sys.version_info.major}.{sys.version_info.minor}"
    return RunnerRefused(
        f"ONNX Runtime {version}",
        f"cannot be installed on this worker (Python {python}): {problem}",
        "Choose a version with a wheel for this Python and platform in the package index of the worker, or remove it "
        "from the parameter 'target_runtimes' or 'runtimes'.",
        code="runtime_unavailable",
    )
