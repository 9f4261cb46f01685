"""The command ``airflow onnx-release plan``."""

from __future__ import annotations

import json
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
    names = ["[/1] [red]x\x1b[31m", "lr 0.1 [/1]", "two\nlines", "ends with \\", "🚀 [bold", "w" * 3000, "word " * 600]
    for name in names:
        lab.run(name=name, model=False)
    found = plan.make_plan(arguments(lab.experiment_id))
    capsys.readouterr()
    plan.print_rows(found["runs"], output)
    printed = capsys.readouterr().out
    for part in ("[/1] [red]x", "lr 0.1 [/1]", "two lines", "ends with \\"):
        assert part.replace(" ", "") in "".join(printed.split())
    assert "\x1b[31m" not in printed
    assert "word w…" not in " ".join(printed.split())


def test_the_deployments_parameters_decide_as_in_the_watch(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run(model=False)
    lab.hook.client.log_text(run, "weights", "best.ckpt")
    given = {"factory": "our.nets:make", "input_spec": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]}
    assert plan.make_plan(arguments(lab.experiment_id))["totals"] == {"runs": 1, "refuse": 1}
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__WATCH_RELEASE_PARAMS", json.dumps(given))
    assert plan.make_plan(arguments(lab.experiment_id))["totals"] == {"runs": 1, "release": 1}


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"from_date": "yesterday"}, "not_a_time"), ({"to_date": "2019-01-01"}, "empty_range")],
)
def test_bad_arguments_are_refused(lab: Lab, changes: dict[str, str], code: str) -> None:
    with refused(code):
        plan.make_plan(arguments(lab.experiment_id, **changes))
