"""The DAG `verify_releases` on released versions: damage in the store, outages, roll backs, events and pages."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from airflow.providers.amazon.aws.hooks.s3 import S3Hook
from airflow.sdk.exceptions import AirflowSkipException
from airflow.sdk.execution_time.context import OutletEventAccessors

from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.events.verification_events import VERIFIED_VERSIONS, VerificationCallback
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.roll_back_failed import RollBackFailedVersionsOperator, version_before
from airflow_onnx.operators.summarize_verification import SummarizeVerificationOperator
from airflow_onnx.operators.verify_releases import ListReleasedVersionsOperator, VerifyReleasedVersionsOperator
from airflow_onnx.storage import s3
from airflow_onnx.tracking import alias_log, promotion
from airflow_onnx.tracking.promotion_lock import promotion_lock
from onnx_release.errors import Transient
from onnx_release.limits import REFERENCE_FILE, SIGNATURE_FILE
from onnx_release.provenance.signature import sign
from onnx_release.records import AliasMove
from onnx_release.records.verification import RollBack, VersionResult
from onnx_release.training_runs import tags, verifications
from stack import setup
from tests.core.provenance import keys
from tests.edge.events.airflow_home import run_in_airflow
from tests.edge.operators.test_evidence import use_key
from tests.edge.releasing import BUCKET, Release, new_release
from tests.edge.ui.test_pages import client_of
from tests.refusals import failed
from tests.services import Services


@dataclass
class Registered:
    """A registered model. Each version has its own copy of the same objects. `candidate` is at the newest version."""

    hook: MlflowHook
    name: str
    sources: dict[int, str] = field(default_factory=dict)
    runs: dict[int, str] = field(default_factory=dict)

    def key(self, version: int, path: str) -> str:
        return f"{self.sources[version].removeprefix(f's3://{BUCKET}/')}/{path}"

    def tags(self, version: int) -> dict[str, str]:
        return dict(self.hook.client.get_model_version(self.name, str(version)).tags)

    def move(self, version: int) -> None:
        with promotion_lock(self.hook, self.name, "release") as lock:
            moved = AliasMove(
                alias="candidate", from_version=None, to_version=version, by="anna", at="", why="released"
            )
            promotion.move_alias(self.hook, self.name, moved, lock)

    def holder(self) -> int:
        return int(self.hook.client.get_model_version_by_alias(self.name, "candidate").version)

    def change(self, version: int, path: str = "model.onnx") -> None:
        """Change one byte of an object in MinIO."""
        store = S3Hook("minio_default")
        content = bytearray(store.get_key(self.key(version, path), BUCKET).get()["Body"].read())
        content[len(content) // 2] ^= 1
        store.load_bytes(bytes(content), self.key(version, path), BUCKET, replace=True)


@pytest.fixture(scope="module")
def published(judged: Release) -> Release:
    """An uploaded and registered version."""
    release = new_release(judged.training_run_id)
    release.after(judged, "parity_latency").run("upload", "register")
    return release


@pytest.fixture
def model(hook: MlflowHook, published: Release) -> Registered:
    version = published.returned["register"]
    made = Registered(hook, f"verified-{uuid.uuid4().hex[:8]}")
    found = dict(hook.client.get_model_version(version["name"], "1").tags)
    hook.client.create_registered_model(made.name)
    client, origin = S3Hook("minio_default").get_conn(), version["source"].removeprefix(f"s3://{BUCKET}/")
    listed = client.list_objects_v2(Bucket=BUCKET, Prefix=f"{origin}/")["Contents"]
    for number in (1, 2):
        made.sources[number] = f"s3://{BUCKET}/test/{made.name}/{number}"
        made.runs[number] = hook.client.create_run("0").info.run_id
        for item in listed:
            target = made.key(number, item["Key"].removeprefix(f"{origin}/"))
            client.copy_object(Bucket=BUCKET, Key=target, CopySource={"Bucket": BUCKET, "Key": item["Key"]})
        hook.client.create_model_version(
            made.name, made.sources[number], made.runs[number], found, await_creation_for=0
        )
        current = {tags.STATUS: "released", tags.REGISTERED_MODEL: made.name, tags.VERSION: str(number)}
        hook.set_tags(made.runs[number], current | {tags.ATTEMPTED_AT: tags.now()})
        made.move(number)
    return made


@dataclass
class DagRun:
    """One DAG run of `verify_releases`."""

    model: Registered
    run_id: str = "scheduled__1"
    try_number: int = 1
    buckets: Any = f'["{BUCKET}"]'
    pushed: dict[str, Any] = field(default_factory=dict)
    events: OutletEventAccessors = field(default_factory=OutletEventAccessors)
    listed: Any = None
    found: Any = None
    moves: Any = None

    @property
    def context(self) -> Any:
        ti = SimpleNamespace(
            id=uuid.uuid4(), try_number=self.try_number, max_tries=3, task=SimpleNamespace(retries=3), task_id="t",
            xcom_push=lambda key, value: self.pushed.update({key: value}),
            xcom_pull=lambda task_ids, key: self.pushed[key],
        )  # fmt: skip
        run = SimpleNamespace(dag_id="verify_releases", run_id=self.run_id, triggering_user_name=None, conf={})
        return {"ti": ti, "dag_run": run, "outlet_events": self.events}

    def verify(self, *, all_versions: bool = False, latency: bool = False) -> list[VersionResult]:
        lister = ListReleasedVersionsOperator(
            task_id="list", models=[self.model.name], all_versions="true" if all_versions else "false"
        )
        self.listed = lister.execute(self.context)
        self.found = [
            VerifyReleasedVersionsOperator(
                task_id="verify", versions=rows, buckets=self.buckets, latency=latency, outlets=[VERIFIED_VERSIONS]
            ).execute(self.context)
            for rows in self.listed
        ]
        return [VersionResult.from_dict(row) for rows in self.found for row in rows]

    def roll_back(self, on_failure: str = "roll_back") -> list[RollBack]:
        self.moves = RollBackFailedVersionsOperator(
            task_id="roll_back", found=self.found, on_failure=on_failure, buckets=self.buckets,
            outlets=[RELEASED_VERSIONS],
        ).execute(self.context)  # fmt: skip
        return [RollBack.from_dict(row) for row in self.moves]

    def summarize(self) -> dict[str, Any]:
        task = SummarizeVerificationOperator(task_id="t", listed=self.listed, found=self.found, moves=self.moves)
        task.execute(self.context)
        return dict(self.pushed["verification"])


def test_versions_that_pass_get_the_same_tags_from_each_dag_run(model: Registered) -> None:
    first = DagRun(model)
    (held,) = first.verify(latency=True)
    assert (held.version, held.outcome, held.aliases, held.is_news) == (2, "passed", ("candidate",), False)
    assert held.max_abs is not None
    assert held.max_abs < 1e-5
    assert "p50" in held.latency
    assert "recorded p50" in held.latency
    assert [one.version for one in DagRun(model, run_id="two").verify(all_versions=True)] == [2, 1]
    found = model.tags(2)
    assert (found[tags.VERSION_VERIFIED], found[tags.VERSION_VERIFIED_RUNTIME]) == ("passed", held.runtime)
    assert tags.VERSION_VERIFIED_REASON not in found
    (entry,) = verifications.changes_in(found)
    assert (entry.verdict, entry.dag_run) == ("passed", "scheduled__1")
    assert first.events[VERIFIED_VERSIONS].asset_alias_events == []
    assert first.summarize()["headline"] == "1 version: 1 passed."
    with pytest.raises(AirflowSkipException):
        first.roll_back("nothing")


def test_a_changed_byte_is_found_shown_and_rolled_back(
    model: Registered, services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    DagRun(model, run_id="before").verify(all_versions=True)
    model.change(2)
    run = DagRun(model)
    (found,) = run.verify()
    assert (found.outcome, found.is_news) == ("failed", True)
    assert "files: " in found.reason
    assert "model.onnx changed" in found.reason
    assert model.holder() == 2, "nothing moves by itself"
    (event,) = run.events[VERIFIED_VERSIONS].asset_alias_events
    assert event.dest_asset_key.name == "onnx-verification"
    assert (event.extra["version"], event.extra["verdict"]) == (2, "failed")
    again = DagRun(model, try_number=2)
    assert again.verify()[0].is_news, "a second try of the same DAG run"
    assert not DagRun(model, run_id="later").verify()[0].is_news
    assert [one.verdict for one in verifications.changes_in(model.tags(2))] == ["passed", "failed"]
    _assert_shown(model, found.reason)
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PROTECTED_ALIASES", "candidate")
    (stays,) = run.roll_back()
    assert (stays.moved, model.holder()) == (False, 2)
    assert "needs an approval" in stays.sentence
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PROTECTED_ALIASES", "champion")
    (moved,) = run.roll_back()
    assert (moved.moved, moved.to_version, model.holder()) == (True, 1, 1)
    assert run.roll_back()[0].moved, "a second try of the task"
    last = alias_log.read(model.hook, model.name)[-1]
    assert (last.from_version, last.to_version, last.by) == (2, 1, "Airflow")
    assert "failed its verification: files" in last.why
    assert run.events[RELEASED_VERSIONS].asset_alias_events[0].extra["version"] == 1
    called: list[Any] = []
    with failed("versions_failed", f"{model.name} v2"):
        run.summarize()
    VerificationCallback(called.append)(run.context)
    assert called[0]["verification"].headline == "1 version: 1 failed."
    assert called[0]["verification"].roll_backs[0].moved


def _assert_shown(model: Registered, reason: str) -> None:
    from airflow_onnx.ui.app import URL_PREFIX, make_app
    from tests.edge.ui.test_pages import eventually

    app = make_app()
    for check in (app.state.may_read, app.state.may_read_moves):
        app.dependency_overrides[check] = lambda: None
    with client_of(app) as client:
        eventually(client, f"{URL_PREFIX}/releases?model={model.name}", "verification failed")
        page = client.get(f"{URL_PREFIX}/models/{model.name}").text
        release = client.get(f"{URL_PREFIX}/releases/{model.runs[2]}").text
    assert "verification failed" in page
    assert "Verification log" in page
    assert "on ONNX Runtime" in page, "version 1 has passed"
    assert "failed its verification" in release
    assert "Roll @candidate back to v1" in release
    assert "model.onnx changed" in release


def test_missing_objects_a_swapped_report_and_a_bad_target_are_named(model: Registered, published: Release) -> None:
    client = S3Hook("minio_default").get_conn()
    client.delete_object(Bucket=BUCKET, Key=model.key(2, REFERENCE_FILE))
    client.put_object(Bucket=BUCKET, Key=model.key(2, "extra.py"), Body=b"import os")
    run = DagRun(model)
    (found,) = run.verify()
    assert f"{REFERENCE_FILE} is missing" in found.reason
    assert "extra.py was not there before" in found.reason
    model.change(1, "report.json")
    report = S3Hook("minio_default").get_key(model.key(2, "report.json"), BUCKET).get()["Body"].read().decode()
    sha256 = published.returned["register"]["sha256"]
    client.put_object(Bucket=BUCKET, Key=model.key(1, "report.json"), Body=report.replace(sha256, "0" * 64).encode())
    (stays,) = run.roll_back()
    assert not stays.moved
    assert "version 1 fails too: report: report.json has the sha256 000" in stays.reason
    client.put_object(Bucket=BUCKET, Key=model.key(2, "report.json"), Body=b"[" * 100_000)
    assert "report.json cannot be used" in DagRun(model).verify()[0].reason
    client.delete_object(Bucket=BUCKET, Key=model.key(2, "report.json"))
    assert "report.json is missing" in DagRun(model).verify()[0].reason
    assert model.holder() == 2


def test_an_outage_and_a_foreign_bucket_are_no_verdict(model: Registered, services: Services) -> None:
    services.stop("minio")
    try:
        with pytest.raises(Transient):
            DagRun(model).verify()
        run = DagRun(model, try_number=4)
        (found,) = run.verify()
    finally:
        services.start("minio")
    assert (found.outcome, found.is_news) == ("not verified", False)
    assert "cannot be reached" in found.reason
    assert tags.VERSION_VERIFIED not in model.tags(2)
    assert run.roll_back() == []
    with failed("versions_not_verified"):
        run.summarize()
    (found,) = DagRun(model, buckets=["other-models"]).verify()
    assert (found.outcome, "outside of the allowed buckets" in found.reason) == ("not verified", True)
    with failed("missing_value"):
        DagRun(model, buckets="[]").verify()
    run.found = []
    with failed("versions_not_verified", model.name):
        run.summarize()


@pytest.mark.parametrize(
    ("moves", "before"),
    [([(1, 2)], 1), ([(1, 2), (2, 3), (3, 2)], 1), ([(3, 2)], None), ([(None, 2)], None), ([], None)],
)
def test_an_alias_never_goes_back_to_a_version_that_it_has_left(
    moves: list[tuple[int | None, int]], before: int | None
) -> None:
    log = [AliasMove(alias="a", from_version=old, to_version=new, by="", at="", why="") for old, new in moves]
    assert version_before(log, 2) == before


def test_a_deployment_with_a_key_verifies_the_signature(
    model: Registered, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = keys.new_key()
    use_key(monkeypatch, key)
    assert DagRun(model).verify()[0].outcome == "passed", "it was never signed"
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__REQUIRE_SIGNATURE", "True")
    assert "signed: The signature model.sig is missing" in DagRun(model).verify()[0].reason
    folder = s3.folder_at("minio_default", model.sources[2])
    for path in s3.sizes(folder):
        s3.fetch_one(folder, path, tmp_path, 2**26)
    client = S3Hook("minio_default").get_conn()
    client.upload_file(str(sign(tmp_path, keys.signing_key(key))), BUCKET, model.key(2, SIGNATURE_FILE))
    assert DagRun(model).verify()[0].outcome == "passed"
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__REQUIRE_SIGNATURE", "False")
    use_key(monkeypatch, keys.new_key())
    assert "signed: " in DagRun(model).verify()[0].reason
    monkeypatch.setenv("AIRFLOW_CONN_SIGNING", '{"conn_type": "generic"}')
    assert DagRun(model).verify()[0].outcome == "not verified", "a mistake of the deployment"


def test_hostile_tags_are_no_result(model: Registered) -> None:
    hostile = '<script>alert("1")</script>\n\u202e'
    found = {
        tags.VERSION_VERIFIED: hostile,
        tags.VERSION_VERIFICATION_LOG: "[" * 3000,
        tags.VERIFICATION: '{"version": "2", "verdict": "passed"}',
    }
    assert verifications.of_version(2, found) is None
    assert verifications.of_run(found) is None
    assert verifications.changes_in(found) == []
    assert verifications.of_run({tags.VERIFICATION: "[]"}) is None
    for key, text in found.items():
        model.hook.client.set_model_version_tag(model.name, "2", key, text)
    S3Hook("minio_default").get_conn().put_object(
        Bucket=BUCKET, Key=model.key(2, f"{'x' * 700}<script>"), Body=b"hostile"
    )
    (result,) = DagRun(model, run_id=hostile).verify()
    assert (result.outcome, len(result.reason)) == ("failed", 500)
    assert model.tags(2)[tags.VERSION_VERIFIED] == "failed"
    assert verifications.of_version(2, model.tags(2)) is not None


DAG_FILE = """
from airflow_onnx.verification_dag import verify_releases_dag

