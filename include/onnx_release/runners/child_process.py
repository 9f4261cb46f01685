"""Environment and lifetime of child processes."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from onnx_release.errors import Transient
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.runners import guard

# Settings of numeric libraries. None of them carries a credential of Airflow, MLflow or an object store.
_PASSED_ON = (
    "CUDA_VISIBLE_DEVICES",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "NVIDIA_TF32_OVERRIDE",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PATH",
    "SSL_CERT_FILE",
    "TZ",
)
_PR_SET_PDEATHSIG = 1
_ERROR_CHARACTERS = 300
# Signals from outside of the process: too little memory, an administrator, a failed read of a mapped file.
_FROM_OUTSIDE = {-number for number in (signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGBUS)}


def clean_environment(scratch: str) -> dict[str, str]:
    """Return the environment variables of a child process, without any secret of the parent.

    Args:
        scratch: The child's home and temporary folder, which the caller removes afterwards.
    """
    passed_on = {name: os.environ[name] for name in _PASSED_ON if name in os.environ}
    # Absolute paths, because the child has another working directory.
    import_path = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    return passed_on | {
        guard.PARENT: str(os.getpid()),
        "PYTHONPATH": import_path,
        "HOME": scratch,
        "TMPDIR": scratch,
        # torch needs a name of the account, and an account without one fails.
        "LOGNAME": "onnx-release",
        "HF_HUB_OFFLINE": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        # The model's code lies in a folder whose bytes must not change.
        "PYTHONDONTWRITEBYTECODE": "1",
    }


def end_with_parent() -> None:
    """Request SIGKILL for this process when its parent ends. Only Linux supports it; elsewhere nothing happens."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        # The parent may have ended before the request, during the imports.
        if os.environ.get(guard.PARENT, str(os.getppid())) != str(os.getppid()):
            os.kill(os.getpid(), signal.SIGKILL)


def guarded(command: Sequence[str]) -> list[str]:
    """Return a command whose processes all end when this process ends. Its caller starts it in a session of its own.

    Args:
        command: The absolute path of a program, and its arguments.
    """
    return [sys.executable, "-I", "-S", guard.__file__, str(os.getpid()), *command]


def run_guarded(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. All its processes end with it, and with this process.

    Args:
        command: The absolute path of a program, and its arguments.
        environment: All its environment variables.
        folder: Its working directory.
        timeout_s: The longest run.

    Returns:
        The exit status, and both streams of output in ``stdout``.

    Raises:
        subprocess.TimeoutExpired: It did not end in time.
    """
    child = start_guarded(command, environment, folder)
    try:
        output, _ = child.communicate(timeout=timeout_s)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    return subprocess.CompletedProcess(child.args, child.returncode, output)


def start_guarded(
    command: Sequence[str], environment: Mapping[str, str], folder: Path, stdin: int = subprocess.DEVNULL
) -> subprocess.Popen[str]:
    """Start a command behind its guard, in a process group of its own, with both streams of output in ``stdout``."""
    return subprocess.Popen(
        guarded(command),
        env=environment,
        cwd=folder,
        stdin=stdin,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )


def raise_if_ended_from_outside(subject: str, returncode: int, output: str) -> None:
    """Raise for a child process that the worker ended, not the model: by a signal, for memory or for a full disk.

    Args:
        subject: The process, as the subject of a message.
        returncode: The code from `subprocess`, negative for a signal.
        output: The end of its output.

    Raises:
        Transient: The model is not at fault.
    """
    if returncode in _FROM_OUTSIDE:
        action = "Give the worker more memory, or release a smaller model."
        raise Transient(subject, describe_exit(returncode), action)
    # The last line has the error of a process that could not write its answer.
    raise_machine_failure(RuntimeError(output[-_ERROR_CHARACTERS:]))


def describe_exit(returncode: int) -> str:
    """Return the end of a process as the rest of a sentence.

    Args:
        returncode: The code from `subprocess`, negative for a signal.
    """
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
