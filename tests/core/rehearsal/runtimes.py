"""Interpreters that stand for another version of ONNX Runtime: one that differs, and some that fail."""

from __future__ import annotations

import sys
from pathlib import Path

# The real ONNX Runtime with other kernels: each Relu is computed as a LeakyRelu, and each Gelu as a Relu.
_DIFFERS = """
import os, runpy, sys, tempfile
import onnx, onnxruntime

class Session(onnxruntime.InferenceSession):
    def __init__(self, path, *arguments, **named):
        model = onnx.load(path)
        for node in model.graph.node:
            if node.op_type in ("Relu", "Gelu"):
                node.op_type = {"Relu": "LeakyRelu", "Gelu": "Relu"}[node.op_type]
                del node.attribute[:]
        changed = os.path.join(tempfile.mkdtemp(), "changed.onnx")
        onnx.save(model, changed)
        super().__init__(changed, *arguments, **named)

onnxruntime.InferenceSession = Session
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def differing_python(folder: Path) -> Path:
    """Return an interpreter whose ONNX Runtime computes Relu and Gelu otherwise."""
    (folder / "differs.py").write_text(_DIFFERS)
    shim = f'case "$2" in -c) exec {sys.executable} "$@";; esac\nexec {sys.executable} {folder}/differs.py "$2" "$3"'
    return python_of(folder, shim)


def python_of(folder: Path, script: str, name: str = "python") -> Path:
    """Return an interpreter that is a shell script."""
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path