def write(context):
    with open(__file__ + ".note", "a") as file:
        file.write(context["verification"].headline)

dag = verify_releases_dag("verify_releases", on_failure="roll_back", at_once=1, on_change=write)
"""
SCRIPT = """
from airflow.models.asset import AssetEvent
from airflow.utils.session import create_session
from sqlalchemy import select

run = bag.dags["verify_releases"].test(run_conf={"models": [os.environ["MODEL"]], "buckets": ["heimdall-models"]})
found["state"] = run.state
found["tasks"] = {f"{one.task_id} {one.map_index}": one.state for one in run.get_task_instances()}
with create_session() as session:
    found["events"] = sorted(event.asset.name for event in session.scalars(select(AssetEvent)))
"""


def test_the_dag_verifies_rolls_back_notifies_and_fails(model: Registered, services: Services, tmp_path: Path) -> None:
    model.change(2)
    env = setup.connection_environment(services.context) | {"MODEL": model.name}
    done = run_in_airflow(tmp_path, {"verifying.py": DAG_FILE}, SCRIPT, **env)
    assert done["state"] == "failed", done["log"][-3000:]
    states = {"list -1": "success", "verify 0": "success", "roll_back -1": "success", "summarize -1": "failed"}
    assert done["tasks"] == states, done["log"][-3000:]
    assert done["events"] == [f"models:/{model.name}@candidate", "onnx-verification"]
    assert model.holder() == 1
    assert (tmp_path / "dags" / "verifying.py.note").read_text() == "1 version: 1 failed."
    assert "went back from version 2 to version 1" in done["log"]
