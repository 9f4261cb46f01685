"""Runner of an ONNX file in a separate process, whose import of ONNX Runtime overlaps with the caller's work.

``python -m onnx_release.runners.onnxruntime_process`` reads ``[MODEL, INPUTS, OUTPUTS]`` as JSON from standard input
and runs every case in the folder INPUTS.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np

from onnx_release.errors import Refused, ReleaseError, RunnerRefused, Transient
from onnx_release.runners.child_process import (
    clean_environment,
    describe_exit,
    end_with_parent,
    raise_if_ended_from_outside,
)
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.scratch import scratch_folder
from onnx_release.trained.arrays import Arrays

_REFUSAL = "refusal.json"


class OnnxRuntimeProcess:
    """A separate process that runs one model in ONNX Runtime.

    The process starts at ``with`` and imports ONNX Runtime on an idle core while the model is still being exported.
    Each further call of `run` starts another process. The end of ``with`` ends a process that still waits.
    """

    def __init__(self) -> None:
        self._waiting: subprocess.Popen[str] | None = None
        self._stack = ExitStack()
        self._scratch = Path()

    def __enter__(self) -> Self:
        self._scratch = self._stack.enter_context(scratch_folder())
        self._waiting = self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._waiting is not None:
            self._waiting.kill()
            self._waiting.communicate()
        self._stack.close()

    def run(self, model: Path, cases: Sequence[Arrays], meanwhile: Callable[[], object] = lambda: None) -> list[Arrays]:
        """Run a model on several inputs.

        Args:
            model: The ONNX file.
            cases: The inputs of each call, by name.
            meanwhile: The caller's own work while the process runs.

        Returns:
            The outputs of each call, by name.

        Raises:
            RunnerRefused: ONNX Runtime rejects the model or fails on a case, or the process crashes.
            Transient: The process was killed, or has too little memory or disk.
        """
        process = self._waiting = self._waiting or self._start()
        with tempfile.TemporaryDirectory(dir=self._scratch) as folder:
            inputs, outputs = Path(folder, "inputs"), Path(folder, "outputs")
            _write(inputs, cases)
            outputs.mkdir()
            request = json.dumps([str(model.resolve()), str(inputs), str(outputs)])
            with ThreadPoolExecutor(1) as beside:
                answer = beside.submit(process.communicate, request)
                try:
                    meanwhile()
                    output, _ = answer.result()
                except BaseException:
                    # Such as the time limit of the task: the thread must not wait for a process that may never end.
                    process.kill()
                    raise
            self._waiting = None
            if (outputs / _REFUSAL).exists():
                raise ReleaseError.from_dict(json.loads((outputs / _REFUSAL).read_text()))
            if process.returncode:
                raise _ended(process.returncode, " ".join(output.split())[-600:])
            return list(_read(outputs))

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=clean_environment(str(self._scratch)),
            cwd=self._scratch,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )


def _ended(returncode: int, output: str) -> ReleaseError:
    """Return the error for a process that ended without an answer. Only a crash in ONNX Runtime may be the model's."""
    subject = "The process of ONNX Runtime"
    raise_if_ended_from_outside(subject, returncode, output)
    problem = f"{describe_exit(returncode)}: {output}"
    if returncode > 0:
        return Transient(subject, problem, "Check the worker's Python environment: ONNX Runtime was not reached.")
    return RunnerRefused(subject, problem, "Export with another opset.", code="onnxruntime_crashed")


def _write(folder: Path, cases: Sequence[Arrays]) -> None:
    """Write one file per case. Arrays have numbers in it, because a tensor name can be an invalid file name."""
    folder.mkdir(exist_ok=True)
    (folder / "names.json").write_text(json.dumps([list(case) for case in cases]))
    for index, case in enumerate(cases):
        np.savez(folder / f"{index}.npz", *case.values())


def _read(folder: Path) -> Iterator[Arrays]:
    for index, names in enumerate(json.loads((folder / "names.json").read_text())):
        with np.load(folder / f"{index}.npz", allow_pickle=False) as archive:
            yield {name: archive[f"arr_{position}"] for position, name in enumerate(names)}


def _main() -> int:
    end_with_parent()
    # Every import is done by now. The request arrives when the model is exported.
    model, inputs, outputs = json.load(sys.stdin)
    try:
        with OnnxRuntimeRunner(Path(model), OnnxRuntimeOptions()) as runner:
            _write(Path(outputs), [runner.run(case) for case in _read(Path(inputs))])
    except (Refused, Transient) as error:
        Path(outputs, _REFUSAL).write_text(json.dumps(error.to_dict()))
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
