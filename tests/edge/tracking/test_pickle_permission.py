"""Permission to load pickles: by the place of the model's files, never by the name of a run or a version."""

from __future__ import annotations

import uuid

import pytest
from mlflow.exceptions import MlflowException

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking import pickle_permission


@pytest.fixture
def experiments(hook: MlflowHook, monkeypatch: pytest.MonkeyPatch) -> tuple[str, str]:
    """The ids of an experiment whose pickles are allowed, by a pattern of names, and of another one."""
    team = uuid.uuid4().hex[:8]
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PICKLE_EXPERIMENTS", f"team-{team}/*, no-such")
    names = f"team-{team}/radar", f"other-{team}/radar"
    allowed, other = (hook.client.create_experiment(name) for name in names)
    return allowed, other


def test_the_experiment_of_the_files_decides(
    hook: MlflowHook, experiments: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    allowed, other = experiments
    runs = {experiment: hook.client.create_run(experiment).info for experiment in experiments}
    uris = {experiment: f"runs:/{info.run_id}/model" for experiment, info in runs.items()}
    assert pickle_permission.is_allowed(hook, uris[allowed])
    assert not pickle_permission.is_allowed(hook, uris[other])
    assert not pickle_permission.is_allowed(hook, f"mlflow-artifacts:/{allowed}/../{other}/model.pth")
    name = f"m-{uuid.uuid4().hex[:8]}"
    hook.client.create_registered_model(name)
    foreign = f"{runs[other].artifact_uri}/model"
    with pytest.raises(MlflowException, match="run_id"):
        hook.client.create_model_version(name, foreign, run_id=runs[allowed].run_id)
    own = f"{runs[allowed].artifact_uri}/model"
    hook.client.create_model_version(name, own, run_id=runs[allowed].run_id)
    assert pickle_permission.is_allowed(hook, f"models:/{name}/1")
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PICKLE_EXPERIMENTS", other)
    assert pickle_permission.is_allowed(hook, uris[other])
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PICKLE_EXPERIMENTS", "")
    assert not pickle_permission.is_allowed(hook, uris[other])
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    assert pickle_permission.is_allowed(hook, uris[other])


def test_an_experiment_that_lies_about_its_place_gives_no_permission(
    hook: MlflowHook, experiments: tuple[str, str]
) -> None:
    allowed, _ = experiments
    location = f"mlflow-artifacts:/elsewhere/{allowed}/x"
    liar = hook.client.create_experiment(f"liar-{uuid.uuid4().hex[:8]}", artifact_location=location)
    run_id = hook.client.create_run(liar).info.run_id
    assert not pickle_permission.is_allowed(hook, f"runs:/{run_id}/model")
