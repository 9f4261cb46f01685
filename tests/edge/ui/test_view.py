"""The list of releases without a browser: states, counts, filters, and hostile texts."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from airflow_onnx.ui import numbers
from airflow_onnx.ui.airflow_state import AirflowRelease, TaskState
from airflow_onnx.ui.model_view import moves_of
from airflow_onnx.ui.release_index import ReleaseRecord, Snapshot
from airflow_onnx.ui.roll_backs import roll_backs
from airflow_onnx.ui.states import Releases, dag_id_of, state_of
from airflow_onnx.ui.view import Filter, again, list_view, row_of
from onnx_release.records import AliasMove
from onnx_release.training_runs import tags
from onnx_release.training_runs.records import TrainingRun

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
RUN = "0" * 32


def record(
    run_id: str = RUN, *, metrics: dict[str, float] | None = None, ago_s: float = 600, **found: str
) -> ReleaseRecord:
    named = {f"{tags.ROOT}.{name}": text for name, text in found.items()}
    named[tags.ATTEMPTED_AT] = f"{NOW - timedelta(seconds=ago_s):%Y-%m-%dT%H:%M:%SZ}"
    run = TrainingRun(
        run_id=run_id, name="run-17", experiment_id="1", status="FINISHED", deleted=False, ended_at_ms=1, tags=named,
        metrics=metrics or {}, model_steps={},
    )  # fmt: skip
    return ReleaseRecord.from_run(run, "radio")


def task(task_id: str, state: str | None, *, pool: str = "default_pool", ago_s: float = 45) -> TaskState:
    at = NOW - timedelta(seconds=ago_s)
    return TaskState(task_id=task_id, state=state, queued_at=at, started_at=at, ended_at=None, pool=pool)


def dag_run(*tasks: TaskState, run_id: str = f"release__{RUN}", state: str = "running", **conf: Any) -> AirflowRelease:
    return AirflowRelease(
        dag_id="release_onnx", dag_run_id=run_id, state=state, conf=conf, started_at=NOW, ended_at=None, note="",
        tasks=tasks,
    )  # fmt: skip


def shown(found: ReleaseRecord, *active: AirflowRelease, **snapshot: Any) -> Any:
    releases = Releases(active, dag_ids={"release_onnx"})
    read = Snapshot(**snapshot)
    return row_of(found, state_of(found, releases, read, NOW), read, releases, NOW)


@pytest.mark.parametrize(
    ("found", "state"),
    [
        ({"status": "released"}, "released"),
        ({"status": "released", "warning": "the speed is uncertain"}, "warning"),
        ({"status": "refused", "reason": "NaN"}, "refused"),
        ({"status": "failed", "reason": "no disk"}, "failed"),
        ({"status": "running"}, "failed"),
        ({"status": "running", "dag_run_url": "http://a/dags/own_release/runs/1"}, "running"),
        ({"status": "waiting", "dag_run_url": "http://a/dags/own_release/runs/1"}, "waiting"),
        ({"status": "<b>"}, "failed"),
    ],
)
def test_the_state_of_tags_without_an_active_dag_run(found: dict[str, str], state: str) -> None:
    assert shown(record(**found)).state == state


def test_a_release_in_progress_has_its_step_and_the_queue_of_the_measuring_slot() -> None:
    exporting = shown(
        record(status="running"), dag_run(task("wait_for_training", "success"), task("export", "running"))
    )
    assert (exporting.state, exporting.text) == ("running", "exports, 45 s")
    assert [(step.name, step.state) for step in exporting.steps] == [("wait", "done"), ("export", "now")]
    first = dag_run(task("parity_latency", "scheduled", pool="onnx_measure", ago_s=90), run_id="other")
    waiting = shown(record(status="running"), first, dag_run(task("parity_latency", "scheduled", pool="onnx_measure")))
    assert (waiting.state, waiting.text) == ("waiting", "waits for the measuring slot, 1 before it")
    approval = shown(record(status="running"), dag_run(task("approve", "awaiting_input")))
    assert (approval.state, approval.text) == ("waiting", "waits for approval")


def test_a_dag_run_that_has_just_ended_is_not_shown_as_failed() -> None:
    ended = dag_run(task("promote", "success"), state="success")
    assert shown(record(status="running"), ended).state == "running"


def test_a_refusal_after_a_release_is_a_note() -> None:
    row = shown(
        record(
            status="released", version="5", registered_model="net", last_attempt="refused 2026-11-01T00:00:00Z: MAE"
        ),
        aliases={"net": {"candidate": 5, "production": 3}},
    )
    assert (row.state, row.version, row.aliases) == ("released", "5", ("candidate",))
    assert row.note == "The newest attempt was refused: MAE"


def test_figures_have_three_digits_and_an_unsettled_speedup_only_its_lower_bound() -> None:
    root = tags.ROOT
    metrics = {
        f"{root}/parity/y/mae": 2.34567e-9,
        f"{root}/parity/z/mae": float("nan"),
        f"{root}/size_bytes": 112_600_000,
    }
    metrics |= {f"{root}/latency/batch_8/speedup_low": 9.0, f"{root}/latency/batch_1/speedup_low": 1.7123}
    row = shown(record(status="released", metrics=metrics))
    assert (row.mae, row.size) == ("2.35e-09", "113 MB")
    assert row.speed
    assert (row.speed.text, row.speed.is_settled, row.speed.batch_size) == ("at least 1.71x", False, 1)
    settled = {f"{root}/latency/batch_1/speedup": 2.16, f"{root}/latency/batch_1/speedup_high": 2.29}
    row = shown(record(status="released", metrics=metrics | settled))
    assert row.speed
    assert (row.speed.text, row.speed.interval) == ("2.16x", "[1.71, 2.29]")


def test_filters_counts_and_pages() -> None:
    records = [record(f"{number:032x}", status="released", registered_model="net") for number in range(120)]
    records += [
        record("f" * 32, status="refused", headline="Refused: it is NaN.", reason="hold NaN", registered_model="gru")
    ]
    snapshot = Snapshot(records=tuple(records))
    view = list_view(snapshot, Releases(()), Filter(), NOW)
    assert (view.total, view.counts["released"], view.counts["refused"], view.pages, len(view.rows)) == (
        121,
        120,
        1,
        3,
        50,
    )
    last = list_view(snapshot, Releases(()), Filter.parse({"page": "99"}), NOW)
    assert (last.filter.page, len(last.rows)) == (3, 21)
    found = list_view(snapshot, Releases(()), Filter.parse({"q": "nan"}), NOW)
    assert [(row.model, row.text) for row in found.rows] == [("gru", "it is NaN.")]
    refused = list_view(snapshot, Releases(()), Filter.parse({"state": "refused", "model": "net"}), NOW)
    assert (refused.total, len(refused.rows)) == (120, 0)


def test_the_address_of_a_filter_reads_back_as_the_same_filter() -> None:
    wanted = Filter.parse({"state": "refused", "q": "a&b=<c>'\"", "experiment": "x y", "page": "2"})
    query = wanted.address(page=2).removeprefix("?")
    from urllib.parse import parse_qsl

    assert Filter.parse(dict(parse_qsl(query))) == wanted
    assert Filter.parse({"state": "nonsense", "page": "-1"}) == Filter()


def test_a_dag_run_without_a_training_run_yet_has_a_row_of_its_own() -> None:
    view = list_view(
        Snapshot(), Releases([dag_run(task("wait_for_training", "deferred"), model_name="net")]), Filter(), NOW
    )
    (row,) = view.rows
    assert (row.state, row.model, row.text) == ("waiting", "net", "waits for the end of the training run, 45 s")


def test_without_mlflow_the_newest_dag_runs_are_listed_with_airflows_states() -> None:
    ended = [dag_run(state="success", run_id="a"), dag_run(state="failed", run_id="b")]
    view = list_view(Snapshot(problem="MLflow is down"), Releases(ended), Filter(), NOW)
    assert [row.state for row in view.rows] == ["released", "failed"]


@pytest.mark.parametrize("address", ["javascript:alert(1)", "http://[", "", "http://evil.test/x?conf=%7B%7D"])
def test_of_a_hostile_address_only_its_parameters_are_used(address: str) -> None:
    assert again(address, "conf") in ("", "{}")
    assert dag_id_of(address) == ""


def test_numbers_for_people() -> None:
    assert [numbers.size(value) for value in (None, 0, 999, 1000, 2.3e9)] == [
        "",
        "0 bytes",
        "999 bytes",
        "1 kB",
        "2.3 GB",
    ]
    assert [numbers.age(value) for value in (-5, 59, 3599, 7200, 12 * 86400)] == [
        "0 s",
        "59 s",
        "59 min",
        "2 h",
        "12 d",
    ]
    assert [numbers.digits(value) for value in (None, float("nan"), 0, 2.16, 113.4)] == ["", "", "0", "2.16", "113"]
    assert [numbers.duration(value) for value in (16.4, 144)] == ["16 s", "2 m 24 s"]


def move(alias: str, before: int | None, after: int) -> AliasMove:
    return AliasMove(
        alias=alias, from_version=before, to_version=after, by="anna", at="2026-11-01T10:00:00Z", why="slow"
    )


@pytest.mark.parametrize(
    ("moves", "versions"),
    [
        ([move("champion", None, 1), move("champion", 1, 2)], set()),
        ([move("champion", 1, 2), move("champion", 2, 1)], {2}),
        ([move("champion", 3, 1), move("champion", 1, 4)], {3}),
        ([move("champion", 3, 1), move("champion", 1, 3)], set()),
        ([move("champion", 3, 1), move("candidate", 2, 3)], {3}),
    ],
    ids=["forward", "back", "back and on", "back and again", "another alias"],
)
def test_a_version_is_rolled_back_until_the_alias_returns(moves: list[AliasMove], versions: set[int]) -> None:
    assert set(roll_backs(moves)) == versions


def test_a_rolled_back_release_has_a_state_with_the_reason_and_a_filter() -> None:
    found = record(status="released", version="3", registered_model="net", alias_note="the same in MLflow")
    snapshot = Snapshot(records=(found,), rolled_back={"net": {3: move("champion", 3, 1)}})
    view = list_view(snapshot, Releases(()), Filter.parse({"state": "rolled_back"}), NOW)
    (row,) = view.rows
    assert (row.state, row.text, row.note) == ("rolled_back", "@champion went back to v1, by anna: slow", "")
    assert (view.counts["rolled_back"], view.counts["released"]) == (1, 0)


def test_a_verification_belongs_to_its_version_and_a_damaged_one_is_left_out() -> None:
    text = '{"version": 3, "verdict": "failed", "at": "yesterday", "runtime": "1.32.0", "reason": "files: gone"}'
    released = {"status": "released", "registered_model": "net", "verification": text}
    found = shown(record(version="3", **released)).verified
    assert (found.has_failed, found.at, found.date, found.reason) == (True, None, "", "files: gone")
    assert shown(record(version="4", **released)).verified is None
    assert shown(record(version="3", **released | {"verification": text[:-1]})).verified is None


def test_the_columns_sort_the_list_and_releases_without_a_value_come_last() -> None:
    root = tags.ROOT
    sizes = {"a" * 32: 10.0, "b" * 32: 30.0, "c" * 32: None, "d" * 32: 20.0}
    records = tuple(
        record(run_id, ago_s=60 * number, metrics={f"{root}/size_bytes": size} if size else {})
        for number, (run_id, size) in enumerate(sizes.items(), 1)
    )
    snapshot = Snapshot(records=records)

    def order(sort: str) -> str:
        rows = list_view(snapshot, Releases([dag_run(run_id="new")]), Filter.parse({"sort": sort}), NOW).rows
        return "".join(row.run_id[:1] or "-" for row in rows)

    assert [order(sort) for sort in ("", "age", "-age", "size", "-size", "nonsense")] == [
        "-abcd",
        "-abcd",
        "dcba-",
        "adb-c",
        "bda-c",
        "-abcd",
    ]


def test_a_heading_leads_to_the_other_order_of_its_column() -> None:
    newest_first = Filter()
    assert (newest_first.order_of("age"), newest_first.order_of("size")) == ("ascending", "")
    assert (newest_first.next_sort("age"), newest_first.next_sort("size")) == ("-age", "-size")
    largest_first = Filter.parse({"sort": "-size", "page": "2"})
    assert (largest_first.order_of("size"), largest_first.next_sort("size")) == ("descending", "size")
    assert largest_first.address(sort="size") == "?sort=size"
    assert newest_first.address(sort="age") == "?"


def test_a_release_in_progress_is_found_by_the_model_of_its_parameters() -> None:
    snapshot = Snapshot(records=(record(status="running"),))
    active = Releases([dag_run(task("export", "running"), model_name="net")])
    view = list_view(snapshot, active, Filter.parse({"model": "net", "q": "NET"}), NOW)
    assert ([row.model for row in view.rows], view.models) == (["net"], ("net",))


def test_a_move_of_an_alias_that_waits_is_on_the_page_of_its_model_alone() -> None:
    waiting = dag_run(
        task("approve", "awaiting_input"), run_id="move", model_name="net", alias="champion", version=1,
        expected_version=3, reason="<b>slow</b>",
    )  # fmt: skip
    (found,) = moves_of("net", [waiting, dag_run(run_id="other", model_name="gru")])
    assert (found.text, found.reason, found.state) == ("@champion from v3 to v1", "<b>slow</b>", "waiting")
    assert moves_of("", [dag_run(run_id="without a model")]) == ()
