"""Move of an alias that a person asks for: verified files, the expected version, approval, log and tags."""

from __future__ import annotations

import shutil
import uuid
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import DownstreamTasksSkipped, TaskAwaitingInput
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.move_alias import ApproveMoveOperator, MoveAliasOperator, VerifyVersionOperator
from airflow_onnx.tracking import alias_log
from onnx_release.artifact.digests import describe_folder, folder_sha256
from onnx_release.records import OnnxArtifact
from onnx_release.report.release_report import build_report, write_report
from onnx_release.training_runs import tags
from tests.core import records
from tests.edge.airflow_stand_in import Supervisor, answer
from tests.edge.releasing import Release, new_release, tags_of
from tests.edge.tracking.reports import RELEASED, put_report
from tests.edge.tracking.test_contract import contract
from tests.refusals import failed

REASON = "version 2 is slow in the field"


@dataclass(frozen=True)
class Released:
    """A registered model with two versions of the same verifiable files. The alias is at version 2."""

    model_name: str
    training_run_id: str
    source: str
    sha256: str


@pytest.fixture(scope="module")
def published(judged: Release) -> Release:
    """An uploaded and registered version."""
    release = new_release(judged.training_run_id)
    release.after(judged, "parity_latency").run("upload", "register")
    return release


@pytest.fixture
def released(hook: MlflowHook, published: Release) -> Released:
    version = published.returned["register"]
    name, run = f"model-{uuid.uuid4().hex[:8]}", hook.client.create_run("0").info.run_id
    hook.client.create_registered_model(name)
    found = dict(hook.client.get_model_version(version["name"], "1").tags)
    for training_run in (run, hook.client.create_run("0").info.run_id):
        hook.client.create_model_version(name, version["source"], training_run, found, await_creation_for=0)
    hook.client.set_registered_model_alias(name, "candidate", "2")
    hook.set_tags(run, {tags.REGISTERED_MODEL: name, tags.VERSION: "1"})
    return Released(name, run, version["source"], version["sha256"])


def holder(hook: MlflowHook, released: Released) -> int:
    return int(hook.client.get_model_version_by_alias(released.model_name, "candidate").version)


class Moving:
    """One DAG run of `move_alias`."""

    def __init__(self, release: Released, **request: Any) -> None:
        self.request = {
            "model_name": release.model_name, "alias": "candidate", "version": "1", "expected_version": "2",
            "reason": REASON, **request,
        }  # fmt: skip
        self.dag_run_id = f"manual__{uuid.uuid4().hex}"
        self.step = {"contract_change": self.request.pop("contract_change", "refuse")}
        self.pushed: dict[str, Any] = {}
        self.events = OutletEventAccessors()
        self.verified: Any = None
        self.approved = ""

    @property
    def context(self) -> Any:
        ti = SimpleNamespace(
            id=uuid.uuid4(), try_number=1, max_tries=3, task=SimpleNamespace(retries=3),
            xcom_push=lambda key, value: self.pushed.update({key: value}),
        )  # fmt: skip
        run = SimpleNamespace(dag_id="move_alias", run_id=self.dag_run_id, triggering_user_name="anna", conf={})
        return {"ti": ti, "dag_run": run, "outlet_events": self.events}

    def verify(self) -> None:
        task = VerifyVersionOperator(task_id="verify", **self.request, **self.step)
        try:
            self.verified = task.execute(self.context)
        except DownstreamTasksSkipped:
            self.verified = self.pushed.pop("return_value")

    def approve(self, event: dict[str, Any]) -> None:
        task = ApproveMoveOperator(task_id="approve", verified=self.verified, timeout_h="2.5", **self.step)
        with pytest.raises(TaskAwaitingInput) as waiting:
            task.execute(self.context)
        assert (waiting.value.method_name, waiting.value.timeout.total_seconds()) == ("execute_complete", 9000)
        self.approved = task.execute_complete(self.context, event, **waiting.value.kwargs)

    def move(self) -> dict[str, Any]:
        task = MoveAliasOperator(
            task_id="move", verified=self.verified, given=self.approved, outlets=[RELEASED_VERSIONS], **self.step
        )
        return task.execute(self.context)


