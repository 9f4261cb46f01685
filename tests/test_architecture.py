"""The import table of docs/architecture.md, held over every file, and what parsing a DAG may cost."""

from __future__ import annotations

import ast
import graphlib
import json
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CORE = ROOT / "include" / "onnx_release"
CLI = CORE / "cli"
EDGE = ROOT / "plugins" / "airflow_onnx"
LIGHT_CORE = ("records", "errors", "limits", "machine_faults", "scratch", "text", "training_runs")
HEAVY = {"torch", "onnx", "onnxruntime", "mlflow", "boto3", "botocore", "airflow"}


def _imports(tree: ast.AST, inside: bool = False) -> Iterator[tuple[str, bool]]:
    """Yield each imported module and whether the import happens only when a function runs."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, inside) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield node.module, inside
            # `from mlflow import models` names a module in its second half.
            yield from ((f"{node.module}.{alias.name}", inside) for alias in node.names)
        else:
            yield from _imports(node, inside or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def _top_imports(path: Path) -> dict[str, set[str]]:
    """Return the modules that a file imports: at module level, and inside functions."""
    found: dict[str, set[str]] = {"module": set(), "function": set()}
    for name, inside in _imports(ast.parse(path.read_text())):
        found["function" if inside else "module"].add(name)
    return found


def _roots(names: set[str]) -> set[str]:
    return {name.split(".")[0] for name in names}


def _files(folder: Path) -> list[Path]:
    files = sorted(folder.rglob("*.py"))
    assert files, f"no files in {folder}"
    return files


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", _files(CORE), ids=_name)
def test_core_opens_one_heavy_library_a_file_and_never_the_edge(path: Path) -> None:
    imports = _top_imports(path)
    everything = imports["module"] | imports["function"]
    roots = _roots(everything)
    assert not roots & {"airflow", "airflow_onnx", "boto3", "botocore", "requests", "httpx"}
    heavy = roots & {"torch", "onnx", "onnxruntime", "mlflow"}
    assert len(heavy) <= 1, f"one heavy library a file, not {heavy}"
    if path.parent == CLI and path.name.startswith("mlflow_"):
        assert "mlflow" not in _roots(imports["module"])
    elif "mlflow" in heavy:
        assert path.name in {"mlflow_model.py", "mlflow_package.py", "signature.py"}
        allowed = ("mlflow.models", "mlflow.types", "mlflow.pyfunc")
        assert all(name == "mlflow" or name.startswith(allowed) for name in everything if name.startswith("mlflow"))


@pytest.mark.parametrize("path", _files(CLI), ids=_name)
def test_the_command_loads_its_work_inside_functions(path: Path) -> None:
    core = {name for name in _top_imports(path)["module"] if name.startswith("onnx_release.")}
    assert {name.split(".")[1] for name in core} <= {*LIGHT_CORE, "cli"}


LIGHT_FILES = [
    *(CORE / f"{name}.py" for name in ("errors", "limits", "machine_faults", "scratch", "text")),
    *_files(CORE / "records"),
    *_files(CORE / "training_runs"),
]


@pytest.mark.parametrize("path", LIGHT_FILES, ids=_name)
def test_records_errors_and_limits_use_the_standard_library_and_pydantic_alone(path: Path) -> None:
    imports = _top_imports(path)
    ours = tuple(f"onnx_release.{other}" for other in LIGHT_CORE)
    for name in imports["module"] | imports["function"]:
        root = name.split(".")[0]
        assert root in {*sys.stdlib_module_names, "pydantic", "pydantic_core"} or name.startswith(ours), name


@pytest.mark.parametrize("path", _files(EDGE), ids=_name)
def test_edge_imports_heavy_libraries_only_inside_functions(path: Path) -> None:
    imports = _top_imports(path)
    assert not _roots(imports["module"]) & {"torch", "onnx", "onnxruntime", "mlflow", "boto3", "botocore"}
    assert not _roots(imports["function"]) & {"torch", "onnx", "onnxruntime"}, "that is the core's work"
    core = {name for name in imports["module"] if name.startswith("onnx_release.")}
    assert {name.split(".")[1] for name in core} <= set(LIGHT_CORE)
    assert not {name for name in imports["module"] if name.startswith("airflow.providers")}


@pytest.mark.parametrize("path", _files(ROOT / "dags"), ids=_name)
def test_dags_only_wire(path: Path) -> None:
    imports = _top_imports(path)
    assert not imports["function"]
    outside = {root for root in _roots(imports["module"]) if root not in sys.stdlib_module_names}
    assert outside <= {"airflow", "airflow_onnx"}


def test_the_tree_of_the_docs_names_every_module() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    tree = page.split("## Rooms")[1].split("```")[1]
    words = set(re.findall(r"\w+", tree))
    modules = {path.stem for path in (*_files(CORE), *_files(EDGE)) if path.name != "__init__.py"}
    assert modules - words == set()


def test_the_rooms_of_the_core_import_each_other_without_a_circle() -> None:
    rooms: dict[str, set[str]] = {}
    for path in _files(CORE):
        imports = _top_imports(path)
        names = {name.split(".")[1] for name in imports["module"] | imports["function"] if "onnx_release." in name}
        room = path.relative_to(CORE).parts[0].removesuffix(".py")
        rooms.setdefault(room, set()).update(names - {room})
    # Raises CycleError, which names the circle.
    order = list(graphlib.TopologicalSorter(rooms).static_order())
    assert [room for room in order if room != "__init__"][-2:] == ["run_step", "cli"]


def _loaded_by(statements: Iterable[str], *libraries: str) -> dict[str, list[str]]:
    """Run statements one after the other in a fresh process. Return those after which it has loaded a library."""
    # One process for all of them: most of its time is the import of Airflow.
    code = f"""
import json, runpy, sys
sys.path[:0] = {[str(ROOT / "include"), str(ROOT / "plugins")]!r}
found = {{}}
for statement in {list(statements)!r}:
    exec(statement)
    found[statement] = sorted(set({libraries!r}) & set(sys.modules))
print(json.dumps({{statement: names for statement, names in found.items() if names}}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, list[str]] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def test_parsing_the_dags_loads_no_heavy_library() -> None:
    dags = [f"runpy.run_path({str(path)!r})" for path in _files(ROOT / "dags")]
    assert dags
    assert _loaded_by(dags, "torch", "onnx", "onnxruntime", "mlflow", "boto3") == {}


def test_the_process_of_a_pickle_has_one_thread_before_it_is_isolated() -> None:
    # numpy starts threads when it is imported, and a process with threads cannot enter a namespace.
    assert _loaded_by(["import onnx_release.run_step"], "numpy", "torch") == {}


def test_what_runs_no_model_in_pytorch_does_not_load_it() -> None:
    modules = (
        "check.smoke_test",
        "check.static_checks",
        "rehearsal.rehearse",
        "report.release_report",
        "runners.onnxruntime_process",
    )
    assert _loaded_by([f"import onnx_release.{module}" for module in modules], "torch") == {}
