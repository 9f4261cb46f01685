"""Runtimes of a rehearsal: exact versions, requirements and environments; everything else is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from onnx_release.errors import Transient
from onnx_release.records.rehearsal import Runtime
from onnx_release.rehearsal.runtimes import choose_runtimes, open_runtime
from onnx_release.serving import runtime_environment
from onnx_release.serving.runtime_environment import installed_version
from tests.core.rehearsal.runtimes import differing_python, python_of
from tests.core.serving.test_runtime_environment import _wheel, index  # noqa: F401 - a fixture
from tests.refusals import refused


@pytest.mark.parametrize(
    "texts",
    [
        [],
        "1.20.1",
        None,
        {"1.20.1": 1},
        ["1.20; rm -rf /"],
        ["1.20"],
        ["http://host/onnxruntime-1.20.1.whl"],
        ["onnxruntime @ http://host/x.whl"],
        ["onnxruntime>=1.20 ; python_version > '3'"],
        ["onnxruntime[gpu]>=1.20"],
        ["onnxruntime>=one"],
        ["numpy>=2"],
        ["/opt/other/bin/python"],
        ["../python"],
        ["--index-url=http://host"],
        [1.2],
        ["x" * 10_000],
        [f"1.{minor}.0" for minor in range(1000)],
    ],
)
def test_other_texts_are_refused(texts: object) -> None:
    with refused("runtimes", "runtimes"):
        choose_runtimes(texts)


def test_versions_and_allowed_environments_are_taken_once(tmp_path: Path) -> None:
    named = {"serving": "/opt/serving"}
    found = choose_runtimes(["1.22.1", "1.20.1", "1.22.1", "serving"], environments=named)
    assert [(one.name, one.version, one.python) for one in found] == [
        ("1.22.1", "1.22.1", None),
        ("1.20.1", "1.20.1", None),
        ("serving", None, "/opt/serving"),
    ]
    (path,) = choose_runtimes([str(tmp_path)], paths_allowed=True)
    assert path.python == str(tmp_path)


def test_a_requirement_is_the_newest_release_of_each_minor_version(index: Path) -> None:  # noqa: F811
    for version in ("1.20.0", "1.20.1", "1.21.0", "1.21.1rc1", "1.24.0"):
        _wheel(index, "onnxruntime", version, "")
    found = choose_runtimes(["onnxruntime>=1.20,<1.24"])
    assert [one.version for one in found] == ["1.20.1", "1.21.0"]
    with refused("runtimes", "no version"):
        choose_runtimes(["onnxruntime>=99"])


def test_a_requirement_without_an_index_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime_environment, "LIST_MAX_S", 0.01)
    with pytest.raises(Transient, match=r"listed within 0\.01 s"):
        choose_runtimes(["onnxruntime>=1.20"])


def test_an_existing_environment_is_imported_once_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    python = differing_python(tmp_path)
    environment = open_runtime(Runtime(name="mine", python=str(python)), tmp_path / "none")
    assert (environment.version, environment.python) == (installed_version(), str(python))
    for broken, part in (
        (tmp_path / "none", "no interpreter"),
        (tmp_path, "no interpreter"),
        (python_of(tmp_path, "echo ImportError: no onnxruntime; exit 1", "fails"), "ImportError"),
        (python_of(tmp_path, "echo 1.20.1 from; echo '<b>'", "prints"), "does not import"),
    ):
        with refused("runtime_unavailable", "mine", part):
            open_runtime(Runtime(name="mine", python=str(broken)), tmp_path / "none")
