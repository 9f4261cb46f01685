"""The wheel and the source archive: contents, metadata, declared packages, and an installation beside other copies."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from collections.abc import Iterator
from email import message_from_bytes
from email.message import Message
from importlib import metadata
from pathlib import Path

import pytest

import onnx_release
from airflow_onnx import installation

ROOT = Path(__file__).parents[1]
PACKAGES = {"airflow_onnx": ROOT / "plugins" / "airflow_onnx", "onnx_release": ROOT / "include" / "onnx_release"}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The names to install, where they differ from the names to import.
DISTRIBUTIONS = {
    "cyclonedx": "cyclonedx-python-lib",
    "in_toto_attestation": "in-toto-attestation",
    "model_signing": "model-signing",
    "airflow": "apache-airflow",
    "airflow.providers.amazon": "apache-airflow-providers-amazon",
    "airflow.providers.cncf": "apache-airflow-providers-cncf-kubernetes",
    "airflow.providers.openlineage": "apache-airflow-providers-openlineage",
    "airflow.providers.standard": "apache-airflow-providers-standard",
    "google": "protobuf",
    "onnx_ir": "onnx-ir",
    "openlineage": "openlineage-python",
    "yaml": "pyyaml",
}
HEAVY = ("numpy", "torch", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "mlflow", "safetensors", "scipy")


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with both files, built without the network by the backend of this environment."""
    folder = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def wheel(built: Path) -> zipfile.ZipFile:
    (path,) = built.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="session")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the installed wheel."""
    folder = tmp_path_factory.mktemp("site")
    (path,) = built.glob("*.whl")
    command = ["uv", "pip", "install", "--offline", "--no-deps", "--quiet", "--target", str(folder), str(path)]
    subprocess.run([sys.executable, "-m", *command], check=True, capture_output=True)
    return folder


def _metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return message_from_bytes(wheel.read(name))


def test_the_wheel_has_every_file_of_both_packages_and_nothing_else(wheel: zipfile.ZipFile) -> None:
    expected = {
        f"{name}/{path.relative_to(folder)}"
        for name, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    names = set(wheel.namelist())
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert {"airflow_onnx/py.typed", "onnx_release/py.typed", "airflow_onnx/ui/static/page.js"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_the_source_archive_has_the_dags_and_the_changelog(built: Path) -> None:
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"CHANGELOG.md", "LICENSE", "README.md", "dags/release_onnx.py", "include/onnx_release/limits.py"} <= names
    assert not [name for name in names if name.startswith(("tests/", ".venv/", ".local/"))]


def test_the_package_index_accepts_both_files(built: Path) -> None:
    command = [sys.executable, "-m", "twine", "check", "--strict", *map(str, built.iterdir())]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_every_link_and_picture_of_the_description_is_absolute(wheel: zipfile.ZipFile) -> None:
    description = str(_metadata(wheel).get_payload())
    targets = re.findall(r"\]\(([^)\s]+)", description) + re.findall(r' (?:src|srcset|href)="([^"]+)"', description)
    assert [target for target in targets if not target.startswith(("https://", "#"))] == []
    assert any(target.startswith("https://raw.githubusercontent.com/") for target in targets), "the picture"


def test_the_addresses_of_the_project_agree() -> None:
    source = PROJECT["urls"]["Source"]
    assert all(url.startswith(source) for url in PROJECT["urls"].values())
    path = source.removeprefix("https://github.com/")
    substitutions = (ROOT / "pyproject.toml").read_text().split("fancy-pypi-readme]")[1]
    assert re.findall(r"https://[\w.]+/([\w-]+/[\w-]+)/", substitutions) == [path] * 3


def test_one_file_has_the_version(wheel: zipfile.ZipFile) -> None:
    assert _metadata(wheel)["Version"] == onnx_release.__version__
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest
    assert newest[1] == onnx_release.__version__


def test_the_classifiers_name_the_supported_python_versions() -> None:
    found = {line.rpartition(" ")[2] for line in PROJECT["classifiers"] if line.startswith("Programming Language")}
    assert {"3.11", "3.12", "3.13"} < found
    assert {"Framework :: Apache Airflow", "Framework :: Apache Airflow :: Provider"} < set(PROJECT["classifiers"])


def _imported(folder: Path) -> Iterator[str]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                yield from (alias.name for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module:
                yield node.module


def _distribution(module: str) -> str:
    if module.startswith("airflow.providers."):
        return DISTRIBUTIONS[".".join(module.split(".")[:3])]
    root = module.split(".")[0]
    return DISTRIBUTIONS.get(root, root)


def _declared(*extras: str) -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for name in extras for line in PROJECT["optional-dependencies"][name])]
    return {re.split(r"[<>=!~\[ ;]", line)[0] for line in lines}


@pytest.mark.parametrize(
    ("package", "extras"),
    [("onnx_release", ("core", "signing")), ("airflow_onnx", ("airflow", "core", "kubernetes", "openlineage"))],
)
def test_every_imported_package_is_declared(package: str, extras: tuple[str, ...]) -> None:
    modules = {name for name in _imported(PACKAGES[package]) if name.split(".")[0] not in sys.stdlib_module_names}
    needed = {_distribution(name) for name in modules if name.split(".")[0] not in PACKAGES}
    assert needed - _declared(*extras) == set()


def test_every_declared_package_is_imported() -> None:
    declared = _declared("core", "signing", "airflow", "kubernetes", "openlineage")
    assert declared - {_distribution(name) for folder in PACKAGES.values() for name in _imported(folder)} == {
        # The pods of the placement are written with its client.
        "apache-airflow-providers-cncf-kubernetes",
        # Packages that import these do not require them.
        "jsonschema",
        "pyopenssl",
    }


def test_the_entry_points_lead_to_objects() -> None:
    groups = {**PROJECT["entry-points"], "console_scripts": PROJECT["scripts"]}
    points = [
        metadata.EntryPoint(name, value, group) for group, found in groups.items() for name, value in found.items()
    ]
    assert all(callable(point.load()) for point in points)


def _python(code: str, *paths: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    env = {"PATH": os.environ["PATH"], "AIRFLOW__CORE__LOAD_EXAMPLES": "False", **variables}
    env["PYTHONPATH"] = os.pathsep.join(map(str, paths))
    return subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)


def test_scheduler_triggerer_and_api_server_need_no_package_of_the_core(installed: Path, tmp_path: Path) -> None:
    code = f"""
