"""Child processes that get what they need to compute, and nothing of what the parent may know."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys
from pathlib import Path

# What a numeric library may look at. No credential of Airflow, MLflow or an object store is among them.
_KEPT = (
    "CUDA_VISIBLE_DEVICES",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "MKL_NUM_THREADS",
    "NVIDIA_VISIBLE_DEVICES",
    "OMP_NUM_THREADS",
    "PATH",
    "SSL_CERT_FILE",
    "TZ",
)
_PR_SET_PDEATHSIG = 1


def clean_environment(scratch: str) -> dict[str, str]:
    """Return the environment of a child: the parent's import path, and a home and temporary folder of its own.

    :param scratch: a folder that ends with the child.
    """
    kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
    # Absolute, since the child works elsewhere.
    paths = os.pathsep.join(str(Path(path).resolve()) for path in sys.path)
    # No bytecode: a model's own code lies in a folder that must stay as it is.
    fixed = {"PYTHONPATH": paths, "HOME": scratch, "TMPDIR": scratch, "HF_HUB_OFFLINE": "1"}
    return kept | fixed | {"PYTHONDONTWRITEBYTECODE": "1"}


def end_with_parent() -> None:
    """Let the kernel end this process when its parent ends, however that does; elsewhere than on Linux, do nothing."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def how_it_ended(returncode: int) -> str:
    """Say how a process ended, by `subprocess`'s code: negative for a signal."""
    if returncode >= 0:
        return f"ended with exit status {returncode}"
    try:
        name = signal.Signals(-returncode).name
    except ValueError:
        name = f"signal {-returncode}"
    return f"was ended by {name}{' (out of memory?)' if name == 'SIGKILL' else ''}"
