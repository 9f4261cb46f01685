"""Matrix of supported versions: ``nox`` runs it with the interpreters that are there and writes the result's table.

- ``airflow``: the wheel with its extra ``airflow``, without torch, onnx and MLflow: every import, the DAG files and
  the tests of the edge that need no server.
- ``core``: the wheel with its extra ``core``, without Airflow: the command, and a part of the tests of the core.
- ``install``: a dry run of ``pip install`` into an environment with Airflow. It must change no package there.

``lowest`` is the lower bound of each direct dependency, ``newest`` the newest release. On Linux the wheels of torch on
PyPI include CUDA: ``TORCH_FIND_LINKS`` names a folder or page with wheels for the CPU, and ``TORCH`` one version
(``TORCH=2.13.0+cpu``). Without network every session is skipped.

    nox                                 the whole matrix
    nox -s "airflow-3.11(3.2)"          one cell
    nox -s table                        docs/compatibility.md again, from the results so far
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nox
from packaging.utils import canonicalize_name

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "uv"
nox.options.error_on_missing_interpreters = False
nox.options.stop_on_first_error = False

PYTHONS = ("3.11", "3.12", "3.13")
AIRFLOW = {"3.2-lowest": ("3.2.0", "lowest-direct"), "3.2": ("3.2.2", "highest"), "3.3": ("3.3.2", "highest")}
# The servers of Airflow 3.2 do not start with a later FastAPI. Airflow 3.3 requires the same itself.
HELD = {"3.2": ("fastapi<0.137",)}
RESULTS = Path(".nox") / "compatibility"
PAGE = Path("docs/compatibility.md")
MARKS = ("<!-- results: begin -->", "<!-- results: end -->")
TOOLS = ("pytest==9.2.0", "pytest-timeout==2.4.0")
# The packages come from the wheel, not from the folders.
PYTEST = ("python", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "pythonpath=.")
# The tests of the edge whose imports need neither MLflow's client nor torch.
EDGE_TESTS = (
    "test_airflow_urls.py", "test_compat.py", "test_dag.py", "test_parameter_checks.py",
    "test_params.py", "test_provider.py", "test_validation.py", "deployment/test_options.py", "ui/test_view.py",
)  # fmt: skip
CORE_TESTS = (
    "artifact/test_mlflow_package.py", "check", "export/test_contract.py", "export/test_torch_patches.py",
    "latency/test_host_lock.py", "provenance/test_documents.py", "report/test_html.py", "runners",
    "trained/test_checkpoints.py",
)  # fmt: skip
# Packages that a row of the table names.
NAMED = {
    "airflow": ("apache-airflow", "apache-airflow-providers-amazon", "fastapi", "pydantic", "sqlalchemy"),
    "core": ("torch", "onnx", "onnxscript", "onnxruntime", "mlflow", "numpy"),
}


@nox.session(python=PYTHONS)
@nox.parametrize("airflow", list(AIRFLOW), ids=list(AIRFLOW))
def airflow(session: nox.Session, airflow: str) -> None:
    """Import everything of the edge, parse the DAG files and run tests, without torch and MLflow."""
    version, resolution = AIRFLOW[airflow]
    _need_network(session)
    wheel = _wheel(session)
    with _recorded(session, f"Airflow {airflow}", "airflow"):
        _install(session, wheel, "airflow", resolution, f"apache-airflow=={version}", *HELD.get(version[:3], ()))
        home = {"AIRFLOW_HOME": str(Path(session.create_tmp()).absolute()), "AIRFLOW__CORE__LOAD_EXAMPLES": "False"}
        session.run("python", "-c", "import airflow", env=home)
        session.run(
            "python", "-c", _IMPORT_ALL.format(package="airflow_onnx", absent=("torch", "onnx", "mlflow")), env=home
        )
        session.run("python", "-c", _PARSE, env=home)
        tests = [f"tests/edge/{name}" for name in EDGE_TESTS]
        session.run(*PYTEST, "--noconftest", *tests, env=home)


@nox.session(python=PYTHONS)
@nox.parametrize("resolution", ["lowest", "newest"], ids=["lowest", "newest"])
def core(session: nox.Session, resolution: str) -> None:
    """Run the command and a part of the tests of the core, without Airflow."""
    _need_network(session)
    wheel = _wheel(session)
    with _recorded(session, f"core, {resolution}", "core"):
        torch = [f"torch=={os.environ['TORCH']}"] if "TORCH" in os.environ else []
        links = [f"--find-links={os.environ['TORCH_FIND_LINKS']}"] if "TORCH_FIND_LINKS" in os.environ else []
        chosen = "lowest-direct" if resolution == "lowest" else "highest"
        _install(session, wheel, "core", chosen, *links, *torch, "psutil==7.2.2", "pytorch-lightning==2.6.6")
        session.run("python", "-c", _IMPORT_ALL.format(package="onnx_release", absent=("airflow",)))
        session.run("onnx-release", "--help", silent=True)
        tests = [f"tests/core/{name}" for name in CORE_TESTS]
        # The tests need the models of `examples`, and the folder beside it would hide the package of the wheel.
        beside = Path(session.create_tmp()).absolute() / "examples"
        shutil.copytree("include/examples", beside / "examples", dirs_exist_ok=True)
        session.run(*PYTEST[:-1], f"pythonpath=. {beside}", *tests)


@nox.session(python=PYTHONS[0])
@nox.parametrize("airflow", ["3.2.2", "3.3.2"], ids=["3.2.2", "3.3.2"])
def install(session: nox.Session, airflow: str) -> None:
    """Compare an environment that has Airflow with pip's plan for each extra: nothing there may change.

    Workers of this package need MLflow's client. The environment has it before the extra ``worker`` is planned, because
    MLflow's own upper bounds move packages of an Airflow without MLflow.
    """
    _need_network(session)
    wheel = _wheel(session)
    session.install(f"apache-airflow=={airflow}", "apache-airflow-providers-amazon", "pip")
    report = Path(session.create_tmp()) / "report.json"
    for extra in ("", "[airflow]", "[worker]"):
        if extra == "[worker]":
            session.install(f"apache-airflow=={airflow}", "mlflow>=3.12")
        before = {canonicalize_name(name) for name in _packages(session)}
        plan = ["--dry-run", "--quiet", "--report", str(report), f"airflow-onnx-release{extra} @ {wheel.as_uri()}"]
        session.run("python", "-m", "pip", "install", *plan)
        planned = {canonicalize_name(item["metadata"]["name"]): item["metadata"]["version"] for item in _items(report)}
        changed = {name: version for name, version in planned.items() if name in before}
        if changed:
            session.error(
                f"pip would change {changed} of the environment with Airflow {airflow}, extra {extra or 'none'}"
            )
        session.log(f"Airflow {airflow}, extra {extra or 'none'}: {len(planned)} new packages, none changed")
    session.install("--no-deps", str(wheel))
    session.run("python", "-c", "import airflow")


@nox.session(venv_backend="none")
def table(session: nox.Session) -> None:
    """Write the table of docs/compatibility.md from the results of all cells."""
    rows = sorted(
        (json.loads(path.read_text()) for path in RESULTS.glob("*.json")), key=lambda row: (row["name"], row["python"])
    )
    lines = ["| cell | Python | result | date | versions |", "|---|---|---|---|---|"]
    for row in rows:
        versions = ", ".join(f"{name.removeprefix('apache-')} {version}" for name, version in row["versions"].items())
        lines.append(f"| {row['name']} | {row['python']} | {row['result']} | {row['date']} | {versions} |")
    before, _, rest = PAGE.read_text().partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    PAGE.write_text(f"{before}{MARKS[0]}\n" + "\n".join(lines) + f"\n{MARKS[1]}{after}")
    session.log(f"{len(rows)} rows written to {PAGE}")


_UV = (sys.executable, "-m", "uv")
_IMPORT_ALL = """
import importlib, pkgutil, sys, {package}
for module in pkgutil.walk_packages({package}.__path__, "{package}."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
assert not {absent!r} or not set({absent!r}) & set(sys.modules), "a package that must be absent was imported"
"""
_PARSE = "import pathlib, runpy; [runpy.run_path(str(path)) for path in pathlib.Path('dags').glob('*.py')]"


@contextmanager
def _recorded(session: nox.Session, name: str, kind: str) -> Iterator[None]:
    """Write the outcome of a cell to `RESULTS`, passed or failed, with the versions that are installed at its end."""
    result = "failed"
    try:
        yield
        result = "passed"
    finally:
        found = _packages(session)
        row = {
            "name": name,
            "python": session.python,
            "result": result,
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "versions": {package: found[package] for package in NAMED[kind] if package in found},
        }
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / f"{name}-{session.python}.json").write_text(json.dumps(row))


def _install(session: nox.Session, wheel: Path, extra: str, resolution: str, *more: str) -> None:
    """Install the dependencies of an extra, then the wheel alone. Dependencies of a wheel would not count as direct."""
    session.install(f"--resolution={resolution}", "-r", "pyproject.toml", "--extra", extra, *TOOLS, *more)
    session.install("--no-deps", str(wheel))


def _packages(session: nox.Session) -> dict[str, str]:
    listed = session.run(*_UV, "pip", "list", "--format=json", "--quiet", silent=True, external=True)
    return {package["name"]: package["version"] for package in json.loads(str(listed))}


def _wheel(session: nox.Session) -> Path:
    folder = Path(tempfile.mkdtemp(dir=session.create_tmp()))
    session.run(*_UV, "build", "--wheel", "--quiet", f"--out-dir={folder}", external=True)
    (path,) = folder.glob("*.whl")
    return path.absolute()


def _items(report: Path) -> list[dict[str, dict[str, str]]]:
    items: list[dict[str, dict[str, str]]] = json.loads(report.read_text())["install"]
    return [item for item in items if item["metadata"]["name"] != "airflow-onnx-release"]


def _need_network(session: nox.Session) -> None:
    try:
        socket.create_connection(("pypi.org", 443), timeout=5).close()
    except OSError:
        session.skip("the package index is not reachable")