def test_a_roll_back_moves_the_alias_once_and_records_it(hook: MlflowHook, released: Released) -> None:
    moving = Moving(released)
    moving.verify()
    assert holder(hook, released) == 2, "nothing moves before the verification has ended"
    moving.move()
    assert holder(hook, released) == 1
    found = moving.move()
    assert (found["from_version"], found["to_version"]) == (None, 1), "a second try"
    (last,) = alias_log.read(hook, released.model_name)
    assert (last.alias, last.from_version, last.to_version, last.by) == ("candidate", 2, 1, "anna")
    assert (last.why, last.dag_run) == (REASON, moving.dag_run_id)
    (event, _) = moving.events[RELEASED_VERSIONS].asset_alias_events
    assert event.dest_asset_key.uri == f"models:/{released.model_name}@candidate"
    assert event.extra["version"] == 1
    assert tags_of(hook, released.training_run_id)["alias"] == "candidate"


def test_a_move_away_is_recorded_on_the_training_run(hook: MlflowHook, released: Released) -> None:
    hook.client.set_registered_model_alias(released.model_name, "candidate", "1")
    moving = Moving(released, version=2, expected_version=1)
    moving.verify()
    moving.move()
    found = tags_of(hook, released.training_run_id)
    assert "alias" not in found
    assert found["alias_note"] == f"The alias 'candidate' was moved to version 2 by anna: {REASON}"


def test_files_in_a_bucket_that_the_deployment_does_not_allow_are_not_read(
    hook: MlflowHook, released: Released, administrator: None
) -> None:
    # The registry names the place, and the worker's account may read more than the releases.
    source = f"s3://mlflow/{released.model_name}"
    store = S3Hook("minio_default").get_conn()
    bucket, _, prefix = released.source.removeprefix("s3://").partition("/")
    for item in store.list_objects_v2(Bucket=bucket, Prefix=prefix)["Contents"]:
        key = f"{released.model_name}{item['Key'].removeprefix(prefix)}"
        store.copy_object(Bucket="mlflow", Key=key, CopySource={"Bucket": bucket, "Key": item["Key"]})
    found = dict(hook.client.get_model_version(released.model_name, "1").tags)
    hook.client.create_model_version(released.model_name, source, tags=found, await_creation_for=0)
    with failed("version_bucket", "'mlflow'", "(heimdall-models)", "[onnx_release] release_buckets"):
        Moving(released, version="3").verify()


@pytest.mark.parametrize(("expected", "words"), [("1", "at version 1"), ("", "at no version"), (None, "at no version")])
def test_another_current_version_than_the_expected_one_is_refused(
    hook: MlflowHook, released: Released, expected: Any, words: str
) -> None:
    hook.client.create_model_version(released.model_name, "s3://elsewhere/x")
    hook.client.set_registered_model_alias(released.model_name, "candidate", "3")
    with failed("alias_moved", "is at version 3 now", words):
        Moving(released, expected_version=expected).verify()


def test_a_move_by_another_person_after_the_verification_is_refused(hook: MlflowHook, released: Released) -> None:
    moving = Moving(released)
    moving.verify()
    hook.client.create_model_version(released.model_name, "s3://elsewhere/x")
    hook.client.set_registered_model_alias(released.model_name, "candidate", "3")
    with failed("alias_moved"):
        moving.move()
    assert holder(hook, released) == 3


def test_of_two_moves_at_the_same_time_one_is_refused(hook: MlflowHook, released: Released) -> None:
    found = dict(hook.client.get_model_version(released.model_name, "1").tags)
    hook.client.create_model_version(released.model_name, released.source, tags=found, await_creation_for=0)
    both = [Moving(released, version=version) for version in (1, 3)]
    for moving in both:
        moving.verify()
    with ThreadPoolExecutor() as pool:
        ends = [future.exception() for future in [pool.submit(moving.move) for moving in both]]
    (moved,) = [moving for moving, end in zip(both, ends, strict=True) if end is None]
    assert holder(hook, released) == moved.request["version"]
    (refusal,) = [end for end in ends if end is not None]
    assert "was expected at version 2" in str(refusal)
    (last,) = alias_log.read(hook, released.model_name)
    assert (last.from_version, last.to_version) == (2, moved.request["version"])


