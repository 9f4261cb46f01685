"""Retirement on a real store and a real MLflow: the right versions go, and nothing that anybody needs."""

from __future__ import annotations

import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.leftovers.collect import Collector
from airflow_onnx.storage import s3
from airflow_onnx.tracking import alias_log, promotion_lock
from onnx_release.training_runs import tags
from soak.fault_proxy import Fault, Plan, proxy
from tests.edge.conftest import Led
from tests.edge.retirement.conftest import Registry, going, reasons
from tests.refusals import refused

# The number of changes that a retirement makes before it is killed. The lock has the first two of them.
_CHANGES = (2, 3, 4, 7, 10)
YEAR_S = 365 * 86400.0


def test_the_versions_that_nobody_needs_go_with_their_objects(registry: Registry) -> None:
    numbers = [registry.released() for _ in range(6)]
    registry.moved("champion", numbers[1], numbers[2], numbers[3])
    young, newest = registry.released(days=2), registry.released(days=91)
    other = registry.released(model=f"{registry.model}-b", days=400)
    runs = {number: registry.run_of(number) for number in numbers}
    log = alias_log.read(registry.hook, registry.model)

    listed = registry.retirer(keep_newest=1).run(dry_run=True)
    assert going(listed) == [numbers[0], numbers[1], numbers[4], numbers[5]]
    why = {(one.model, one.version): one.reason for one in listed.versions}
    assert "roll" not in why[registry.model, numbers[0]]
    assert why[registry.model, numbers[3]] == "it has the alias 'champion'"
    assert why[registry.model, numbers[2]] == "the alias 'champion' was at it before"
    assert "younger" in why[registry.model, young]
    assert "newest" in why[registry.model, newest]
    assert registry.numbers() == [*numbers, young, newest]
    sizes = {(one.model, one.version): (one.objects, one.size_bytes) for one in listed.versions}
    assert sizes[registry.model, numbers[0]] == (5, 15), "with the layouts of model servers"

    done = registry.retirer(keep_newest=1, models=(registry.model,)).run(dry_run=False)
    assert (done.left, going(done)) == (0, [numbers[0], numbers[1], numbers[4], numbers[5]])
    assert registry.numbers() == [numbers[2], numbers[3], young, newest]
    assert len(registry.objects()) == 4 * 5
    assert all(registry.objects(number) for number in registry.numbers())
    assert registry.objects(other, f"{registry.model}-b")
    assert alias_log.read(registry.hook, registry.model) == log
    model = registry.rest.registered_model(registry.model)
    assert [tag for tag in model.tags if not tag.startswith(tags.ALIAS_LOG)] == [], "no lock and no journal is left"

    found = registry.tags_of(runs[numbers[0]])
    assert found[tags.STATUS] == "retired"
    assert found[tags.RETIRED].startswith(f"version {numbers[0]} of {registry.model} at 20")
    assert " by anna: no alias for 90 days" in found[tags.RETIRED]
    assert found[tags.HEADLINE].startswith(f"Retired: version {numbers[0]} of {registry.model}, by anna: ")
    assert "Retired" in found["mlflow.note.content"]
    assert {tags.VERSION, tags.S3_URI, tags.ALIAS} & found.keys() == set()
    assert registry.tags_of(runs[numbers[2]])[tags.STATUS] == "released"
    assert going(registry.retirer(keep_newest=1, models=(registry.model,)).run(dry_run=False)) == []


@pytest.mark.parametrize("wrong_s", [YEAR_S, -YEAR_S])
def test_the_clock_of_the_worker_has_no_part_in_an_age(
    registry: Registry, monkeypatch: pytest.MonkeyPatch, wrong_s: float
) -> None:
    young, old = registry.released(days=80), registry.released(days=91)
    real = time.time
    monkeypatch.setattr(time, "time", lambda: real() + wrong_s)
    assert going(registry.retirer().run(dry_run=True)) == [old]
    # The time of a move is that of a worker: it can only keep a version.
    registry.moved("x", old, young, at=f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}")
    assert going(registry.retirer(keep_previous=0).run(dry_run=True)) == []
    assert "an alias left it" in reasons(registry.retirer(keep_previous=0).run(dry_run=True))[old]


