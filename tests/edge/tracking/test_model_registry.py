"""One version for each training run and sha256, on a real registry, also when releases run at the same time."""

from __future__ import annotations

import dataclasses
import re
import threading
import uuid

import mlflow
import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking import model_registry
from airflow_onnx.tracking.version_tags import version_tags
from onnx_release.report.markdown import summary_markdown
from onnx_release.report.release_report import build_report
from onnx_release.training_runs import tags
from tests.core import records
from tests.refusals import refused

SHA = "ab" * 32


@pytest.fixture
def request_(hook: MlflowHook) -> model_registry.VersionRequest:
    with mlflow.start_run() as run:
        pass
    return model_registry.VersionRequest(
        name=f"model-{uuid.uuid4().hex[:8]}",
        training_run_id=run.info.run_id,
        sha256=SHA,
        source="s3://heimdall-models/somewhere",
        description="a *model*",
        tags={"onnx.opset": "20"},
    )


def test_a_version_is_created_once(hook: MlflowHook, request_: model_registry.VersionRequest) -> None:
    first = model_registry.ensure_version(hook, request_)
    second = model_registry.ensure_version(hook, request_)
    assert (first.version, first.created) == (1, True)
    assert (second.version, second.created) == (1, False)
    stored = hook.client.get_model_version(request_.name, "1")
    assert stored.tags == {"onnx.opset": "20", tags.VERSION_SHA256: SHA}
    assert (stored.run_id, stored.source) == (request_.training_run_id, request_.source)
    assert stored.description == "a *model*"


def test_other_bytes_of_the_same_run_are_another_version(
    hook: MlflowHook, request_: model_registry.VersionRequest
) -> None:
    model_registry.ensure_version(hook, request_)
    assert model_registry.ensure_version(hook, dataclasses.replace(request_, sha256="cd" * 32)).version == 2


def test_releases_at_the_same_time_end_in_one_version(
    hook: MlflowHook, request_: model_registry.VersionRequest
) -> None:
    start, answers = threading.Barrier(4), []

    def release() -> None:
        start.wait()
        answers.append(model_registry.ensure_version(hook, request_))

    threads = [threading.Thread(target=release) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    left = hook.client.search_model_versions(f"name='{request_.name}'")
    assert len(left) == 1
    assert {answer.version for answer in answers} == {int(left[0].version)}


def test_a_duplicate_that_a_crash_left_is_deleted(hook: MlflowHook, request_: model_registry.VersionRequest) -> None:
    model_registry.ensure_version(hook, request_)
    hook.client.create_model_version(
        request_.name, request_.source, run_id=request_.training_run_id, tags={tags.VERSION_SHA256: SHA}
    )
    assert model_registry.ensure_version(hook, request_).version == 1
    assert len(hook.client.search_model_versions(f"name='{request_.name}'")) == 1


def test_a_version_has_eight_tags_and_a_first_line_without_markup() -> None:
    failed = records.comparison(output="a<b>*c*", decides=False, passed=False, failures=("differs",))
    parity = records.parity(comparisons=(records.comparison(), failed), warnings=("differs",))
    latency = records.latency(budget={"batch_size": records.batch().batch_size})
    benchmark = records.benchmark(parity=parity, latency=latency)
    report = build_report(records.TRAINING, records.artifact(size_bytes=2_312_839_509), records.check(), benchmark)
    found = version_tags(report.replace(dag_run_url="http://airflow.test/x"), records.artifact(), "released")
    names = ["status", "sha256", "size", "opset", "precision", "speed", "training_run", "dag_run"]
    assert list(found) == [f"onnx.{name}" for name in names]
    assert all(found.values())
    assert re.fullmatch(r"\d\.\d\dx \[.+\] at batch \d+|not settled, at least .+", found["onnx.speed"])
    first, blank, *_ = summary_markdown(report).splitlines()
    assert (first.startswith("Released"), blank) == (True, "")
    assert not set(first) & set("*#`<>")


def test_an_update_leaves_other_tags(hook: MlflowHook, request_: model_registry.VersionRequest) -> None:
    first = dataclasses.replace(request_, tags={"onnx.speed": "2x", "onnx.opset": "20"})
    number = model_registry.ensure_version(hook, first).version
    hook.client.set_model_version_tag(request_.name, str(number), "onnx.reviewed_by", "a person")
    again = dataclasses.replace(request_, description="new", tags={"onnx.speed": "not settled"})
    model_registry.update_version(hook, again, number)
    stored = hook.client.get_model_version(request_.name, str(number))
    assert stored.tags == {
        "onnx.speed": "not settled",
        "onnx.opset": "20",
        "onnx.reviewed_by": "a person",
        tags.VERSION_SHA256: SHA,
    }
    assert stored.description == "new"


def test_alias_and_stage_are_moved(hook: MlflowHook, request_: model_registry.VersionRequest) -> None:
    version = model_registry.ensure_version(hook, request_)
    model_registry.set_alias(hook, version.name, "candidate", version.version)
    model_registry.set_stage(hook, version, "Staging")
    stored = hook.client.get_model_version_by_alias(request_.name, "candidate")
    assert (int(stored.version), stored.current_stage) == (1, "Staging")


def test_an_unknown_stage_is_refused(hook: MlflowHook, request_: model_registry.VersionRequest) -> None:
    version = model_registry.ensure_version(hook, request_)
    with refused("unknown_stage", "Live"):
        model_registry.set_stage(hook, version, "Live")


def test_objects_are_found_by_the_version_with_their_source(
    hook: MlflowHook, request_: model_registry.VersionRequest
) -> None:
    model_registry.ensure_version(hook, request_)
    run_id = request_.training_run_id
    assert model_registry.of_source(hook, request_.name, run_id, request_.source + "/").version == "1"
    assert not model_registry.of_source(hook, request_.name, run_id, "s3://heimdall-models/elsewhere")


def test_a_duplicate_with_an_alias_stays(hook: MlflowHook, request_: model_registry.VersionRequest) -> None:
    model_registry.ensure_version(hook, request_)
    again = {"run_id": request_.training_run_id, "tags": {tags.VERSION_SHA256: SHA}}
    for _ in range(2):
        hook.client.create_model_version(request_.name, request_.source, **again)
    hook.client.set_registered_model_alias(request_.name, "production", "3")
    assert model_registry.ensure_version(hook, request_).version == 1
    left = hook.client.search_model_versions(f"name='{request_.name}'")
    assert sorted(int(version.version) for version in left) == [1, 3]
