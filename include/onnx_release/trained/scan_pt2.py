"""Scan of a pt2 archive for anything that could run code of the training run.

`torch.export.load` can run code of an archive in three ways. It unpickles sample inputs, constants and some weights. It
loads compiled libraries. It passes the graph's symbolic sizes to sympy, which evaluates them as Python. The guards on
shapes are compiled and run with the model. The functions that a graph may call are checked by torch's own verifier.
The scan covers all of these before the archive is loaded. It uses the reader that loads it, which sees the same bytes.
"""

from __future__ import annotations

import ast
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from onnx_release.errors import TrainedModelRefused
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.text import shorten

_TEXT = re.compile(rb"[A-Za-z0-9._-]{0,64}\n?")
_PAYLOAD_CONFIG = re.compile(r"data/(weights|constants)/[^/]+_config\.json")
_RAW_PREFIXES = ("weight_", "tensor_")

# The only operator that opens a file that the graph names, and may write to it.
_FILE_OPERATOR = "torch.ops.aten.from_file"
# The syntax of sizes and guards. Attributes are checked by name.
_EXPRESSION_NODES = (
    ast.Expression, ast.Load, ast.Name, ast.Constant, ast.Call, ast.keyword, ast.Subscript, ast.Attribute,
    ast.BinOp, ast.UnaryOp, ast.BoolOp, ast.Compare, ast.IfExp, ast.Tuple, ast.List,
    ast.operator, ast.unaryop, ast.boolop, ast.cmpop,
)  # fmt: skip
_FUNCTIONS = re.compile(
    r"Symbol|Integer|Float|Rational|Add|Mul|Pow|Mod|Max|Min|Abs|And|Or|Not|Eq|Ne|Lt|Le|Gt|Ge|Equality|Unequality|"
    r"GreaterThan|LessThan|StrictGreaterThan|StrictLessThan|Piecewise|ExprCondPair|BooleanTrue|BooleanFalse|floor|ceiling|"
    r"sqrt|log|log2|exp|PythonMod|CleanDiv|FloorDiv|IntTrueDiv|FloatTrueDiv|ModularIndexing|Where|CeilDiv|LShift|RShift|"
    r"PowByNatural|FloatPow|IsNonOverlappingAndDenseIndicator|TruncToFloat|TruncToInt|CeilToInt|FloorToInt|RoundToInt|"
    r"RoundDecimal|ToFloat|Identity|BitwiseFn_\w+|OpaqueUnaryFn_\w+|max|min|len|int|float|abs|sym_\w+"
)
# Names and numbers of symbols. torch pastes these texts into code, where another text could end its quotes.
_WORD = re.compile(r"[\w.+-]{1,60}")
_ATTRIBUTES = {"size", "shape", "stride", "storage_offset", "dim", "numel", "math", "ceil", "floor", "trunc", "sqrt",
               "isnan", "inf", "torch", "sym_max", "sym_min", "sym_not", "sym_ite", "sym_float", "sym_int"}  # fmt: skip


def refuse_code(path: Path) -> None:
    """Refuse an archive when loading or running it could run other code.

    Args:
        path: A pt2 archive.

    Raises:
        TrainedModelRefused: The message lists the records and expressions.
    """
    subject = f"The model file {path.name}"
    try:
        # The private reader that torch.export.load uses. Remove when torch has a public reader of pt2 archives.
        archive = torch._C.PyTorchFileReader(str(path))
        problems = list(_problems(archive))
    except RuntimeError as error:
        raise_machine_failure(error)
        raise TrainedModelRefused(
            subject,
            f"is not a pt2 archive: {shorten(error)}",
            "Log the model again from the training code. If the download was cut short, repeat the export.",
            code="damaged_pt2",
        ) from error
    if problems:
        raise TrainedModelRefused(
            subject,
            f"contains more than tensors and a graph, and loading it could run any code: {'; '.join(problems[:10])}",
            "Log plain tensors and torch's own operators (tensors as example inputs, no custom objects). "
            "To trust its experiment, name it in [onnx_release] pickle_experiments; allow_pickle = True trusts all.",
            code="code_in_pt2",
        )


def _problems(archive: torch._C.PyTorchFileReader) -> Iterator[str]:
    names = list(archive.get_all_records())
    # Of two records with one name, readers choose differently, and torch's reader ignores upper and lower case.
    if len({name.casefold() for name in names}) != len(names):
        yield "two records with one name"
    if "archive_format" not in names or archive.get_record("archive_format") != b"pt2":
        yield "a missing or other record archive_format (archives of torch 2.7 and older contain pickles)"
    for name in sorted(set(names) - _raw_records(archive)):
        content = archive.get_record(name)
        if _TEXT.fullmatch(content):
            continue
        if name.startswith("models/"):
            yield from (f"{name}: {problem}" for problem in _graph_problems(content))
        elif _json(content) is None:
            try:
                torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
            except Exception as error:  # noqa: BLE001 - torch's restricted unpickler rejects it
                raise_machine_failure(error)
                yield f"record {name}"


def _raw_records(archive: torch._C.PyTorchFileReader) -> set[str]:
    """Return the names of the records that are read as the bytes of a tensor and never unpickled."""
    raw: set[str] = set()
    pickled: set[str] = set()
    for name in filter(_PAYLOAD_CONFIG.fullmatch, archive.get_all_records()):
        config = _json(archive.get_record(name))
        entries = config.get("config") if isinstance(config, dict) else None
        for entry in entries.values() if isinstance(entries, dict) else ():
            if isinstance(entry, dict) and isinstance(file := entry.get("path_name"), str):
                is_raw = entry.get("use_pickle") is False and file.startswith(_RAW_PREFIXES)
                (raw if is_raw else pickled).add(f"{name.rpartition('/')[0]}/{file}")
    return raw - pickled


def _json(content: bytes) -> Any:
    try:
        return json.loads(content.decode())
    except (ValueError, RecursionError):
        return None


def _graph_problems(content: bytes) -> Iterator[str]:
    graph = _json(content)
    if not isinstance(graph, dict):
        yield "is not a JSON object"
        return
    for key, value in _walk(graph):
        texts = value if key == "guards_code" and isinstance(value, list) else [value]
        if key == "target" and isinstance(value, str) and value.startswith(_FILE_OPERATOR):
            yield f"calls {value!r:.120}"
        elif key in ("expr_str", "guards_code"):
            yield from (f"evaluates {text!r:.120}" for text in texts if not _is_arithmetic(text))


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield every key and value of nested JSON."""
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _walk(item)
    if isinstance(value, dict):
        yield from value.items()


def _is_arithmetic(text: object) -> bool:
    try:
        nodes = list(ast.walk(ast.parse(str(text), mode="eval")))
    except (SyntaxError, ValueError, RecursionError):
        return False
    if not isinstance(text, str) or set("\\\n#") & set(text):
        return False
    for node in nodes:
        harmless = isinstance(node, _EXPRESSION_NODES)
        if isinstance(node, ast.Call):
            name = node.func.id if isinstance(node.func, ast.Name) else ""
            harmless = isinstance(node.func, ast.Attribute) or bool(_FUNCTIONS.fullmatch(name))
        elif isinstance(node, ast.Attribute):
            harmless = node.attr in _ATTRIBUTES
        elif isinstance(node, ast.Name):
            harmless = "__" not in node.id
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            harmless = bool(_WORD.fullmatch(node.value))
        if not harmless:
            return False
    return True