def test_a_version_whose_model_does_not_load_is_refused(
    hook: MlflowHook, released: Released, published: Release, tmp_path: Path
) -> None:
    folder = shutil.copytree(published.artifact_folder, tmp_path / "model")
    (folder / "model.onnx").write_bytes(b"a release of another time")
    files = describe_folder(folder)
    artifact = OnnxArtifact.from_dict(published.returned["export"])
    artifact = artifact.replace(files=files, sha256=folder_sha256(files))
    write_report(folder, build_report(records.TRAINING, artifact, records.check(), records.benchmark()))
    source = f"s3://heimdall-models/test/{released.model_name}"
    for file in filter(Path.is_file, folder.rglob("*")):
        key = f"test/{released.model_name}/{file.relative_to(folder)}"
        S3Hook("minio_default").load_bytes(file.read_bytes(), key, "heimdall-models")
    hook.client.create_model_version(released.model_name, source, tags={tags.VERSION_SHA256: artifact.sha256})
    with failed("onnxruntime_rejected"):
        Moving(released, version=3).verify()
    assert holder(hook, released) == 2


def test_a_version_with_changed_or_missing_files_is_refused(hook: MlflowHook, released: Released) -> None:
    key = f"{released.source.removeprefix('s3://heimdall-models/')}/model.onnx"
    s3 = S3Hook("minio_default")
    before = s3.get_key(key, "heimdall-models").get()["Body"].read()
    moving = Moving(released)
    moving.verify()
    s3.load_bytes(before + b"x", key, "heimdall-models", replace=True)
    with failed("objects_changed", "model.onnx"):
        moving.move()
    with failed("object_changed", "/model.onnx changed"):
        Moving(released).verify()
    s3.get_conn().delete_object(Bucket="heimdall-models", Key=key)
    with failed("no_object", "model.onnx"):
        Moving(released).verify()
    s3.load_bytes(before, key, "heimdall-models")
    assert holder(hook, released) == 2


def test_a_version_of_another_program_is_refused(hook: MlflowHook, released: Released) -> None:
    hook.client.create_model_version(released.model_name, "s3://elsewhere/x")
    with failed("not_verifiable"):
        Moving(released, version=3).verify()
    hook.client.create_model_version(released.model_name, released.source, tags={tags.VERSION_SHA256: "0" * 64})
    with failed("not_verifiable", "another artifact"):
        Moving(released, version=4).verify()
    with failed("not_found"):
        Moving(released, version=99).verify()


def test_other_inputs_and_outputs_are_refused_unless_a_person_allows_them(hook: MlflowHook, released: Released) -> None:
    other = put_report(contract([("x", "float32", ("batch", 8))], []))
    version = hook.client.create_model_version(released.model_name, other, tags=RELEASED).version
    hook.client.set_registered_model_alias(released.model_name, "candidate", version)
    with failed("contract_change"):
        Moving(released, expected_version=version).verify()
    moving = Moving(released, expected_version=version, contract_change="allow")
    moving.verify()
    moving.move()
    assert holder(hook, released) == 1


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        ({"version": "null"}, "missing_value"),
        ({"reason": " \n"}, "missing_value"),
        ({"version": "0"}, "not_in_range"),
        ({"expected_version": "two"}, "not_in_range"),
        ({"alias": "latest"}, "reserved_alias"),
        ({"model_name": "../x"}, "wrong_name"),
    ],
)
def test_wrong_parameters_are_refused(hook: MlflowHook, wrong: dict[str, Any], code: str) -> None:
    with failed(code):
        Moving(Released("model", "x", "", ""), **wrong).verify()


def test_a_protected_alias_moves_after_an_approval(
    hook: MlflowHook, released: Released, supervisor: Supervisor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PROTECTED_ALIASES", "candidate, champion")
    moving = Moving(released, reason="<script>alert(1)</script> [x](http://evil)")
    moving.verify()
    with failed("no_approval"):
        moving.move()
    with failed("rejected", "bert: not now"):
        moving.approve(answer("Reject", "not now"))
    with failed("not_answered"):
        moving.approve({"error": "too late", "error_type": "timeout"})
    moving.approve(answer("Approve", "as agreed"))
    body = str(supervisor.questions[-1].body)
    assert "&lt;script&gt;alert(1)&lt;/script&gt; [x]\\(http&#58;" in body
    assert released.sha256 in body

    other = {**moving.approved, "sha256": "0" * 64}
    moving.approved, given = other, moving.approved
    with failed("no_approval"):
        moving.move()
    moving.approved = given
    moving.move()
    assert holder(hook, released) == 1
    last = alias_log.read(hook, released.model_name)[-1]
    assert last.why.endswith("(approved by bert: as agreed)")
