"""The command ``airflow onnx-release plan``."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from airflow_onnx.cli import plan
from airflow_onnx.dag_runs import State
from tests.edge.watch.watching import Lab
from tests.refusals import refused


@pytest.fixture(autouse=True)
def no_dag_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no Airflow database."""
    monkeypatch.setattr(plan, "_dag_state", lambda _: State.ABSENT)


def arguments(experiment: str, **changes: Any) -> Any:
    given = {
        "experiment": [experiment],
        "filter": None,
        "from_date": "2020-01-01",
        "to_date": None,
        "mlflow_conn_id": "mlflow_default",
        "model_name": "m",
        "newest_first": False,
        "at_once": 2,
    }
    return SimpleNamespace(**(given | changes))


def test_a_plan_has_every_run_of_the_range(lab: Lab) -> None:
    first, second = lab.run(ended_h_ago=2), lab.run(ended_h_ago=1)
    found = plan.make_plan(arguments(lab.experiment_id))
    assert [run["training_run_id"] for run in found["runs"]] == [first, second]
    assert found["totals"] == {"runs": 2, "release": 2}


@pytest.mark.parametrize("output", ["table", "plain", "yaml"])
def test_a_run_name_with_markup_is_printed_as_text(lab: Lab, capsys: pytest.CaptureFixture[str], output: str) -> None:
    lab.run(name="[/1] [red]x\x1b[31m")
    found = plan.make_plan(arguments(lab.experiment_id))
    capsys.readouterr()
    plan.print_rows(found["runs"], output)
    printed = capsys.readouterr().out
    assert "[/1] [red]x" in printed
    assert "\x1b[31m" not in printed


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"from_date": "yesterday"}, "not_a_time"), ({"to_date": "2019-01-01"}, "empty_range")],
)
def test_bad_arguments_are_refused(lab: Lab, changes: dict[str, str], code: str) -> None:
    with refused(code):
        plan.make_plan(arguments(lab.experiment_id, **changes))
