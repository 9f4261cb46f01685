"""Child processes that always end before the command that started them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from stack import interrupts

STOP_TIMEOUT_S = 10.0


@contextlib.contextmanager
def child(argv: list[str], env: dict[str, str], cwd: Path) -> Iterator[subprocess.Popen[str]]:
    """Run a program, with both output streams in ``.stdout``. End it when the block is left."""
    process = None
    try:
        with interrupts.deferred():
            process = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
            )
        yield process
    finally:
        if process is not None:
            with interrupts.ignored():
                _end(process)


def run(argv: list[str], env: dict[str, str], cwd: Path) -> tuple[int, str]:
    """Run a program to its end and return its exit status and output."""
    with child(argv, env, cwd) as process:
        output, _ = process.communicate()
        return process.returncode, output.strip()


def _end(process: subprocess.Popen[str]) -> None:
    if process.poll() is None:
        process.terminate()
        try:
            process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
