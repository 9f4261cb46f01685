"""Log of the moves of a registered model's aliases."""

from __future__ import annotations

import uuid

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.tracking import alias_log, model_registry, promotion
from airflow_onnx.tracking import promotion_lock as lock_room
from airflow_onnx.tracking.promotion_lock import promotion_lock
from onnx_release.errors import Transient
from onnx_release.records import AliasMove
from onnx_release.training_runs import alias_moves, tags


@pytest.fixture
def name(hook: MlflowHook) -> str:
    made = f"model-{uuid.uuid4().hex[:8]}"
    hook.client.create_registered_model(made)
    return made


def move(version: int, alias: str = "candidate", why: str = "", by: str = "") -> AliasMove:
    return AliasMove(alias=alias, from_version=None, to_version=version, by=by, at="", why=why)


def move_alias(hook: MlflowHook, name: str, moved: AliasMove) -> None:
    with promotion_lock(hook, name, "a release") as lock:
        promotion.move_alias(hook, name, moved, lock)


def versions(hook: MlflowHook, name: str, number: int) -> None:
    for _ in range(number):
        hook.client.create_model_version(name, "s3://elsewhere/x")


def test_a_model_that_does_not_exist_has_no_moves(hook: MlflowHook) -> None:
    assert alias_log.read(hook, "no-such-model") == ()


def test_hostile_and_long_texts_are_kept_in_parts_that_fit(hook: MlflowHook, name: str) -> None:
    hostile = '<script>alert("1")</script>\n\x00\ud800 ' + "ü" * 2000
    for version in range(1, 9):
        alias_log.append(hook, name, move(version, why=hostile, by=hostile))
    found = alias_log.read(hook, name)
    assert [one.to_version for one in found] == list(range(1, 9))
    assert found[0].why.startswith('<script>alert("1")</script> ü')
    assert (len(found[0].why), len(found[0].by)) == (500, 100)
    texts = hook.client.get_registered_model(name).tags
    assert len(texts) > 1
    assert all(len(text.encode()) <= 4000 for text in texts.values())


def test_old_moves_are_dropped_and_a_damaged_part_is_left_out(
    hook: MlflowHook, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alias_log, "MOVES_MAX", 5)
    monkeypatch.setattr(alias_moves, "MOVES_MAX", 5)
    monkeypatch.setattr(alias_log, "_TAG_MAX_BYTES", 260)
    for version in range(1, 12):
        alias_log.append(hook, name, move(version))
    assert [one.to_version for one in alias_log.read(hook, name)] == [7, 8, 9, 10, 11]
    numbers = sorted(int(key.rpartition(".")[2]) for key in hook.client.get_registered_model(name).tags)
    assert numbers == [3, 4, 5]
    hook.client.set_registered_model_tag(name, f"{tags.ALIAS_LOG}.5", "[{]")
    alias_log.append(hook, name, move(12))
    assert [one.to_version for one in alias_log.read(hook, name)] == [7, 8, 9, 10, 12]
    assert hook.client.get_registered_model(name).tags[f"{tags.ALIAS_LOG}.5"] == "[{]"


def test_a_move_is_logged_once_with_the_version_before_it(hook: MlflowHook, name: str) -> None:
    versions(hook, name, 2)
    for version in (1, 2, 2):
        move_alias(hook, name, move(version))
    move_alias(hook, name, move(2, "nightly"))
    found = [(one.alias, one.from_version, one.to_version) for one in alias_log.read(hook, name)]
    assert found == [("candidate", None, 1), ("candidate", 1, 2), ("nightly", None, 2)]


def test_a_move_without_a_log_is_logged_by_the_next_try(hook: MlflowHook, name: str) -> None:
    versions(hook, name, 2)
    move_alias(hook, name, move(1))
    model_registry.set_alias(hook, name, "candidate", 2)
    move_alias(hook, name, move(2, why="again"))
    last = alias_log.read(hook, name)[-1]
    assert (last.from_version, last.to_version, last.why) == (1, 2, "again")


def test_a_release_that_lost_its_lock_moves_nothing(hook: MlflowHook, name: str) -> None:
    versions(hook, name, 1)
    with promotion_lock(hook, name, "a release") as lock:
        # As another release does after a minute.
        model_registry.delete_tag_of_model(hook, name, lock.key)
        with pytest.raises(Transient, match="taken over"):
            promotion.move_alias(hook, name, move(1), lock)
    assert model_registry.alias_holder(hook, name, "candidate") is None
    assert alias_log.read(hook, name) == ()


def test_the_next_try_takes_over_from_a_killed_one_immediately(
    hook: MlflowHook, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    versions(hook, name, 2)
    monkeypatch.setattr(lock_room, "_STALE_S", 1e9)
    monkeypatch.setattr(lock_room, "_WAIT_MAX_S", 20.0)
    with promotion_lock(hook, name, "a release") as killed, promotion_lock(hook, name, "a release") as lock:
        # The first try was only slow: it must neither move the alias nor remove the lock.
        with pytest.raises(Transient, match="taken over"):
            promotion.move_alias(hook, name, move(1), killed)
        killed.remove()
        promotion.move_alias(hook, name, move(2), lock)
    assert int(model_registry.alias_holder(hook, name, "candidate").version) == 2
    assert not any(key.startswith(tags.PROMOTION_LOCK) for key in hook.client.get_registered_model(name).tags)
