"""The training-complete sensor and its trigger, against a real MLflow server."""

from __future__ import annotations

import asyncio
import itertools
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import mlflow
import pytest
from airflow.sdk import conf
from airflow.sdk.exceptions import AirflowFailException, AirflowSensorTimeout, TaskDeferred
from airflow.triggers.base import TriggerEvent

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor
from airflow_onnx.triggers.mlflow_run import MlflowRunTrigger
from tests.edge.door import Door
from tests.edge.tracking.test_training_run import log_model
from tests.refusals import failed

CONTEXT: Any = {
    "dag_run": SimpleNamespace(dag_id="release_onnx", run_id="manual__1", conf={}, start_date=datetime.now(UTC)),
    "ti": SimpleNamespace(
        task_id="wait_for_training",
        task=SimpleNamespace(task_type="MlflowTrainingRunSensor"),
        start_date=datetime.now(UTC),
        get_task_breadcrumbs=lambda dag_id, run_id: [],
        xcom_pull=lambda task_ids, key: [None for _ in task_ids],
        xcom_push=lambda key, value: None,
    ),
}


def sensor(**arguments: Any) -> MlflowTrainingRunSensor:
    return MlflowTrainingRunSensor(
        task_id="wait_for_training", model_name="m", **{"deferrable": True, "log_to_run": True} | arguments
    )


def trigger(run_id: str) -> MlflowRunTrigger:
    return MlflowRunTrigger(training_run_id=run_id, mlflow_conn_id="mlflow_default", poll_interval_s=0.1)


async def first_event(trigger: MlflowRunTrigger) -> TriggerEvent:
    async for event in trigger.run():
        return event
    raise AssertionError("the trigger ended without an event")


def test_a_run_that_finished_long_ago_passes_at_once(hook: MlflowHook) -> None:
    with mlflow.start_run() as run:
        model_id = log_model()
    task = sensor(training_run_id=run.info.run_id)
    assert task.execute(CONTEXT)["model_uri"] == f"models:/{model_id}"
    assert task.link_urls["Training run"].endswith(f"/runs/{run.info.run_id}")


def test_wrong_parameters_are_refused_together_before_the_wait_and_recorded(hook: MlflowHook) -> None:
    parameters = json.dumps({"alias": "latest", "mae_mx": 1e-3})
    with mlflow.start_run() as run, failed("unknown_parameter", "2 problems", "'mae_mx'", "'latest'"):
        sensor(training_run_id=run.info.run_id, parameters=parameters).execute(CONTEXT)
    assert hook.client.get_run(run.info.run_id).data.tags["onnx_release.status"] == "refused"
    with failed("wrong_name", "3 problems", "'notanid'", "'mae_mx'", "'latest'"):
        sensor(training_run_id="notanid", parameters=parameters).execute(CONTEXT)


def test_a_version_in_a_store_that_mlflow_does_not_serve_is_refused_at_once(
    hook: MlflowHook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "the-worker")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "the-worker")
    with mlflow.start_run() as run:
        pass
    name = f"m-{uuid.uuid4().hex[:8]}"
    hook.client.create_registered_model(name)
    hook.client.create_model_version(name, "s3://elsewhere/model", run_id=run.info.run_id)
    with failed("artifacts_not_served", f"models:/{name}/1", "s3://elsewhere/model"):
        sensor(model_uri=f"models:/{name}/1").execute(CONTEXT)
    assert hook.client.get_run(run.info.run_id).data.tags["onnx_release.status"] == "refused"
    experiment = hook.client.create_experiment(name, artifact_location="s3://elsewhere/x")
    weights = hook.client.create_run(experiment).info.run_id
    hook.client.set_terminated(weights)
    with failed("artifacts_not_served", "s3://elsewhere/x"):
        sensor(model_uri=f"runs:/{weights}/model.safetensors").execute(CONTEXT)


