"""Scan of a TorchScript archive for operators that can touch files or run foreign code.

A scripted module is a program in its own language. It leaves its interpreter only through operators and classes of C++.
Two of torch's own operators touch files, and operators of other libraries can do anything. Both are refused by name
before torch opens the archive. torch's C++ reader unpickles only tensors, scripted objects and such classes.
"""

from __future__ import annotations

import ast
import re
import zipfile
from pathlib import Path

from onnx_release.errors import TrainedModelRefused
from onnx_release.machine_faults import raise_machine_failure

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
        raise_machine_failure(error)
        raise TrainedModelRefused(
            subject, f"is damaged: {error}", "Log the model again.", code="damaged_torchscript"
        ) from error
    problems = []
    for name, source in sources.items():
        foreign = sorted(set(_CLASS.findall(source)) - _CLASS_NAMESPACES)
        problems += [f"{name}: class of torch.classes.{namespace.decode()}" for namespace in foreign]
        if name.endswith(".pkl"):
            continue
        try:
            tree = ast.parse(source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            problems.append(f"{name}: unreadable code")
            continue
        for dotted in (ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)):
            parts = dotted.split(".")
            writes = parts[0] == "torch" and parts[-1] in _FILE_OPERATORS
            operator = parts[1:3] if parts[0] == "ops" and len(parts) > 2 else None
            if writes or (operator and (operator[0] not in _NAMESPACES or operator[1] in _FILE_OPERATORS)):
                problems.append(f"{name}: {dotted}")
    if problems:
        raise TrainedModelRefused(
            subject,
            f"uses more than torch's operators on tensors: {'; '.join(dict.fromkeys(problems))[:600]}",
            "Script the model without them. To trust its experiment, name it in [onnx_release] pickle_experiments; "
            "allow_pickle = True trusts all.",
            code="foreign_operators",
        )
