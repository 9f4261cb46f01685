"""Environments of other versions of ONNX Runtime: made once, and a missing one is never the model's fault."""

from __future__ import annotations

import importlib.metadata
import threading
import zipfile
from pathlib import Path

import pytest

from onnx_release.errors import Transient
from onnx_release.limits import TARGET_RUNTIMES_MAX
from onnx_release.runners.distribution import installed_distribution
from onnx_release.serving import runtime_environment
from onnx_release.serving.runtime_environment import (
    installed_version,
    prepare_environments,
    require_versions,
)
from tests.refusals import refused

# A package of this version does not load any model.
REJECTING = "9.9.9"
_REJECTING_CODE = """
__version__ = "9.9.9"
class SessionOptions:
    def add_session_config_entry(self, key, text): pass
class InferenceSession:
    def __init__(self, *arguments, **named):
        raise RuntimeError(
            "FAIL : Load model from /secret/place/model.onnx failed:/onnxruntime_src/core/model.cc:1 "
            "onnxruntime::Model::Model(const a&, int) Unsupported model IR version: 10, max supported IR version: 9"
        )
"""


def _wheel(folder: Path, name: str, version: str, code: str) -> None:
    info = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}/__init__.py", code)
        wheel.writestr(f"{info}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of wheels, which pip's settings name as the only index."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    _wheel(folder, "onnxruntime", REJECTING, _REJECTING_CODE)
    _wheel(folder, "onnxruntime", "9.9.8", "__version__ = '1.0.0'")
    _wheel(folder, "numpy", "2.0.0", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    monkeypatch.setenv("PIP_CONSTRAINT", "/no/such/file")
    return folder


@pytest.mark.parametrize(
    "version",
    ["1.20", "", "1.20.1 --pre", "--index-url=http://x", "1.20.*", ">=1.20.1", "1.20.1\n", "1.20.1+x", "a", 1, None],
)
def test_only_exact_versions_are_accepted(version: object) -> None:
    with refused("target_runtimes", "target_runtimes"):
        require_versions(["1.20.1", version])


def test_versions_are_sorted_by_number_without_duplicates() -> None:
    assert require_versions(["1.20.1", "1.9.0", "1.20.1"]) == ("1.9.0", "1.20.1")
    with refused("target_runtimes", str(TARGET_RUNTIMES_MAX)):
        require_versions([f"1.{minor}.0" for minor in range(TARGET_RUNTIMES_MAX + 1)])


def test_the_installed_version_needs_no_environment(tmp_path: Path) -> None:
    (environment,) = prepare_environments([installed_version()], tmp_path / "none")
    assert environment.is_own
    assert not (tmp_path / "none").exists()


def prepare_in_two_tasks(cache: Path) -> None:
    tasks = [threading.Thread(target=prepare_environments, args=([REJECTING], cache)) for _ in range(2)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join()


def test_the_build_for_gpus_is_an_installed_onnx_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def version(name: str) -> str:
        if name != "onnxruntime-gpu":
            raise importlib.metadata.PackageNotFoundError(name)
        return "1.31.1"

    monkeypatch.setattr(importlib.metadata, "version", version)
    assert installed_distribution() == {"onnxruntime-gpu": "1.31.1"}
    assert installed_version() == "1.31.1"


def test_an_environment_is_made_once_for_two_tasks(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = []
    monkeypatch.setattr(runtime_environment, "_make", _counting(runtime_environment._make, made))
    prepare_in_two_tasks(tmp_path / "cache")
    (environment,) = prepare_environments([REJECTING], tmp_path / "cache")
    assert made == [REJECTING]
    assert Path(environment.python).exists()
    # A new interpreter of the worker breaks the link.
    Path(environment.python).unlink()
    prepare_environments([REJECTING], tmp_path / "cache")
    assert made == [REJECTING] * 2


@pytest.mark.parametrize("package", ["numpy", "onnxruntime"])
def test_a_damaged_environment_is_made_again_once_for_two_tasks(
    index: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    (environment,) = prepare_environments([REJECTING], tmp_path / "cache")
    (damaged,) = Path(environment.python).parent.parent.glob(f"lib/python*/site-packages/{package}/__init__.py")
    damaged.write_text("import of_a_lost_file")
    made: list[str] = []
    monkeypatch.setattr(runtime_environment, "_make", _counting(runtime_environment._make, made))
    prepare_in_two_tasks(tmp_path / "cache")
    assert made == [REJECTING]
    assert "of_a_lost_file" not in damaged.read_text()
    assert prepare_environments([REJECTING], tmp_path / "cache") == (environment,)
    assert made == [REJECTING], "a sound one stays"


def _counting(make: object, made: list[str]) -> object:
    def run(version: str, *arguments: object) -> None:
        made.append(version)
        make(version, *arguments)  # type: ignore[operator]

    return run


def test_a_version_without_a_wheel_and_a_wrong_package_are_of_the_deployment(index: Path, tmp_path: Path) -> None:
    for version in ("9.9.7", "9.9.8"):
        with refused("runtime_unavailable", version, "target_runtimes") as caught:
            prepare_environments([version], tmp_path / "cache")
        assert caught.value.is_of_deployment
    assert not [path for path in (tmp_path / "cache").iterdir() if path.is_dir()]


def test_an_index_that_does_not_answer_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    with pytest.raises(Transient, match="package index"):
        prepare_environments(["9.9.9"], tmp_path)
    with pytest.raises(Transient, match=r"within 0\.01 s"):
        prepare_environments(["9.9.9"], tmp_path, timeout_s=0.01)
