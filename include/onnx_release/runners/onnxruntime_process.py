"""ONNX Runtime's side in a process of its own, which imports no more than that takes.

``python -m onnx_release.runners.onnxruntime_process`` reads ``[MODEL, INPUTS, OUTPUTS]`` as JSON from
standard input and runs every case in the folder INPUTS.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np

from onnx_release.errors import Refused
from onnx_release.runners.child_process import clean_environment, describe_exit, end_with_parent
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.trained.arrays import Arrays


class OnnxRuntimeProcess:
    """A process of its own for one model, which imports ONNX Runtime while the model is not yet there.

    It starts as the context is entered, on a core that its parent has no use for meanwhile. `run` gives it the model,
    or starts another when it is used up; the end of the context ends one that still waits.
    """

    def __init__(self) -> None:
        self._waiting: subprocess.Popen[str] | None = None
        self._scratch = tempfile.TemporaryDirectory(prefix="onnx-release-")

    def __enter__(self) -> Self:
        self._waiting = self._start()
        return self

    def __exit__(self, *exception: object) -> None:
        if self._waiting is not None:
            self._waiting.kill()
            self._waiting.communicate()
        self._scratch.cleanup()

    def run(self, model: Path, cases: Sequence[Arrays]) -> list[Arrays]:
        """Return each case's outputs by name; raises `Refused` when the model does not run, or the process crashes."""
        process, self._waiting = self._waiting or self._start(), None
        with tempfile.TemporaryDirectory(dir=self._scratch.name) as folder:
            request, answer = Path(folder, "inputs"), Path(folder, "outputs")
            _write(request, cases)
            said, _ = process.communicate(json.dumps([str(model.resolve()), str(request), str(answer)]))
            if process.returncode:
                text = " ".join(said.split())[-600:]
                raise Refused("ONNX Runtime", text or describe_exit(process.returncode), "Export with another opset.")
            return list(_read(answer))

    def _start(self) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", __name__],
            env=clean_environment(self._scratch.name),
            cwd=self._scratch.name,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )


def _write(folder: Path, cases: Sequence[Arrays]) -> None:
    """Keep arrays under numbers: a tensor's name is no name for a file."""
    folder.mkdir()
    (folder / "names.json").write_text(json.dumps([list(case) for case in cases]))
    for index, case in enumerate(cases):
        np.savez(folder / f"{index}.npz", *case.values())


def _read(folder: Path) -> Iterator[Arrays]:
    for index, names in enumerate(json.loads((folder / "names.json").read_text())):
        with np.load(folder / f"{index}.npz", allow_pickle=False) as archive:
            yield {name: archive[f"arr_{position}"] for position, name in enumerate(names)}


def _main() -> int:
    end_with_parent()
    # All that it imports is here by now; what it is to run may take a while to come.
    model, request, answer = json.load(sys.stdin)
    try:
        with OnnxRuntimeRunner(Path(model), OnnxRuntimeOptions()) as runner:
            _write(Path(answer), [runner.run(case) for case in _read(Path(request))])
    except Refused as refusal:
        sys.stdout.write(f"{refusal.subject} {refusal.problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main())
