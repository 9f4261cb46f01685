"""Script that runs a command, and ends all its processes with the process that started it.

``python guard.py PARENT COMMAND [ARGUMENT…]``, as the leader of a session. It imports nothing of this package.
The kernel sends a signal to the guard when its parent ends, also by SIGKILL. Only Linux does so; elsewhere a killed
parent leaves the command running. The exit status is that of the command.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import sys

PARENT = "ONNX_RELEASE_PARENT"
"""Environment variable with the pid of the process that started a child."""

_PR_SET_PDEATHSIG = 1


def main(parent: int, command: list[str]) -> None:
    """Run the command to its end, and end by the same signal or with the same status."""
    # The process group has the command and everything that it starts, unless it makes a session of its own.
    signal.signal(signal.SIGTERM, lambda *_: os.killpg(os.getpgrp(), signal.SIGKILL))
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # It has ended before the request to the kernel.
        return
    child = os.posix_spawn(command[0], command, os.environ | {PARENT: str(os.getpid())})
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status < 0:
        # The command has written its core already, if any.
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        with contextlib.suppress(OSError, ValueError):
            signal.signal(-status, signal.SIG_DFL)
        os.kill(os.getpid(), -status)
    sys.exit(status)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
