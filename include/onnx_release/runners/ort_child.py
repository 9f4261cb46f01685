"""ONNX Runtime's side in a process of its own, which imports no more than that takes.

``python -m onnx_release.runners.ort_child MODEL INPUTS OUTPUTS`` runs every case in the folder INPUTS.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from onnx_release.errors import Refused
from onnx_release.processes import clean_environment, end_with_parent, how_it_ended
from onnx_release.runners.ort_runner import OrtOptions, OrtRunner
from onnx_release.samples import Arrays


def run_apart(model: Path, cases: Sequence[Arrays]) -> list[Arrays]:
    """Return each case's outputs by name; raises `Refused` when the model does not run, or the process crashes."""
    with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        request, answer = Path(scratch, "inputs"), Path(scratch, "outputs")
        _write(request, cases)
        command = [sys.executable, "-m", __name__, str(model.resolve()), str(request), str(answer)]
        done = subprocess.run(
            command,
            env=clean_environment(scratch),
            cwd=scratch,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            check=False,
            text=True,
            errors="replace",
        )
        if done.returncode:
            said = " ".join(done.stdout.split())[-600:]
            raise Refused("ONNX Runtime", said or how_it_ended(done.returncode), "Export with another opset.")
        return list(_read(answer))


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


def _main(model: str, request: str, answer: str) -> int:
    end_with_parent()
    try:
        with OrtRunner(Path(model), OrtOptions()) as runner:
            _write(Path(answer), [runner.run(case) for case in _read(Path(request))])
    except Refused as refusal:
        sys.stdout.write(f"{refusal.subject} {refusal.problem}\n")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(*sys.argv[1:]))
