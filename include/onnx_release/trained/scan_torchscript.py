"""Scan of a TorchScript archive for operators that can touch files or run foreign code.

A scripted module is a program in its own language. It leaves its interpreter only through operators and classes of C++.
Two of torch's own operators touch files, and operators of other libraries can do anything. Both are refused by name
before torch opens the archive. torch's C++ reader unpickles only tensors, scripted objects and such classes.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from onnx_release.errors import TrainedModelRefused

_NAMESPACES = {"aten", "prim", "prims", "quantized"}
# Operators with a file name among their arguments.
_FILE_OPERATORS = {"save", "from_file"}
_CLASS = re.compile(rb"__torch__\.torch\.classes\.(\w+)")
_CLASS_NAMESPACES = {b"quantized"}


def is_script_archive(path: Path) -> bool:
    """Return True for a file of `torch.jit.save`. The archive of a pickled module has no code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names}
    return "constants.pkl" in inside and any(name.startswith("code/") for name in inside)


def refuse_foreign_operators(path: Path) -> None:
    """Refuse an archive whose code uses more than torch's operators on tensors.

    Args:
        path: A file of `torch.jit.save`.

    Raises:
        TrainedModelRefused: The message lists each operator and class.
    """
    subject = f"The model file {path.name}"
    try:
        with zipfile.ZipFile(path) as archive:
            sources = {name: archive.read(name) for name in archive.namelist() if name.endswith((".py", ".pkl"))}
    except (zipfile.BadZipFile, OSError) as error:
        raise TrainedModelRefused(
            subject, f"is damaged: {error}", "Log the model again.", code="damaged_torchscript"
        ) from error
    problems = [f"{name}: {problem}" for name, source in sources.items() for problem in _problems(name, source)]
    if problems:
        raise TrainedModelRefused(
            subject,
            f"uses more than torch's operators on tensors: {'; '.join(dict.fromkeys(problems))[:600]}",
            "Script the model without them. To trust every training run instead, set "
            "[onnx_release] allow_pickle = True.",
            code="foreign_operators",
        )


def _problems(name: str, source: bytes) -> Iterator[str]:
    for namespace in sorted(set(_CLASS.findall(source)) - _CLASS_NAMESPACES):
        yield f"class of torch.classes.{namespace.decode()}"
    if name.endswith(".pkl"):
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield "unreadable code"
        return
    for node in ast.walk(tree):
        if not isinstance(node, ast.Attribute):
            continue
        dotted = ast.unparse(node)
        parts = dotted.split(".")
        if parts[0] == "torch" and parts[-1] in _FILE_OPERATORS:
            yield dotted
        if parts[0] == "ops" and len(parts) > 2 and (parts[1] not in _NAMESPACES or parts[2] in _FILE_OPERATORS):
            yield dotted
