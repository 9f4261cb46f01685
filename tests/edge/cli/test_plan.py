"""The command ``airflow onnx-release plan``."""

from __future__ import annotations

import inspect
import json
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_onnx.cli import dag_run_states, plan
from airflow_onnx.dag import watch_dag
from tests.edge.watch.watching import Lab
from tests.refusals import refused


@pytest.fixture(autouse=True)
def no_dag_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests have no Airflow database."""
    monkeypatch.setattr(dag_run_states, "states", lambda *_: {})
    watch = watch_dag("watch", release_dag_id="release", routes=[{"experiment": "*", "params": {"model_name": "m"}}])
    monkeypatch.setattr(plan, "_watch_params", lambda _: watch.params.dump())


def arguments(experiment: str, **changes: Any) -> Any:
    given = {
        "experiment": [experiment],
        "filter": None,
        "from_date": "2020-01-01",
        "to_date": None,
        "mlflow_conn_id": None,
        "dag_id": None,
        "newest_first": False,
        "at_once": 2,
        "wide": False,
        "output": "table",
    }
    return SimpleNamespace(**(given | changes))


def test_a_plan_has_every_run_of_the_range(lab: Lab) -> None:
    first, second = lab.run(ended_h_ago=2), lab.run(ended_h_ago=1)
    found = plan.make_plan(arguments(lab.experiment_id))
    assert [run["training_run_id"] for run in found["runs"]] == [first, second]
    assert found["totals"] == {"runs": 2, "release": 2}


HOSTILE = ["[/1] [red]x\x1b[31m", "lr 0.1 [/1]", "two\nlines", "ends with \\", "🚀 [bold", "w" * 10_000, "{0} %s"]


def printed(lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], **changes: Any) -> str:
    """Return the output of the command without Airflow's own set-up of a command."""
    monkeypatch.setenv("_AIRFLOW_PROCESS_CONTEXT", "")
    capsys.readouterr()
    inspect.unwrap(plan.plan)(arguments(lab.experiment_id, **changes))
    return capsys.readouterr().out


@pytest.mark.parametrize("changes", [{}, {"wide": True}, {"output": "plain"}, {"output": "yaml"}])
def test_hostile_run_names_are_printed_as_text(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], changes: dict[str, Any]
) -> None:
    for hours, name in enumerate(HOSTILE, 1):
        lab.run(name=name, model=False, ended_h_ago=hours)
    text = printed(lab, monkeypatch, capsys, **changes, newest_first=True)
    for part in ("[/1] [red]x", "lr 0.1 [/1]", "two lines"):
        assert part.replace(" ", "") in "".join(text.split())
    assert "\x1b" not in text
    assert "w" * 33 not in text
    if "output" not in changes:
        assert max(map(len, text.splitlines())) <= 160


def test_a_summary_counts_the_runs_by_reason_and_names_three(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for hours in range(1, 6):
        lab.run(name=f"bare-{hours}", model=False, ended_h_ago=hours)
    good, ended = lab.run(name="good"), lab.run(name="ended", status="KILLED", ended_h_ago=9)
    text = printed(lab, monkeypatch, capsys, newest_first=True)
    lines = [line.split() for line in text.splitlines()]
    assert text.startswith("7 runs: 1 to release, 6 to skip. About 60 s in total")
    assert ["release", "1", "run", "finished"] in lines
    assert lines.index(["release", "1", "run", "finished"]) < lines.index(["skip", "5", "runs", "no_pytorch_model"])
    assert ["bare-1,", "bare-2,", "bare-3", "and", "2", "more"] in lines
    assert ["skip", "1", "run", "run_not_finished"] in lines
    wide = printed(lab, monkeypatch, capsys, wide=True).splitlines()
    assert {good, ended} <= {word for line in wide for word in line.split()}
    assert sum(" no_pytorch_model " in line for line in wide) == 5


def test_the_routes_of_the_watch_decide(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run(model=False)
    lab.hook.client.log_text(run, "weights", "best.ckpt")
    given = {"factory": "our.nets:make", "input_spec": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]}
    assert plan.make_plan(arguments(lab.experiment_id))["totals"] == {"runs": 1, "refuse": 1}
    routes = [{"experiment": lab.experiment_id, "dag_id": "other", "params": given}]
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__WATCH_ROUTES", json.dumps(routes))
    watch = watch_dag("watch", release_dag_id="release").params.dump()
    monkeypatch.setattr(plan, "_watch_params", lambda _: watch)
    found = plan.make_plan(arguments(lab.experiment_id))
    assert (found["totals"], found["runs"][0]["dag_id"]) == ({"runs": 1, "release": 1}, "other")
    assert watch["experiments"] == [lab.experiment_id], "an experiment with a route is watched"
    elsewhere = [{"experiment": "elsewhere-*", "dag_id": "other", "params": {}}]
    monkeypatch.setattr(plan, "_watch_params", lambda _: watch | {"routes": elsewhere})
    found = plan.make_plan(arguments(lab.experiment_id))
    assert (found["totals"], found["groups"][0]["reason_code"]) == ({"runs": 1, "skip": 1}, "not_routed")


@pytest.mark.parametrize(
    ("changes", "code"),
    [({"from_date": "yesterday"}, "not_a_time"), ({"to_date": "2019-01-01"}, "empty_range")],
)
def test_bad_arguments_are_refused(lab: Lab, changes: dict[str, str], code: str) -> None:
    with refused(code):
        plan.make_plan(arguments(lab.experiment_id, **changes))
