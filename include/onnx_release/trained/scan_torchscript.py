"""What a TorchScript archive may hold when no code of the training run is to run here.

A scripted module is a program in a language of its own: it has no way out of its interpreter but operators and classes
of C++. Two of torch's own operators touch files, and what some library registered can do anything; those are refused by
name before torch opens the archive. Its pickles are read by torch's C++ reader, which makes tensors, scripted objects
and such classes alone.
"""

from __future__ import annotations

import ast
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

from onnx_release.errors import Refused

_NAMESPACES = {"aten", "prim", "prims", "quantized"}
# Operators with a file's name among their arguments.
_FILE_OPERATORS = {"save", "from_file"}
_CLASS = re.compile(rb"__torch__\.torch\.classes\.(\w+)")
_CLASS_NAMESPACES = {b"quantized"}


def is_script_archive(path: Path) -> bool:
    """Say whether the file is what `torch.jit.save` wrote; a pickled module's archive has no code."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    inside = {name.partition("/")[2] for name in names}
    return "constants.pkl" in inside and any(name.startswith("code/") for name in inside)


def refuse_foreign_operators(path: Path) -> None:
    """Raise `Refused`, naming each, when the archive's code calls more than torch's operators on tensors."""
    try:
        with zipfile.ZipFile(path) as archive:
            sources = {name: archive.read(name) for name in archive.namelist() if name.endswith((".py", ".pkl"))}
            problems = [f"{name}: {what}" for name, source in sources.items() for what in _problems(name, source)]
    except (zipfile.BadZipFile, OSError) as error:
        raise Refused(f"model file {path.name}", f"is damaged: {error}", "Log the model again.") from error
    if problems:
        raise Refused(
            f"model file {path.name}",
            f"calls more than torch's operators on tensors: {'; '.join(dict.fromkeys(problems))[:600]}",
            "Script the model without them, or let the deployment trust its training runs: "
            "[onnx_release] allow_pickle = True.",
        )


def _problems(name: str, source: bytes) -> Iterator[str]:
    for namespace in sorted(set(_CLASS.findall(source)) - _CLASS_NAMESPACES):
        yield f"class of torch.classes.{namespace.decode()}"
    if name.endswith(".pkl"):
        return
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        yield "is no code that can be read"
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            yield from _attribute_problems(ast.unparse(node))


def _attribute_problems(dotted: str) -> Iterator[str]:
    parts = dotted.split(".")
    if parts[0] == "torch" and parts[-1] in _FILE_OPERATORS:
        yield dotted
    if parts[0] == "ops" and len(parts) > 2 and (parts[1] not in _NAMESPACES or parts[2] in _FILE_OPERATORS):
        yield dotted
