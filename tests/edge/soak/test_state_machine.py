"""Random orders of releases, clears, faults, approvals, roll-backs, deletions and garbage collections.

The statements are checked after each.
The operators run on the real MLflow and MinIO, without Airflow's scheduler. ``SOAK_EXAMPLES`` is the number of orders.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException, TaskAwaitingInput
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from airflow_onnx.errors import LeftoversRefused
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers.collect import Collector
from airflow_onnx.storage import s3
from airflow_onnx.tracking import run_log
from onnx_release.errors import Transient
from soak.airflow_state import AirflowState
from soak.fault_proxy import Fault, Plan, proxy
from soak.statements import Places, violations
from stack.minio import s3_client
from tests.edge.airflow_stand_in import Supervisor, answer
from tests.edge.conftest import Led, Services
from tests.edge.leftovers.conftest import NO_GRACE_S
from tests.edge.operators.test_move_alias import Moving, Released
from tests.edge.releasing import BUCKET, Release, trained_run

EXAMPLES = int(os.environ.get("SOAK_EXAMPLES", "2"))
STEPS = 6 if EXAMPLES <= 2 else 15
TRIES = 3

# One server, and a fault of one of its requests.
FAULTS: dict[str, tuple[str, Fault]] = {
    "an upload's answer is lost": ("minio", Fault(kind="lost", method="PUT")),
    "the store refuses": ("minio", Fault(kind="status", method="PUT", times=12)),
    "a bit flips in a download": ("minio", Fault(kind="flipped download", method="GET", path=r"model\.onnx")),
    "a download is cut": ("minio", Fault(kind="cut download", method="GET", path=r"model\.onnx", size=50)),
    "the version's answer is lost": ("mlflow", Fault(kind="lost", path="/model-versions/create")),
    "the alias's answer is lost": ("mlflow", Fault(kind="lost", method="POST", path="/registered-models/alias")),
    "the log is lost": ("mlflow", Fault(kind="lost", path="/runs/log-batch")),
}


class World:
    """The servers behind proxies, and two judged releases of different training runs."""

    def __init__(self, hook: MlflowHook, services: Services, supervisor: Supervisor, judged: list[Release]) -> None:
        self.hook, self.supervisor, self.judged = hook, supervisor, judged
        self.store = s3_client(services.context)
        self.plans = {"minio": Plan(), "mlflow": Plan()}


class Releases(RuleBasedStateMachine):
    """One registered model."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.name = f"model-{uuid.uuid4().hex[:8]}"
        self.dag_runs: list[Release] = []
        self.states: dict[tuple[str, str], str] = {}
        self.asked: set[str] = set()
        # The training runs whose version a person deleted: their tags and objects are of the past.
        self.deleted: set[str] = set()

    def _new(self, which: int, **params: Any) -> Release:
        judged = self.world.judged[which]
        made = Release(judged.training_run_id, self.name, dag_run_id=f"manual__{uuid.uuid4().hex}", params=params)
        if judged.training_run_id not in self.asked:
            # The machine before this one has released the same training run under another name.
            for tag in self.world.hook.client.get_run(judged.training_run_id).data.tags:
                if tag.startswith("onnx_release."):
                    self.world.hook.client.delete_tag(judged.training_run_id, tag)
        self.asked.add(judged.training_run_id)
        self.dag_runs.append(made.after(judged, "parity_latency"))
        # The sensor does this in its first try.
        run_log.log_start(self.world.hook, made.context, made.training_run_id)
        return made

    def _run(self, release: Release, *tasks: str) -> None:
        """Run tasks as Airflow does: repeat a failed one, and end with the tear-down."""
        state = "success"
        for task in tasks:
            # A clear removes what the task returned.
            release.returned.pop(task, None)
        for task in tasks:
            if state == "success" and not self._ends(release, task):
                state = "failed"
        if state == "success":
            self.deleted.discard(release.training_run_id)
        release.clean()
        self.states["release_onnx", release.dag_run_id] = state

    def _ends(self, release: Release, task: str) -> bool:
        for _ in range(TRIES):
            try:
                release.run(task)
            except (AirflowFailException, Transient) as error:
                if isinstance(error, AirflowFailException):
                    return False
            else:
                return True
        return False

    @rule(which=st.integers(0, 1), fault=st.sampled_from([None, *FAULTS]))
    def release(self, which: int, fault: str | None) -> None:
        """Release a training run for the first time or again."""
        self._with_fault(self._new(which), fault, "upload", "register", "promote")

    @precondition(lambda self: self.dag_runs)
    @rule(data=st.data(), fault=st.sampled_from([None, *FAULTS]))
    def clear(self, data: st.DataObject, fault: str | None) -> None:
        """Clear the upload of an older DAG run with its downstream tasks."""
        ended = [one for one in self.dag_runs if one.artifact_folder.is_dir() and one not in self._waiting()]
        if ended:
            self._with_fault(data.draw(st.sampled_from(ended)), fault, "upload", "register", "promote")

    def _with_fault(self, release: Release, fault: str | None, *tasks: str) -> None:
        if fault is None:
            self._run(release, *tasks)
            return
        server, kind = FAULTS[fault]
        added = self.world.plans[server].add(
            Fault(kind=kind.kind, method=kind.method, path=kind.path, times=kind.times, size=kind.size)
        )
        try:
            self._run(release, *tasks)
        finally:
            self.world.plans[server].remove(added)

    def _waiting(self) -> list[Release]:
        return [one for one in self.dag_runs if self.states.get(("release_onnx", one.dag_run_id)) == "running"]

    @rule(which=st.integers(0, 1))
    def ask(self, which: int) -> None:
        """Release with an approval, as far as the question."""
        release = self._new(which, promotion="approve")
        self.states["release_onnx", release.dag_run_id] = "running"
        release.run("upload", "register")
        self.deleted.discard(release.training_run_id)
        try:
            release.run("approve")
        except TaskAwaitingInput as waiting:
            release.resumed_with = json.loads(json.dumps(waiting.kwargs))
        else:
            # The aliases are at the version already.
            self._run(release, "promote")

    @precondition(lambda self: self._waiting())
    @rule(choice=st.sampled_from(["Approve", "Reject"]))
    def respond(self, choice: str) -> None:
        """Answer the oldest question."""
        release = self._waiting()[0]
        release.running = "approve"
        task = release._approve()
        try:
            release.returned["approve"] = task.execute_complete(release.context, answer(choice), **release.resumed_with)
        except AirflowFailException:
            # A rejection.
            release.states["approve"] = "failed"
            release.clean()
            self.states["release_onnx", release.dag_run_id] = "failed"
            return
        self._run(release, "promote")

    def _versions(self) -> list[Any]:
        return list(self.world.hook.client.search_model_versions(f"name='{self.name}'"))

    @rule(data=st.data())
    def roll_back(self, data: st.DataObject) -> None:
        """Move the alias to another version, as the DAG `move_alias` does."""
        sound = [one for one in self._versions() if one.tags["onnx.status"].startswith("released")]
        aliases = self.world.hook.client.get_registered_model(self.name).aliases if sound else {}
        if not aliases.get("candidate"):
            return
        chosen = data.draw(st.sampled_from([one.version for one in sound]))
        found = Released(self.name, "", "", "")
        moving = Moving(found, version=str(chosen), expected_version=str(aliases["candidate"]))
        try:
            moving.verify()
            moving.move()
        except AirflowFailException:
            # It is there already.
            if chosen != aliases["candidate"]:
                raise

    @precondition(lambda self: self.asked and not self._waiting())
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        """Delete a version in MLflow, as a person does."""
        if found := self._versions():
            version = data.draw(st.sampled_from(sorted(found, key=lambda one: int(one.version))))
            self.world.hook.client.delete_model_version(self.name, version.version)
            self.deleted.add(version.run_id)

    @precondition(lambda self: self.asked)
    @rule()
    def collect_leftovers(self) -> None:
        """Remove the leftovers of this model without a grace period."""
        folder = s3.folder_at("minio_default", f"s3://{BUCKET}", rerun=None)
        # The objects have the address that the releases have used.
        with MlflowRest(MlflowHook().server) as rest:
            collector = Collector(
                rest=rest, folder=folder, staging_uri=f"{folder.uri}/{self.name}-staging",
                checked_uri=f"{folder.uri}/{self.name}-staging", grace_s=NO_GRACE_S, work_keep_s=NO_GRACE_S,
                is_active=lambda dag_id, run_id: self.states.get((dag_id, run_id)) == "running",
            )  # fmt: skip
            try:
                found = collector.find()
            except LeftoversRefused as refusal:
                # A person has deleted the only version.
                if refusal.code != "registry_empty":
                    raise
                return
            own = tuple(one for one in found.leftovers if f"/{self.name}/" in one.place)
            assert [one for one in collector.remove(found.replace(leftovers=own)).leftovers if not one.removed] == []

    @invariant()
    def statements(self) -> None:
        """Check the statements. Only a deletion by a person leaves objects and an answer behind."""
        client = self.world.hook.client
        places = Places(store=self.world.store, bucket=BUCKET, mlflow=client, airflow=AirflowState(self.states))
        found = violations(places, self.asked, [self.name])
        assert [one for one in found if not any(run_id in one.text for run_id in self.deleted)] == []


@pytest.fixture
def world(hook: MlflowHook, services: Services, supervisor: Supervisor, judged: Release, led: Led) -> Iterator[World]:
    other = Release(trained_run(seed=1), "template-2", dag_run_id="manual__2")
    other.to("parity_latency")
    made = World(hook, services, supervisor, [judged, other])
    with (
        proxy(services.context.minio_url, plan=made.plans["minio"]) as minio,
        proxy(services.context.mlflow_url, plan=made.plans["mlflow"]) as mlflow,
    ):
        led("minio_default", minio)
        led("mlflow_default", mlflow)
        yield made


def test_the_statements_are_true_after_every_order_of_events(world: World) -> None:
    machine = type("Machine", (Releases,), {"world": world})
    fast = EXAMPLES <= 2
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            database=None,
            derandomize=fast,
            # A shorter example would take minutes.
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            print_blob=not fast,
        ),
    )
