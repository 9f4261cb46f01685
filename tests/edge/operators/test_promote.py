"""Rules of the alias: the same inputs and outputs, and never back to an older training run unless a person asks."""

from __future__ import annotations

import threading
import time

import mlflow
import pytest

from airflow_onnx.events.model_assets import RELEASED_VERSIONS
from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking import alias_log, model_registry, promotion_lock
from airflow_onnx.tracking.contract import contract_of
from airflow_onnx.tracking.promotion import Candidate, MoveRules, Promoter
from onnx_release.records import Contract, OnnxArtifact, TensorSpec
from tests.edge.releasing import SIGNATURE, Release, tags_of, versions_of
from tests.edge.tracking.reports import RELEASED, put_report
from tests.edge.tracking.test_contract import contract, logged
from tests.refusals import failed

PUBLISHED = ("upload", "register", "promote")


def holder(hook: MlflowHook, release: Release, alias: str = "candidate") -> int:
    return int(hook.client.get_model_version_by_alias(release.model_name, alias).version)


def other_version(hook: MlflowHook, release: Release, *, ended_ms: int, contract: Contract | None = None) -> int:
    """Register a version of another training run and give it the alias."""
    run = hook.client.create_run(hook.client.create_experiment(f"other-{release.model_name}"))
    hook.client.set_terminated(run.info.run_id, "FINISHED", ended_ms)
    if model_registry._registered_model(hook, release.model_name) is None:
        hook.client.create_registered_model(release.model_name)
    found = contract or Contract(
        inputs=tuple(TensorSpec.from_dict(one) for one in release.returned["export"]["inputs"]),
        outputs=tuple(TensorSpec.from_dict(one) for one in release.returned["export"]["outputs"]),
    )
    version = hook.client.create_model_version(release.model_name, put_report(found), run.info.run_id, RELEASED)
    hook.client.set_registered_model_alias(release.model_name, "candidate", version.version)
    return int(version.version)


def version_of_run(hook: MlflowHook, release: Release, *, ended_ms: int) -> int:
    """Register a version without inputs and outputs of a training run with this end."""
    run = hook.client.create_run("0")
    hook.client.set_terminated(run.info.run_id, "FINISHED", ended_ms)
    source = put_report(contract([], []))
    return int(hook.client.create_model_version(release.model_name, source, run.info.run_id, RELEASED).version)


def ended_ms(release: Release) -> int:
    return int(release.returned["wait"]["ended_at_ms"])


