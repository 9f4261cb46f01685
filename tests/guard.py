"""Services that end with the tests, whatever ends those: Ctrl-C, the end of pytest-xdist's patience, a signal."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stack.layout import REPO


@contextmanager
def guarded(home: Path) -> Iterator[None]:
    """Stop all that the stack's state folder says is running, when the block is left or this process is gone.

    A process of its own waits for the end of a pipe, which the kernel closes with this process. It is in a session of
    its own too, as a Ctrl-C must not reach it.
    """
    guard = subprocess.Popen(
        ["sh", "-c", 'cat && exec "$0" -m stack down', sys.executable],
        cwd=REPO,
        env=os.environ | {"STACK_HOME": str(home)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    with guard:
        try:
            yield
        finally:
            said, _ = guard.communicate()
    assert guard.returncode == 0, said
