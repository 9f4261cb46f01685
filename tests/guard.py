"""Services that stop when the tests stop, also after Ctrl-C, a time-out of pytest-xdist or a signal."""

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
    """Stop the services of a stack's state folder at the end of the block or of this process.

    A separate process waits for the end of a pipe, which the kernel closes with this process. It runs in a separate
    session, because Ctrl-C must not reach it.
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
            output, _ = guard.communicate()
    assert guard.returncode == 0, output
