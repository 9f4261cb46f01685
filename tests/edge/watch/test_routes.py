"""Routes of the watch: which DAG releases a run, on a real MLflow server."""

from __future__ import annotations

import json
import time
import uuid
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskDeferred

from airflow_onnx.watch.routes import PATTERN_MAX_CHARACTERS, read_routes, routes_param
from onnx_release.training_runs.queries import matches
from onnx_release.training_runs.records import Experiment
from tests.edge.releasing import TAG
from tests.edge.watch.watching import Lab, by_run
from tests.refusals import refused


def experiment(name: str) -> Experiment:
    return Experiment(experiment_id="17", name=name, tags={})


def route(pattern: str, dag_id: str = "release", **params: Any) -> dict[str, Any]:
    return {"experiment": pattern, "dag_id": dag_id, "params": params}


@pytest.mark.parametrize(
    ("name", "dag_id"),
    [("radio-nightly", "first"), ("radio-7", "second"), ("churn", "third"), ("Radio-7", None), ("a.b", None)],
)
def test_the_first_match_counts_and_a_pattern_is_no_regular_expression(name: str, dag_id: str | None) -> None:
    patterns = {"radio-nightly": "first", "radio-*": "second", "churn|.*": "none", "a?*b$": "none", "chur?": "third"}
    routes = read_routes(json.dumps([route(pattern, dag) for pattern, dag in patterns.items()]))
    found = routes.of(experiment(name))
    assert (found.dag_id if found else None) == dag_id


def test_an_id_and_a_name_with_brackets_match_as_they_are() -> None:
    assert all(matches(pattern, experiment("a[1]")) for pattern in ("17", "a[1]", "a[[]1]", "a*"))
    assert not matches("a[2]", experiment("a[1]"))


@pytest.mark.parametrize("part", ["*a", "**", "?*", "[!b]*", "[", "(a+)+"])
def test_no_pattern_takes_long(part: str) -> None:
    pattern = (part * PATTERN_MAX_CHARACTERS)[: PATTERN_MAX_CHARACTERS - 1] + "b"
    began = time.monotonic()
    matches(pattern, experiment("a" * 5000))
    assert time.monotonic() - began < 2


@pytest.mark.parametrize(
    ("routes", "part"),
    [
        ({"a": "b"}, "routes"),
        (["x"], "routes[0]"),
        ([route("a"), {"experiment": "a"}], "routes[1]"),
        ([route("")], "experiment"),
        ([route("x" * 201)], "experiment"),
        ([route("a", "../dag")], "dag_id"),
        ([route("a", mae_mx=1e-4)], "mae_mx"),
        ([route("a", mae_max="small")], "mae_max"),
        ([route("a", training_run_id="0" * 32)], "training_run_id"),
        ([route("a") | {"dag": "x"}], "'dag'"),
        ([route("a")] * 201, "routes"),
    ],
)
def test_a_wrong_route_is_refused_by_the_form_and_by_the_task(lab: Lab, routes: Any, part: str) -> None:
    # Airflow checks a sent form by this schema.
    with pytest.raises(ValueError, match=r"."):
        routes_param([]).resolve(routes)
    with refused("wrong_parameter", part):
        read_routes(routes)
    with pytest.raises(AirflowFailException, match="routes"):
        lab.start(routes=json.dumps(routes))


def test_each_experiment_goes_to_its_dag_with_its_parameters(lab: Lab) -> None:
    radio, churn, other = (_lab_of(lab, name) for name in ("radio", "churn", "other"))
    runs = {one: one.run() for one in (radio, churn, other)}
    names = {one: lab.hook.client.get_experiment(one.experiment_id).name for one in runs}
    routes = [route(names[radio], "release_radio", alias="nightly"), route(f"{names[churn][:-2]}*", "release_churn")]
    experiments = json.dumps(list(names.values()))
    report = lab.start(routes=json.dumps(routes), experiments=experiments)
    ids = {one: f"release__{run}" for one, run in runs.items()}
    assert lab.supervisor.dags == {ids[radio]: "release_radio", ids[churn]: "release_churn"}
    assert lab.supervisor.confs[ids[radio]] == {"training_run_id": runs[radio], "alias": "nightly"}
    assert lab.supervisor.confs[ids[churn]] == {"training_run_id": runs[churn]}
    found = lab.tags(runs[churn])
    assert "/dags/release_churn/runs/" in found[f"{TAG}.dag_run_url"]
    assert "dag=release_churn" in found[f"{TAG}.rerun_url"]
    # Another watch may release the run: it has no tag.
    assert report["unrouted_experiments"] == [names[other]]
    assert not [tag for tag in lab.tags(runs[other]) if tag.startswith(TAG)]
    planned = lab.backfill(plan_only="true", routes=json.dumps(routes), experiments=experiments)
    assert by_run(planned)[runs[other]] == ("skip", "no route matches its experiment")


def test_a_backfill_of_two_dags_waits_for_both(lab: Lab) -> None:
    other = _lab_of(lab, "other")
    runs = [lab.run(ended_h_ago=3), other.run(ended_h_ago=2), other.run(ended_h_ago=1)]
    given = {
        "routes": json.dumps([route(lab.experiment_id, "one"), route("*", "two")]),
        "experiments": json.dumps([lab.experiment_id, other.experiment_id]),
    }
    with pytest.raises(TaskDeferred) as deferred:
        lab.backfill(at_once="2", **given)
    assert deferred.value.trigger.dag_runs == {"one": [f"release__{runs[0]}"], "two": [f"release__{runs[1]}"]}


def test_a_release_in_progress_in_another_dag_is_not_started_again(lab: Lab) -> None:
    run = lab.run()
    lab.hook.set_tags(
        run, {f"{TAG}.dag_run_id": "manual", f"{TAG}.dag_run_url": "http://airflow.test/dags/by_hand/runs/manual"}
    )
    lab.supervisor.states["manual"], lab.supervisor.dags["manual"] = "running", "by_hand"
    assert by_run(lab.start())[run] == ("wait", "its release is in progress as DAG run manual")
    assert lab.supervisor.confs == {}


def test_a_version_under_the_name_of_the_release_dag_is_found(lab: Lab) -> None:
    """The watch has no name for it: the argument `model_name` of `release_dag` gave it."""
    from airflow_onnx.tracking.model_registry import VersionRequest, ensure_version

    run, name = lab.run(), f"m-{uuid.uuid4().hex[:8]}"
    source = "s3://models/x"
    ensure_version(
        lab.hook, VersionRequest(name=name, training_run_id=run, sha256="a" * 64, source=source, description="")
    )
    lab.hook.set_tags(run, {f"{TAG}.registered_model": name})
    assert by_run(lab.backfill())[run] == ("skip", f"released as version 1 of '{name}'")


def _lab_of(lab: Lab, name: str) -> Lab:
    """Return a lab with the same servers and another experiment."""
    made = lab.hook.client.create_experiment(f"{name}-{uuid.uuid4().hex[:8]}")
    return Lab(lab.hook, lab.supervisor, made, lab.model_folder)