import importlib.abc, pathlib, runpy, sys
class Blocked(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ModuleNotFoundError(f"{{name}} is blocked", name=name)
sys.meta_path.insert(0, Blocked())
import airflow_onnx.ui.app
from airflow.plugins_manager import AirflowPlugin
from airflow_onnx.plugin import AirflowOnnxPlugin
from airflow_onnx.triggers import mlflow_finished_runs, mlflow_run, release_dag_runs
from airflow_onnx.cli.commands import get_commands
assert issubclass(AirflowOnnxPlugin, AirflowPlugin) and get_commands()
for path in sorted(pathlib.Path({str(ROOT / "dags")!r}).glob("*.py")):
    runpy.run_path(str(path))
print(airflow_onnx.__file__)
"""
    done = _python(code, installed, AIRFLOW_HOME=str(tmp_path))
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.splitlines()[-1].startswith(str(installed))


def test_a_folder_beside_the_wheel_is_refused(installed: Path) -> None:
    done = _python("import airflow_onnx.dag", ROOT / "plugins", ROOT / "include", installed)
    assert f"is there twice: as a wheel in {installed} and as a folder in {ROOT / 'plugins'}" in done.stderr
    # The plugin loader executes the file of the folder, and Python finds the package of the wheel.
    done = _python(f"import runpy; runpy.run_path({str(ROOT / 'plugins' / 'airflow_onnx_plugin.py')!r})", installed)
    assert "is there twice" in done.stderr


def test_a_wrong_installation_leaves_the_rest_of_airflow_alone(installed: Path, tmp_path: Path) -> None:
    """Airflow loads the provider's metadata in every process, and an error there ends the process."""
    code = "import airflow; from airflow_onnx.provider import get_provider_info; print(get_provider_info()['name'])"
    done = _python(code, ROOT / "plugins", ROOT / "include", installed, AIRFLOW_HOME=str(tmp_path))
    assert done.stdout.splitlines()[-1] == "ONNX release", done.stderr[-3000:]


def test_plugins_without_include_are_refused() -> None:
    done = _python("import airflow_onnx.dag", ROOT / "plugins")
    assert "The package 'onnx_release' is missing" in done.stderr


def test_an_older_airflow_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installation.metadata, "version", lambda name: "3.1.8")
    with pytest.raises(ImportError, match=r"needs Airflow 3\.2 or newer, and 3\.1\.8 is installed"):
        installation.check(PACKAGES["airflow_onnx"])


def test_the_checked_version_of_airflow_is_the_declared_one() -> None:
    (line,) = (line for line in PROJECT["optional-dependencies"]["airflow"] if line.startswith("apache-airflow>="))
    assert line == f"apache-airflow>={'.'.join(map(str, installation.AIRFLOW_MIN))}"
