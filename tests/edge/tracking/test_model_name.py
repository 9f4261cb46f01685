"""Name of the registered model: given by a person, else made of the names of experiment and logged model."""

from __future__ import annotations

import uuid
from typing import Any

import mlflow
import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.sensors.mlflow_run import MlflowTrainingRunSensor
from onnx_release.training_runs.names import derived_name, given_name, validate_model_name
from tests.edge.releasing import TAG
from tests.edge.sensors.test_mlflow_run import CONTEXT
from tests.edge.tracking.test_training_run import log_model
from tests.edge.watch.watching import Lab
from tests.refusals import failed, refused


@pytest.mark.parametrize(
    ("experiment", "logged", "name"),
    [
        ("radio", "model", "radio-model"),
        ("Default", "model", "Default-model"),
        ("/Users/x@y.com/exp", "model", "Users-x-y.com-exp-model"),
        ("a/b: c", "nets/small", "a-b-c-nets-small"),
        ("café", "modèle", "cafe-modele"),
        ("..-x-..", "-", "x"),
    ],
)
def test_a_name_is_made_of_experiment_and_model(experiment: str, logged: str, name: str) -> None:
    assert derived_name(experiment, logged) == validate_model_name(name)


@pytest.mark.parametrize(
    ("experiment", "other"),
    [("модель 3", "опыт 3"), ("e" * 200, "e" * 199 + "f"), ("Radio", "radio"), ("模型 A", "模版 A")],
)
def test_two_experiments_never_share_a_name_because_letters_are_lost(experiment: str, other: str) -> None:
    names = {derived_name(experiment, "model"), derived_name(other, "model")}
    assert len(names) == 2
    assert all(validate_model_name(name) for name in names)


@pytest.mark.parametrize("experiment", ["模型", "///", "", "ß", "🙂"])
def test_an_experiment_without_a_usable_character_is_refused_with_the_ways_to_name_it(experiment: str) -> None:
    with refused("no_model_name", "model_name", f"{TAG}.model_name", "experiment"):
        derived_name(experiment, "model")


def test_the_first_given_name_counts_and_blanks_do_not() -> None:
    assert given_name(None, "  ", " run ", "experiment") == "run"
    assert given_name(None, "") is None
    with refused("wrong_name"):
        given_name(None, "a/b", "experiment")


def wait(run_id: str, name: str = "") -> Any:
    sensor = MlflowTrainingRunSensor(task_id="wait", training_run_id=run_id, model_name=name, log_to_run=True)
    return sensor.execute(CONTEXT)


def test_parameter_then_tag_of_the_run_then_of_the_experiment_then_experiment_and_model(hook: MlflowHook) -> None:
    experiment = f"e-{uuid.uuid4().hex[:8]}"
    mlflow.set_experiment(experiment)
    with mlflow.start_run() as run:
        log_model()
    run_id = run.info.run_id
    assert wait(run_id)["model_name"] == f"{experiment}-model"
    hook.client.set_experiment_tag(run.info.experiment_id, f"{TAG}.model_name", "of-experiment")
    assert wait(run_id)["model_name"] == "of-experiment"
    hook.client.set_tag(run_id, f"{TAG}.model_name", "of-run")
    assert wait(run_id)["model_name"] == "of-run"
    assert wait(run_id, "of-parameter")["model_name"] == "of-parameter"
    hook.client.set_tag(run_id, f"{TAG}.model_name", "not/valid")
    with failed("wrong_name", "not/valid"):
        wait(run_id)


def test_a_run_without_a_possible_name_is_refused_on_the_run(hook: MlflowHook) -> None:
    mlflow.set_experiment(f"模型 {''.join(chr(0x4E00 + value) for value in uuid.uuid4().bytes[:4])}")
    with mlflow.start_run() as run:
        log_model()
    with failed("no_model_name"):
        wait(run.info.run_id)
    assert hook.client.get_run(run.info.run_id).data.tags[f"{TAG}.reason_code"] == "no_model_name"


def test_the_watch_and_the_release_make_the_same_name(lab: Lab) -> None:
    logged, weights = lab.run(), lab.run(model=False)
    lab.hook.client.log_text(weights, "weights", "epoch=3-loss=0.1.ckpt")
    lab.hook.client.set_tag(weights, f"{TAG}.factory", "our.nets:make")
    experiment = lab.hook.client.get_experiment(lab.experiment_id).name
    names = {row["training_run_id"]: row["model_name"] for row in lab.start(plan_only="true")["runs"]}
    assert names == {logged: f"{experiment}-model", weights: f"{experiment}-model"}
    lab.start()
    assert "model_name" not in lab.supervisor.confs[f"release__{logged}"], "a tag that is set later counts"
    assert wait(weights)["model_name"] == names[weights]


def test_a_logged_model_of_mlflow_3_gives_its_own_name_to_watch_and_release(lab: Lab) -> None:
    with mlflow.start_run(experiment_id=lab.experiment_id) as run:
        log_model(name="beacons")
    experiment = lab.hook.client.get_experiment(lab.experiment_id).name
    (row,) = lab.start(plan_only="true")["runs"]
    assert row["model_name"] == wait(run.info.run_id)["model_name"] == f"{experiment}-beacons"