def test_only_versions_before_a_date_go(registry: Registry) -> None:
    old, older = registry.released(days=100), registry.released(days=300)
    at = datetime.fromtimestamp(time.time() - 200 * 86400, UTC).isoformat()
    found = registry.retirer(made_before=at).run(dry_run=True)
    assert (going(found), at in reasons(found)[old]) == ([older], True)
    with refused("not_a_time"):
        registry.retirer(made_before="spring").run(dry_run=False)
    assert registry.numbers() == [old, older]


def test_versions_of_others_and_of_unfinished_releases_stay(registry: Registry) -> None:
    foreign = registry.released(server="http://the.original.server")
    in_progress, staged = registry.released(), registry.released()
    registry.hook.client.set_tag(registry.run_of(in_progress), tags.LAST_ATTEMPT, "waiting 2026-01-01")
    registry.hook.client.transition_model_version_stage(registry.model, str(staged), "Production")
    client, run = registry.hook.client, registry.run()
    elsewhere = [
        client.create_model_version(registry.model, source, run, tags=found).version
        for source, found in {
            "s3://heimdall-models/elsewhere/x": {tags.VERSION_SHA256: "0" * 64},
            f"{registry.folder.uri}/{registry.model}/{run}/{'0' * 16}/x": {tags.VERSION_SHA256: "0" * 64},
            # The objects of another model, named by a version of this one.
            f"{registry.folder.uri}/other/{run}/{'0' * 16}": {tags.VERSION_SHA256: "0" * 64},
            f"{registry.folder.uri}/{registry.model}/{run}/{'1' * 16}": {},
        }.items()
    ]
    elsewhere.append(client.copy_model_version(f"models:/{registry.model}/{foreign}", registry.model).version)
    for number in elsewhere:
        registry.age(registry.model, int(number), 400)
    found = registry.retirer().run(dry_run=False)
    assert (going(found), registry.numbers()) == ([], [foreign, in_progress, staged, *map(int, elsewhere)])
    why = reasons(found)
    assert "the.original.server" in why[foreign]
    assert "in progress" in why[in_progress]
    assert "Production" in why[staged]
    assert {why[int(number)] for number in elsewhere} == {
        "its objects are not in the folder of the releases",
        "another program made it",
    }


def test_an_alias_that_is_set_after_the_search_keeps_its_version(registry: Registry) -> None:
    numbers = [registry.released() for _ in range(3)]
    retirer = registry.retirer()
    found = retirer.find()
    assert going(found) == numbers
    registry.hook.client.set_registered_model_alias(registry.model, "champion", str(numbers[0]))
    registry.hook.client.set_tag(registry.run_of(numbers[1]), tags.STATUS, "running")
    done = retirer.retire(found)
    assert (done.left, registry.numbers()) == (2, numbers[:2])
    why = reasons(done)
    assert why[numbers[0]] == "it has the alias 'champion' now"
    assert "in progress" in why[numbers[1]]
    assert all(registry.objects(number) for number in numbers[:2])


def test_an_alias_that_is_set_in_the_last_moment_keeps_its_version(registry: Registry) -> None:
    number = registry.released()

    def set_alias(method: str, path: str, status: int, body: bytes) -> tuple[int, bytes]:
        # The journal is written right before the last check.
        if method == "POST" and path.endswith("registered-models/set-tag"):
            registry.hook.client.set_registered_model_alias(registry.model, "champion", str(number))
        return status, body

    with (
        proxy(registry.hook.server.tracking_uri, set_alias) as address,
        MlflowRest(replace(registry.hook.server, tracking_uri=address)) as rest,
    ):
        # The objects name the server without the proxy.
        rest.server = registry.hook.server
        found = registry.retirer(rest=rest).run(dry_run=False)
    assert (reasons(found)[number], registry.numbers()) == ("it has an alias now", [number])
    assert tags.RETIRING not in "".join(registry.rest.registered_model(registry.model).tags)


