"""Names of varying dimensions: the batch, identifiers for torch and ONNX, and sizes computed from other ones."""

from __future__ import annotations

import ast
import keyword
import operator
import re
from collections.abc import Callable, Iterable, Mapping, Sequence

from onnx_release.records import TensorSpec

_LENGTH_MAX = 64
_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    # torch writes an exact division with one slash.
    ast.Div: operator.floordiv,
}


def varying_names(spec: TensorSpec) -> list[str]:
    """Return the names of the varying dimensions of a tensor, in order and without computed ones."""
    return [size for size in spec.shape if isinstance(size, str) and size.isidentifier()]


def batch_name(inputs: Sequence[TensorSpec]) -> str | None:
    """Return the name of the batch: ``batch``, else the first varying dimension that the inputs share, else None."""
    varying = [varying_names(spec) for spec in inputs]
    if any("batch" in names for names in varying):
        return "batch"
    # A dimension that is second in one input is not the batch of another: ids (n, length), positions (length).
    later = {name for names in varying for name in names[1:]}
    first = {names[0] for names in varying if names}
    first = first - later or first
    return first.pop() if len(first) == 1 else None


def identifiers(names: Iterable[str]) -> dict[str, str]:
    """Return an identifier for each name: ASCII letters, digits and underscores.

    torch accepts only identifiers, and ONNX recommends them. An identifier keeps its name, and different names get
    different identifiers.
    """
    names = list(dict.fromkeys(names))
    found = {name: name for name in names if _is_identifier(name)}
    for name in names:
        if name not in found:
            plain = re.sub(r"\W", "_", name, flags=re.ASCII)[:_LENGTH_MAX]
            plain = plain if _is_identifier(plain) and plain.strip("_") else f"dim_{plain.strip('_')}".rstrip("_")
            unique, count = plain, 2
            while unique in found.values():
                unique, count = f"{plain}_{count}", count + 1
            found[name] = unique
    return found


def is_computed(name: str, others: Iterable[str]) -> bool:
    """Return True for an expression of other dimensions, such as ``length + 1``."""
    sizes = dict.fromkeys(others, 1)
    return not name.isidentifier() and not name.isdecimal() and computed_size(name, sizes) is not None


def computed_size(expression: str, sizes: Mapping[str, int]) -> int | None:
    """Return the value of an expression, or None when it has an unknown name or operation."""
    try:
        return _value(ast.parse(expression, mode="eval").body, sizes)
    except (SyntaxError, ValueError, KeyError, ZeroDivisionError, RecursionError, MemoryError):
        return None


def _value(node: ast.expr, sizes: Mapping[str, int]) -> int:
    if isinstance(node, ast.Name):
        return sizes[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return node.value
    if isinstance(node, ast.BinOp):
        return _OPERATIONS[type(node.op)](_value(node.left, sizes), _value(node.right, sizes))
    raise ValueError("the expression has an operation that sizes do not have")


def _is_identifier(name: str) -> bool:
    return name.isidentifier() and name.isascii() and not keyword.iskeyword(name) and len(name) <= _LENGTH_MAX
