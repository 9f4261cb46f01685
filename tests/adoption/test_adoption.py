"""Parts of `make adopt` without a process: its timed steps, the comparison of packages, the names of environments."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from adoption import journey, services
from adoption.environment import Environment, key, pins
from adoption.packages import Changes, compare, frozen
from adoption.steps import Step, Stopwatch, rows
from stack.console import make_console
from stack.layout import REPO


def test_only_counted_steps_have_a_row_and_a_sum() -> None:
    steps = [Step("start", False, 30.0), Step("pip install", True, 9.94), Step("restart", True, 20.0)]

    assert rows(steps) == [("pip install", "9.9", "10"), ("restart", "20.0", "30")]


def test_a_step_that_fails_is_not_timed() -> None:
    watch = Stopwatch(make_console())
    with watch.step("first"):
        pass
    with pytest.raises(ValueError, match="broken"), watch.step("second"):
        raise ValueError("broken")

    assert [step.name for step in watch.steps] == ["first"]
    assert watch.counted_s() == watch.steps[0].seconds


def test_packages_that_moved_or_went_are_changes() -> None:
    before = frozen(
        "Apache_Airflow==3.2.2\nnumpy==2.4.6\n# comment\n"
        "torch @ file:///wheels/torch-2.13.0-cp311-linux_x86_64.whl#sha256=ab\n"
    )
    after = frozen("apache-airflow==3.3.2\ntorch==2.13.0\nonnx==1.23.2\n")

    assert compare(before, after) == Changes(
        added={"onnx": "1.23.2"}, changed={"apache-airflow": "3.2.2 -> 3.3.2", "numpy": "2.4.6 -> removed"}
    )


def test_an_environment_is_kept_for_each_set_of_versions() -> None:
    versions = pins("3.2.2")

    assert versions["apache-airflow"] == "3.2.2"
    assert f"airflow-3.2.2-mlflow-{versions['mlflow']}-torch-{versions['torch']}" in key(versions)
    assert key(versions) != key(pins("3.3.2"))


def test_the_variables_of_an_environment_lead_to_its_programs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__CORE__FERNET_KEY", "of another Airflow")
    environment = Environment(tmp_path)

    found = environment.variables(AIRFLOW_HOME="/home")

    assert found["PATH"].startswith(f"{tmp_path / 'venv' / 'bin'}:")
    assert str(REPO / ".venv") not in found["PATH"]
    assert found["AIRFLOW_HOME"] == "/home"
    assert "AIRFLOW__CORE__FERNET_KEY" not in found


def test_the_second_model_is_the_six_lines_of_the_documentation() -> None:
    text = journey.SECOND_DAG.read_text()
    values = {node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)}

    lines = [line for line in text.splitlines() if line and not line.startswith('"""')]
    assert len(lines) <= 6
    assert {journey.SECOND.dag_id, journey.SECOND.name, services.SHARED_BUCKET, services.SHARED_PREFIX} <= values


def test_the_account_of_the_releases_has_the_documented_policies_for_its_own_folders() -> None:
    found = services.policy()["Statement"]
    resources = {resource for statement in found for resource in statement["Resource"]}
    assert {"arn:aws:s3:::models/*", "arn:aws:s3:::acme-models", "arn:aws:s3:::acme-models/churn/*"} <= resources
    assert not any("heimdall" in resource or "radio" in resource for resource in resources)
    (condition,) = [statement["Condition"] for statement in found if "Condition" in statement]
    assert condition == {"StringLike": {"s3:prefix": ["churn/*"]}}