def test_objects_that_another_version_names_stay(registry: Registry) -> None:
    first = registry.released()
    version = registry.hook.client.get_model_version(registry.model, str(first))
    # The same bytes twice; a copy in another model; and layouts that another version names.
    twin = registry.released(run_id=version.run_id, sha256=version.tags[tags.VERSION_SHA256], days=1)
    copied = registry.released()
    registry.hook.client.copy_model_version(f"models:/{registry.model}/{copied}", f"{registry.model}-copy")
    serving = registry.released()
    layouts = registry.hook.client.get_model_version(registry.model, str(serving)).source + "-serving/triton"
    registry.released(days=1, **{tags.VERSION_SERVING: layouts})
    expected = {number: registry.objects(number) for number in (first, copied)}
    kept_layouts = [path for path in registry.objects(serving) if "-serving/" in path]

    found = registry.retirer(models=(registry.model,)).run(dry_run=False)
    assert (found.left, going(found)) == (0, [first, copied, serving])
    left = registry.objects()
    assert all(set(paths) <= set(left) for paths in expected.values())
    assert kept_layouts
    assert [path for path in left if path.startswith(kept_layouts[0].partition("-serving")[0])] == kept_layouts
    assert len([one for one in found.going if one.note]) == 3
    # The record of the training run is that of the version that is left.
    assert registry.tags_of(version.run_id)[tags.VERSION] == str(twin)
    assert registry.tags_of(version.run_id)[tags.STATUS] == "released"

    registry.age(registry.model, twin, 200)
    assert going(registry.retirer(models=(registry.model,)).run(dry_run=False)) == [twin]
    assert set(expected[first]) & set(registry.objects()) == set()


def test_a_killed_retirement_leaves_no_version_without_objects_and_is_ended_by_the_next(
    registry: Registry, led: Led, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The servers accept no change after the n-th one: so a killed process leaves them."""
    monkeypatch.setattr(promotion_lock, "_STALE_S", 0.2)
    monkeypatch.setattr(promotion_lock, "_POLL_S", 0.05)
    plan, ends = Plan(), []
    store = registry.folder.hook.get_conn().meta.endpoint_url
    with proxy(registry.hook.server.tracking_uri, plan=plan) as mlflow_url, proxy(store, plan=plan) as store_url:
        led("mlflow_default", mlflow_url)
        led("minio_default", store_url)
        hook = MlflowHook("mlflow_default")
        hook.activate()
        with MlflowRest(hook.server) as rest:
            folder = s3.folder_at("minio_default", registry.folder.uri, rerun=None)
            behind = replace(registry, hook=hook, rest=rest, folder=folder)
            for after in _CHANGES:
                number = behind.released()
                run = behind.run_of(number)
                dead = plan.add(
                    Fault(kind="status", method="POST|PUT|PATCH|DELETE", status=403, times=10**6, after=after)
                )
                assert behind.retirer().run(dry_run=False).left == 1
                plan.remove(dead)
                existing = behind.numbers()
                assert all(len(behind.objects(one)) == 5 for one in existing), "each version has all its objects"
                ends.append((bool(existing), len(behind.objects()), behind.tags_of(run)[tags.STATUS]))
                if after == _CHANGES[-1]:
                    # A garbage collection removes the objects whose version and record are gone.
                    collector = Collector(
                        rest=rest, folder=folder, staging_uri=f"{folder.uri}-staging",
                        checked_uri=f"{folder.uri}-staging", grace_s=-5.0, is_active=lambda *_: False,
                    )  # fmt: skip
                    assert collector.run(dry_run=False).left == 0
                    assert behind.objects() == []
                assert behind.retirer().run(dry_run=False).left == 0
                assert (behind.numbers(), behind.objects()) == ([], [])
                assert behind.tags_of(run)[tags.STATUS] == "retired"
                # The entry of a killed task in the lock is removed by the next that waits for it.
                assert [tag for tag in rest.registered_model(registry.model).tags if "lock" not in tag] == []
    registry.hook.activate()
    # With its version, without it, with its record, with a part of its objects.
    kept = (True, 5, "released")
    assert ends == [kept, kept, (False, 5, "released"), (False, 5, "retired"), (False, 3, "retired")]
