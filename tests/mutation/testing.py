"""Tests of a mutant in a forked process, which imports the mutant instead of the module.

No file is written: the source of the mutant is in memory. The parent process has imported the libraries, so that a
mutant costs little more than its tests. It has not computed with them: a process with their threads must not fork.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import resource
import signal
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from pathlib import Path
from types import CodeType

import pytest

from tests.mutation.mutants import Mutant

ROOT = Path(__file__).parents[2]
# Imported before the processes are forked. Of these, each module of the project that imports the mutant is left out.
IMPORTED = (
    "numpy",
    "onnxruntime",
    "scipy.stats",
    "onnx_release.records",
    "onnx_release.limits",
    "onnx_release.trained.arrays",
    "onnx_release.samples.sample",
    "onnx_release.parity.measures",
    "onnx_release.parity.limits",
    "onnx_release.parity.scales",
    "onnx_release.parity.compare_outputs",
    "onnx_release.parity.compare_model",
    "onnx_release.parity.task_metrics",
    "onnx_release.runners.onnxruntime",
    "onnx_release.latency.host",
    "tests.core.records",
    "tests.refusals",
)
# The processor time of a mutant, which may loop for ever, and its time on the clock in s, for one that waits.
CPU_MAX_S, WALL_MAX_S = 60, 600
MEMORY_MAX_BYTES = 8 * 2**30
# Fast, and without the fixtures of a whole room: `tests/core/conftest.py` imports PyTorch.
_ARGUMENTS = ("-x", "-q", "--noconftest", "-p", "no:cacheprovider", "--no-header", "--no-summary")


class MutantFinder:
    """Finder of one module, whose source is that of a mutant. Without a source, nothing can import the module."""

    def __init__(self, module: str, path: Path, source: str | None) -> None:
        self._module, self._path, self._source = module, path, source

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:
        if name != self._module:
            return None
        if self._source is None:
            raise ImportError(f"{name} is imported later")
        loader = _MutantLoader(name, str(self._path))
        loader.source = self._source
        return importlib.util.spec_from_file_location(name, self._path, loader=loader)


class _MutantLoader(SourceFileLoader):
    source = ""

    def get_code(self, fullname: str) -> CodeType:
        return compile(self.source, self.path, "exec")


def run_tests(module: str, path: Path, tests: Sequence[str], mutants: Sequence[Mutant], jobs: int) -> list[Mutant]:
    """Run the tests for each mutant, `jobs` at a time, and return the survivors.

    Raises:
        RuntimeError: the tests do not pass without a mutant, so they show nothing.
    """
    _import_others(module, path)
    pid = _start(MutantFinder(module, path, path.read_text()), tests, shown=True)
    if os.waitpid(pid, 0)[1] != 0:
        raise RuntimeError(f"The tests of {module} do not pass without a mutant.")
    return list(_survivors(module, path, tests, mutants, jobs))


def _import_others(module: str, path: Path) -> None:
    """Import the libraries, and the modules of the project that do not import this one."""
    finder = MutantFinder(module, path, None)
    sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
    for name in IMPORTED:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    sys.meta_path.remove(finder)  # type: ignore[arg-type]
    assert module not in sys.modules


def _survivors(module: str, path: Path, tests: Sequence[str], mutants: Sequence[Mutant], jobs: int) -> Iterator[Mutant]:
    waiting, running = list(reversed(mutants)), dict[int, Mutant]()
    while waiting or running:
        if waiting and len(running) < jobs:
            mutant = waiting.pop()
            running[_start(MutantFinder(module, path, mutant.source), tests)] = mutant
            continue
        pid, status = os.wait()
        mutant = running.pop(pid)
        if status == 0:
            yield mutant


def _start(finder: MutantFinder, tests: Sequence[str], *, shown: bool = False) -> int:
    """Fork a process that runs the tests. Its exit status is 0 when they pass."""
    sys.stdout.flush()
    if pid := os.fork():
        return pid
    status = 1
    try:
        signal.alarm(WALL_MAX_S)
        resource.setrlimit(resource.RLIMIT_CPU, (CPU_MAX_S, CPU_MAX_S + 1))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        sys.meta_path.insert(0, finder)  # type: ignore[arg-type]
        if not shown:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, 1)
            os.dup2(nowhere, 2)
        status = int(pytest.main([*_ARGUMENTS, *tests]))
    finally:
        os._exit(status)
