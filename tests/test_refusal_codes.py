"""Every refusal has a declared code, every declared code is raised, and the page of codes is up to date."""

from __future__ import annotations

import ast
import runpy
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from airflow_onnx import errors as edge
from docs.refusal_actions import action
from onnx_release import errors as core
from onnx_release.errors import Refused

ROOT = Path(__file__).parents[1]
STAGES = {stage.__name__: stage for stage in (*core.STAGES, *edge.STAGES)}


def _subclasses(cls: type[Refused]) -> Iterator[type[Refused]]:
    for sub in cls.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def _calls() -> Iterator[tuple[str, ast.Call]]:
    """Yield every call in core and edge of `Refused` or one of its subclasses."""
    for package in ("include/onnx_release", "plugins/airflow_onnx"):
        for path in sorted((ROOT / package).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
                    name = node.func.id if isinstance(node.func, ast.Name) else node.func.attr
                    if name == "Refused" or name in STAGES:
                        yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def _code(call: ast.Call) -> ast.expr | None:
    return next((keyword.value for keyword in call.keywords if keyword.arg == "code"), None)


def _name(call: ast.Call) -> str:
    return call.func.id if isinstance(call.func, ast.Name) else call.func.attr  # type: ignore[attr-defined]


def test_every_stage_is_listed() -> None:
    assert set(_subclasses(Refused)) == set(STAGES.values())


def test_every_refusal_names_its_stage_and_code() -> None:
    found = [where for where, call in _calls() if _name(call) == "Refused" or _code(call) is None]
    assert found == []


def test_every_raised_code_is_declared_by_its_stage() -> None:
    unknown = [
        f"{where}: {value.value}"
        for where, call in _calls()
        if isinstance(value := _code(call), ast.Constant) and value.value not in STAGES[_name(call)].codes
    ]
    assert unknown == []


def test_every_declared_code_is_raised() -> None:
    """A code may also stand in a table beside its raise: any string of core or edge counts."""
    strings = set()
    for package in ("include/onnx_release", "plugins/airflow_onnx"):
        for path in (ROOT / package).rglob("*.py"):
            if path.name != "errors.py":
                nodes = ast.walk(ast.parse(path.read_text()))
                strings |= {n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)}
    unused = {code for stage in STAGES.values() for code in stage.codes} - strings
    assert unused == set()


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.__name__)
def test_every_code_has_a_sentence(stage: type[Refused]) -> None:
    assert stage.codes
    for code, meaning in stage.codes.items():
        assert code.isidentifier()
        assert code == code.lower()
        assert meaning[0].isupper()
        assert meaning.endswith(".")


@pytest.mark.parametrize("stage", STAGES.values(), ids=lambda stage: stage.__name__)
def test_every_code_has_an_action(stage: type[Refused]) -> None:
    """A code whose text has a value of the release needs an entry in docs/refusal_actions.toml."""
    actions = {code: action(stage.__name__, code) for code in stage.codes}
    assert [code for code, text in actions.items() if not text.strip().endswith((".", ")"))] == []


def test_the_table_of_actions_has_no_other_code() -> None:
    table = tomllib.loads((ROOT / "docs" / "refusal_actions.toml").read_text())
    codes = {code for stage in STAGES.values() for code in stage.codes}
    assert {code for entries in table.values() for code in entries} - codes == set()


def test_the_page_of_codes_is_up_to_date() -> None:
    page = runpy.run_path(str(ROOT / "docs" / "refusals.py"))["page"]
    assert (ROOT / "docs" / "refusals.md").read_text() == page(), "run make generated"


def test_codes_of_the_deployment_are_codes_of_their_stage() -> None:
    for stage in STAGES.values():
        assert stage.deployment_codes <= set(stage.codes), stage.__name__
    assert core.RunnerRefused("It", "x", "y", code="no_cuda").is_of_deployment
    assert not core.RunnerRefused("It", "x", "y", code="model_failed").is_of_deployment