def test_an_older_training_run_is_released_and_the_alias_stays(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency")
    newer = other_version(hook, release, ended_ms=ended_ms(release) + 1)
    version = release.run(*PUBLISHED)
    assert holder(hook, release) == newer
    assert (version["version"], version["alias"]) == (newer + 1, None)
    assert "stays at version 1" in version["alias_note"]
    found = tags_of(hook, release.training_run_id)
    assert (found["status"], found["version"], found["alias"]) == ("released", "2", "")
    assert "ended later" in found["alias_note"]
    assert release.events[RELEASED_VERSIONS].asset_alias_events == []

    release.params["rules"] = {"alias_back": "true"}
    assert release.run("promote")["alias"] == "candidate"
    assert holder(hook, release) == newer + 1
    found = tags_of(hook, release.training_run_id)
    assert (found["alias"], found["alias_note"]) == ("candidate", "")


def test_an_equal_end_keeps_the_alias_and_an_older_holder_gives_it(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency")
    first = other_version(hook, release, ended_ms=ended_ms(release))
    release.run(*PUBLISHED)
    assert holder(hook, release) == first
    run_id = hook.client.get_model_version(release.model_name, str(first)).run_id
    hook.client.set_terminated(run_id, "FINISHED", ended_ms(release) - 1)
    assert release.run("promote")["alias"] == "candidate"
    assert holder(hook, release) == first + 1


def test_a_run_with_other_inputs_or_outputs_is_refused_before_the_measurements(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "export")
    other = other_version(hook, release, ended_ms=1, contract=contract([("x", "float32", ("batch", 8))], []))
    with failed("contract_change", "'signal' is new", "'x' is missing", "onnx_release.model_name"):
        release.run("check")
    found = tags_of(hook, release.training_run_id)
    assert (found["status"], found["reason_code"]) == ("refused", "contract_change")
    assert len(versions_of(hook, release)) == 1

    release.params["rules"] = {"contract_change": "allow"}
    release.run("check")
    release.returned["parity_latency"] = judged.returned["parity_latency"]
    release.run(*PUBLISHED)
    assert holder(hook, release) == other + 1


def test_a_promotion_with_other_inputs_or_outputs_is_refused_and_nothing_moves(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run("upload", "register")
    other = other_version(hook, release, ended_ms=1, contract=contract([("x", "float32", ("batch", 8))], []))
    with failed("contract_change"):
        release.run("promote")
    assert holder(hook, release) == other


def test_another_alias_has_a_contract_of_its_own(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.after(judged, "parity_latency")
    other_version(hook, release, ended_ms=1, contract=contract([("x", "float32", ("batch", 8))], []))
    release.params["alias"] = "nightly"
    release.run(*PUBLISHED)
    assert (holder(hook, release), holder(hook, release, "nightly")) == (1, 2)


def test_a_stage_obeys_the_same_rules(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.params["stage"] = "Production"
    release.after(judged, "parity_latency")
    newer = other_version(hook, release, ended_ms=ended_ms(release) + 1)
    hook.client.delete_registered_model_alias(release.model_name, "candidate")
    hook.client.transition_model_version_stage(release.model_name, str(newer), "Production")
    release.run(*PUBLISHED)
    stages = {int(v.version): v.current_stage for v in versions_of(hook, release)}
    assert stages == {newer: "Production", newer + 1: "None"}
    assert holder(hook, release) == newer + 1, "no other version had the alias"

    x = contract([("x", "float32", ("batch", 8))], [])
    put_report(x, hook.client.get_model_version(release.model_name, str(newer)).source)
    release.params["rules"] = {"alias_back": True}
    with failed("contract_change", "stage 'Production'"):
        release.run("promote")


def test_a_deleted_version_has_no_alias_and_no_contract(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.after(judged, "parity_latency")
    newer = other_version(hook, release, ended_ms=ended_ms(release) + 1, contract=contract([], []))
    hook.client.delete_model_version(release.model_name, str(newer))
    assert release.run(*PUBLISHED)["alias"] == "candidate"


def test_a_version_of_another_program_without_a_run_has_the_time_of_its_creation(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency")
    hook.client.create_registered_model(release.model_name)
    hook.client.create_model_version(release.model_name, "s3://elsewhere/x")
    hook.client.set_registered_model_alias(release.model_name, "candidate", "1")
    release.run(*PUBLISHED)
    assert holder(hook, release) == 1, "it was made after the training"
    release.params["rules"] = {"alias_back": True}
    with failed("contract_unknown", "contract_change"):
        release.run("promote")
    release.params["rules"] = {"alias_back": True, "contract_change": "allow"}
    assert release.run("promote")["alias"] == "candidate"


def test_a_pytorch_version_with_the_same_signature_gives_the_alias(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency")
    uri = logged(SIGNATURE)
    version = mlflow.register_model(uri, release.model_name)
    hook.client.set_registered_model_alias(release.model_name, "candidate", version.version)
    release.params["rules"] = {"alias_back": True}
    assert release.run(*PUBLISHED)["alias"] == "candidate"


def test_a_release_whose_report_was_changed_has_the_contract_of_its_files(
    hook: MlflowHook, release: Release, judged: Release
) -> None:
    release.after(judged, "parity_latency").run(*PUBLISHED)
    version = hook.client.get_model_version(release.model_name, "1")
    # A report of other bytes.
    put_report(contract([], []), version.source)
    found = contract_of(hook, "minio_default", version)
    artifact = OnnxArtifact.from_dict(release.returned["export"])
    assert [found.differences(Contract.of_artifact(artifact)), Contract.of_artifact(artifact).differences(found)] == [
        [],
        [],
    ]


def test_the_same_version_again_changes_nothing(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.after(judged, "parity_latency").run(*PUBLISHED)
    assert release.run("promote")["alias"] == "candidate"
    assert set(hook.client.get_registered_model(release.model_name).tags) == {"onnx_release.alias_log.0"}, "no lock"
    (move,) = alias_log.read(hook, release.model_name)
    assert (move.alias, move.from_version, move.to_version, move.by) == ("candidate", None, 1, "Airflow")
    assert (move.dag_run, move.why) == (release.dag_run_id, "release of training run small")


def test_wrong_rules_are_refused(hook: MlflowHook, release: Release, judged: Release) -> None:
    release.after(judged, "parity_latency").run("upload", "register")
    release.params["rules"] = {"contract_change": "maybe"}
    with failed("wrong_field", "contract_change"):
        release.run("promote")


def test_promotions_at_the_same_time_leave_the_alias_at_the_newest_run(hook: MlflowHook, release: Release) -> None:
    hook.client.create_registered_model(release.model_name)
    versions = [version_of_run(hook, release, ended_ms=number) for number in (3, 1, 2)]
    start, errors = threading.Barrier(3), []

    def promote(number: int, ended: int) -> None:
        start.wait()
        try:
            with promotion_lock.promotion_lock(hook, release.model_name, f"release {number}"):
                promoter = Promoter(hook=hook, s3_conn_id="minio_default", rules=MoveRules())
                candidate = Candidate(
                    model_name=release.model_name, contract=contract([], []), training_run_id=f"r{ended}",
                    ended_at_ms=ended, version=number,
                )  # fmt: skip
                if not promoter.alias_move(candidate, "candidate").stays:
                    hook.client.set_registered_model_alias(release.model_name, "candidate", str(number))
        except Exception as error:  # noqa: BLE001 - a thread has no other way to report it
            errors.append(error)

    threads = [
        threading.Thread(target=promote, args=(number, ended))
        for number, ended in zip(versions, (3, 1, 2), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert holder(hook, release) == versions[0]


def test_a_release_that_writes_its_lock_late_waits_for_the_other(
    hook: MlflowHook, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook.client.create_registered_model(release.model_name)
    set_tag = model_registry.set_tag_of_model
    sections: list[tuple[float, float]] = []

    def set_tag_with_delay(*args: str) -> None:
        if threading.current_thread().name == "late":
            time.sleep(1.5)
        set_tag(*args)

    monkeypatch.setattr(model_registry, "set_tag_of_model", set_tag_with_delay)
    monkeypatch.setattr(promotion_lock, "_STALE_S", 3.0)

    def promote() -> None:
        with promotion_lock.promotion_lock(hook, release.model_name, threading.current_thread().name):
            begin = time.monotonic()
            time.sleep(2.0)
            sections.append((begin, time.monotonic()))

    threads = [threading.Thread(target=promote, name=name) for name in ("late", "on time")]
    for thread in threads:
        thread.start()
    threads[1].join()
    monkeypatch.setattr(model_registry, "set_tag_of_model", set_tag)
    threads[0].join()
    (_, first_end), (second_begin, _) = sections
    assert first_end <= second_begin
