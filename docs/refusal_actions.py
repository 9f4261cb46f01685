"""The action for each refusal code: the text in the code that refuses, or an entry of refusal_actions.toml."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from airflow_onnx import errors as edge
from onnx_release import errors as core

ROOT = Path(__file__).resolve().parents[1]
STAGES = (*core.STAGES, *edge.STAGES)
_NAMES = {stage.__name__ for stage in STAGES}
_TABLE: dict[str, dict[str, str]] = tomllib.loads((ROOT / "docs" / "refusal_actions.toml").read_text())


def action(stage: str, code: str) -> str:
    """Return the action for a code, or an empty text if neither the table nor the code has one."""
    found = _TABLE.get(stage, {}).get(code) or _TABLE["any_stage"].get(code)
    # The texts of the code are plain, and a table is Markdown.
    return found or re.sub(r"([*|])", r"\\\1", _in_code().get((stage, code), "")).replace("<", "&lt;")


@cache
def _in_code() -> dict[tuple[str, str], str]:
    """Return the actions that are plain texts in core and edge, by stage and code."""
    found: dict[tuple[str, str], str] = {}
    for package in ("include/onnx_release", "plugins/airflow_onnx"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for call, names in _calls(ast.parse(path.read_text()), {}):
                code = next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)
                text = next(_texts(call.args[2], names), "") if len(call.args) > 2 else ""
                if isinstance(code, ast.Constant) and text:
                    found.setdefault((_name(call), str(code.value)), text)
    return found


def _calls(tree: ast.AST, names: dict[str, ast.expr]) -> Iterator[tuple[ast.Call, dict[str, ast.expr]]]:
    """Yield each call of a refusal, with the values of the names in its function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            names[node.targets[0].id] = node.value
        if isinstance(node, ast.Call) and _name(node) in _NAMES:
            yield node, names
        inside = dict(names) if isinstance(node, ast.FunctionDef) else names
        yield from _calls(node, inside)


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else getattr(call.func, "attr", "")


def _texts(node: ast.expr, names: dict[str, ast.expr]) -> Iterator[str]:
    """Yield the texts without a value that an action may have."""
    if isinstance(node, ast.Constant):
        yield str(node.value)
    elif isinstance(node, ast.Name) and node.id in names:
        yield from _texts(names[node.id], {name: value for name, value in names.items() if name != node.id})
    elif isinstance(node, ast.IfExp):
        yield from (*_texts(node.body, names), *_texts(node.orelse, names))