def test_a_running_run_is_waited_for_in_the_triggerer(hook: MlflowHook) -> None:
    run = mlflow.start_run()
    log_model()
    task = sensor(training_run_id=run.info.run_id, poke_interval=7, timeout=1800)
    with pytest.raises(TaskDeferred) as deferred:
        task.execute(CONTEXT)
    path, arguments = deferred.value.trigger.serialize()
    assert path == "airflow_onnx.triggers.mlflow_run.MlflowRunTrigger"
    assert arguments == {
        "training_run_id": run.info.run_id,
        "mlflow_conn_id": "mlflow_default",
        "poll_interval_s": 7.0,
    }
    assert deferred.value.timeout is not None
    assert deferred.value.timeout.total_seconds() == 1800

    async def wait_while_it_ends() -> TriggerEvent:
        waiting = asyncio.create_task(first_event(trigger(run.info.run_id)))
        await asyncio.sleep(0.5)
        assert not waiting.done(), "the run goes on"
        await asyncio.to_thread(hook.client.set_terminated, run.info.run_id)
        return await asyncio.wait_for(waiting, timeout=120)

    event = asyncio.run(wait_while_it_ends())
    mlflow.end_run()
    assert task.execute_complete(CONTEXT, event.payload)["training_run_id"] == run.info.run_id


@pytest.mark.parametrize("status", ["FAILED", "KILLED"])
def test_a_run_that_ends_badly_fails_the_task_for_good_and_is_tagged(hook: MlflowHook, status: str) -> None:
    run = mlflow.start_run()
    mlflow.end_run(status)
    asyncio.run(asyncio.wait_for(first_event(trigger(run.info.run_id)), timeout=120))
    with pytest.raises(AirflowFailException, match=f"ended as {status}"):
        sensor(training_run_id=run.info.run_id).execute(CONTEXT)
    tags = hook.client.get_run(run.info.run_id).data.tags
    assert tags["onnx_release.status"] == "refused"
    assert f"ended as {status}" in tags["onnx_release.reason"]
    assert tags["onnx_release.dag_run_url"].endswith("/dags/release_onnx/runs/manual__1")


def test_a_deleted_run_fails_the_task_though_it_takes_no_tags(hook: MlflowHook) -> None:
    with mlflow.start_run() as run:
        pass
    hook.client.delete_run(run.info.run_id)
    asyncio.run(asyncio.wait_for(first_event(trigger(run.info.run_id)), timeout=120))
    with pytest.raises(AirflowFailException, match="was deleted"):
        sensor(training_run_id=run.info.run_id).execute(CONTEXT)


def test_an_unknown_run_fires_at_once_and_fails(hook: MlflowHook) -> None:
    asyncio.run(asyncio.wait_for(first_event(trigger("0" * 32)), timeout=120))
    with pytest.raises(AirflowFailException, match="does not exist"):
        sensor(training_run_id="0" * 32).execute(CONTEXT)


def test_the_trigger_sits_out_an_outage(hook: MlflowHook, monkeypatch: pytest.MonkeyPatch) -> None:
    with mlflow.start_run() as run:
        pass
    door = Door(hook.server.tracking_uri)
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": door.url}))
    with ThreadPoolExecutor(1) as triggerer:
        waiting = triggerer.submit(asyncio.run, first_event(trigger(run.info.run_id)))
        time.sleep(1)
        assert not waiting.done(), "MLflow is down"
        with door.opened():
            assert waiting.result(timeout=120).payload == {"training_run_id": run.info.run_id}


def test_in_poke_mode_it_pokes_at_every_poke_interval_until_the_run_ends(hook: MlflowHook) -> None:
    run = mlflow.start_run()
    log_model()
    task = sensor(training_run_id=run.info.run_id, deferrable=False, poke_interval=0.2, timeout=60)
    poked: list[float] = []
    poke = task.poke

    def end_at_the_third_poke(context: Any) -> Any:
        poked.append(time.monotonic())
        if len(poked) == 3:
            mlflow.end_run()
        return poke(context)

    task.poke = end_at_the_third_poke  # type: ignore[method-assign]
    assert task.execute(CONTEXT)["training_run_id"] == run.info.run_id
    assert len(poked) == 3
    assert min(later - earlier for earlier, later in itertools.pairwise(poked)) >= 0.2


def test_in_poke_mode_it_stops_at_the_timeout(hook: MlflowHook) -> None:
    run = mlflow.start_run()
    task = sensor(training_run_id=run.info.run_id, deferrable=False, poke_interval=0.2, timeout=0.5)
    started = time.monotonic()
    with pytest.raises(AirflowSensorTimeout):
        task.execute(CONTEXT)
    assert 0.5 <= time.monotonic() - started < 10
    mlflow.end_run()


def test_the_deployment_decides_whether_it_defers_by_default() -> None:
    default = conf.getboolean("operators", "default_deferrable", fallback=False)
    assert MlflowTrainingRunSensor(task_id="wait", model_name="m").deferrable is default
