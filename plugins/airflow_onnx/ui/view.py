"""View model of the list of releases: rows, filters in the address, counts and pages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

from airflow_onnx.airflow_urls import dag_id_of
from airflow_onnx.ui import numbers
from airflow_onnx.ui.airflow_state import STEPS, AirflowRelease, TaskState
from airflow_onnx.ui.release_index import ReleaseRecord, Snapshot, Speed
from airflow_onnx.ui.states import WORDS, Releases, is_abandoned, model_of, state_of
from airflow_onnx.ui.verified import VerifiedView

ROWS_PER_PAGE = 50
# The columns that sort the list, each with the sign of its first order.
COLUMNS = {"model": "", "mae": "-", "speedup": "-", "size": "-", "age": ""}
NEWEST_FIRST = "age"
_TEXT_MAX = 100
_ABANDONED = "The DAG run has ended without a result. Release it again."


@dataclass(frozen=True, slots=True, kw_only=True)
class Filter:
    """The filter of the list, as it stands in the page's address. Its texts are not trusted.

    `sort` is one of `COLUMNS`, after a minus for the descending order.
    """

    state: str = ""
    experiment: str = ""
    model: str = ""
    q: str = ""
    sort: str = NEWEST_FIRST
    page: int = 1

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> Filter:
        """Read a query. An unknown state, an unknown column and a wrong page number are ignored."""
        texts = {name: query.get(name, "")[:_TEXT_MAX].strip() for name in ("experiment", "model", "q")}
        page, state, sort = query.get("page", ""), query.get("state", ""), query.get("sort", "")
        return cls(
            state=state if state in WORDS else "",
            sort=sort if sort.removeprefix("-") in COLUMNS else NEWEST_FIRST,
            page=int(page) if page.isdecimal() and 0 < len(page) < 6 else 1,
            **texts,
        )

    def address(self, **changes: object) -> str:
        """Return the query of this filter with changes, without empty fields and defaults. Page 1 is the default."""
        changed = replace(self, **({"page": 1} | changes))  # type: ignore[arg-type]
        fields = {name: getattr(changed, name) for name in ("state", "experiment", "model", "q", "sort", "page")}
        return "?" + urlencode({name: value for name, value in fields.items() if value not in ("", 1, NEWEST_FIRST)})

    def order_of(self, column: str) -> str:
        """Return the value of ``aria-sort`` for a column, empty for a column that does not sort the list."""
        return {column: "ascending", f"-{column}": "descending"}.get(self.sort, "")

    def next_sort(self, column: str) -> str:
        """Return the order that the heading of a column leads to: the other one of a column that sorts the list."""
        orders = [f"{COLUMNS[column]}{column}", column if COLUMNS[column] else f"-{column}"]
        return orders[1] if self.sort == orders[0] else orders[0]

    @property
    def is_set(self) -> bool:
        """True if the filter leaves releases out."""
        return bool(self.state or self.experiment or self.model or self.q)

    def matches(self, record: ReleaseRecord, model: str) -> bool:
        """Return True if the record passes the filter without its state.

        :param model: the name of its registered model.
        """
        if self.experiment and record.experiment != self.experiment:
            return False
        if self.model and model != self.model:
            return False
        texts = (model, record.run_name, record.run_id, record.sha256, record.reason_code, record.reason)
        text = self.q.lower()
        return not text or any(text in one.lower() for one in texts)


@dataclass(frozen=True, slots=True, kw_only=True)
class SpeedView:
    """A speedup in the list. A value that is not settled has its lower bound alone."""

    text: str
    interval: str
    is_settled: bool
    batch_size: int

    @classmethod
    def of(cls, speed: Speed | None) -> SpeedView | None:
        """Return the view, or None without a measurement."""
        if speed is None:
            return None
        is_settled = speed.speedup is not None
        text, _, interval = numbers.speedup(speed.speedup, speed.low, speed.high).partition(" ")
        least = f"at least {numbers.digits(speed.low)}x" if speed.low else "not settled"
        return cls(
            text=text if is_settled else least,
            interval=interval if is_settled else "",
            is_settled=is_settled,
            batch_size=speed.batch_size,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StepView:
    """One step of a release. `state` is one of done, now, failed and next; `time` is its duration so far."""

    name: str
    state: str
    time: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One release in the list.

    :param text: result, reason or present step.
    :param note: a fact beside it, for example about the newest attempt.
    :param dag_id: the DAG of the DAG run; `release_dag_id` is the one that repeats the release with `conf`.
    """

    run_id: str
    dag_run_id: str
    state: str
    model: str
    run_name: str
    version: str = ""
    aliases: tuple[str, ...] = ()
    text: str = ""
    note: str = ""
    steps: tuple[StepView, ...] = ()
    mae: str = ""
    speed: SpeedView | None = None
    size: str = ""
    at: datetime | None = None
    conf: str = ""
    waits_for_approval: bool = False
    dag_id: str = ""
    release_dag_id: str = ""
    verified: VerifiedView | None = None

    @property
    def word(self) -> str:
        """The state for people."""
        return WORDS[self.state]


@dataclass(frozen=True, slots=True, kw_only=True)
class ListView:
    """One page of the list.

    :param counts: the number of releases of each state that pass the rest of the filter.
    """

    filter: Filter
    rows: tuple[Row, ...]
    counts: Mapping[str, int]
    total: int
    pages: int
    experiments: tuple[str, ...]
    models: tuple[str, ...]
    is_live: bool


def list_view(snapshot: Snapshot, releases: Releases, wanted: Filter, now: datetime | None = None) -> ListView:
    """Return the rows of one page in the order of the filter. Of the newest, those without tags come first."""
    now = now or datetime.now(UTC)
    matching = [
        (state_of(one, releases, snapshot, now), one)
        for one in snapshot.records
        if wanted.matches(one, model_of(one, releases))
    ]
    new = [] if wanted.experiment else _without_record(snapshot, releases, wanted)
    found: list[tuple[str, ReleaseRecord | AirflowRelease]] = [
        (releases.progress(one, now).state if one.is_active else _ended(one), one) for one in new
    ]
    found += matching
    counts = Counter(state for state, _ in found)
    chosen = _sorted([one for one in found if wanted.state in ("", one[0])], wanted.sort)
    pages = max(1, -(-len(chosen) // ROWS_PER_PAGE))
    page = min(wanted.page, pages)
    shown = chosen[(page - 1) * ROWS_PER_PAGE : page * ROWS_PER_PAGE]
    return ListView(
        filter=replace(wanted, page=page),
        rows=tuple(
            row_of(one, state, snapshot, releases, now)
            if isinstance(one, ReleaseRecord)
            else row_of_dag_run(one, state, releases, now)
            for state, one in shown
        ),
        counts={state: counts[state] for state in WORDS},
        total=sum(counts.values()),
        pages=pages,
        experiments=tuple(sorted({record.experiment for record in snapshot.records})),
        models=tuple(sorted({name for record in snapshot.records if (name := model_of(record, releases))})),
        is_live=bool(counts["running"] or counts["waiting"]),
    )


def row_of(record: ReleaseRecord, state: str, snapshot: Snapshot, releases: Releases, now: datetime) -> Row:
    """Return the row of a release with tags in MLflow."""
    release = releases.of(record)
    # The state has its own column.
    text, note = record.headline.partition(": ")[2] or record.reason, ""
    if release and state in ("running", "waiting"):
        text = releases.progress(release, now).text
        note = f"Version {record.version} is released." if record.status == "released" else ""
    elif is_abandoned(record, releases, now):
        text = _ABANDONED
    elif record.status == "released":
        text, note = record.warning, record.alias_note
        if move := snapshot.roll_back_of(record):
            text, note = f"@{move.alias} went back to v{move.to_version}, by {move.by}: {move.why}", ""
        outcome = record.last_attempt.partition(" ")[0]
        if outcome in ("refused", "failed"):
            note = f"The newest attempt was {outcome}: {record.last_attempt.partition(': ')[2]}".removesuffix(": ")
    aliases = snapshot.aliases.get(record.model_name, {})
    is_released = record.status == "released"
    dag_id = dag_id_of(record.dag_run_url)
    return Row(
        run_id=record.run_id,
        dag_run_id=record.dag_run_id,
        state=state,
        model=model_of(record, releases),
        run_name=record.run_name,
        version=record.version if is_released else "",
        aliases=tuple(sorted(name for name, version in aliases.items() if str(version) == record.version)),
        text=text,
        note=note,
        steps=steps_of(release) if release and state in ("running", "waiting") else (),
        mae=numbers.digits(record.mae),
        speed=SpeedView.of(record.speed),
        size=numbers.size(record.size_bytes),
        at=record.attempted_at,
        waits_for_approval=bool(release and release.waits_for_approval),
        dag_id=dag_id,
        conf=again(record.rerun_url, "conf"),
        # A refusal by the watch has the DAG run of the watch.
        release_dag_id=again(record.rerun_url, "dag") or (dag_id if dag_id in releases.dag_ids else ""),
        verified=VerifiedView.of(record.verification) if is_released else None,
    )


def row_of_dag_run(release: AirflowRelease, state: str, releases: Releases, now: datetime) -> Row:
    """Return the row of a DAG run whose training run has no tags, or whose tags cannot be read."""
    in_progress = release.is_active
    text = releases.progress(release, now).text if in_progress else "See the DAG run in Airflow."
    return Row(
        run_id="",
        dag_id=release.dag_id,
        dag_run_id=release.dag_run_id,
        state=state,
        model=str(release.conf.get("model_name") or ""),
        run_name=release.note.splitlines()[0]
        if release.note.strip()
        else release.training_run_id or release.dag_run_id,
        text=text,
        steps=steps_of(release) if in_progress else (),
        at=release.started_at,
    )


def _sorted(
    found: list[tuple[str, ReleaseRecord | AirflowRelease]], sort: str
) -> list[tuple[str, ReleaseRecord | AirflowRelease]]:
    """Return the releases in an order of `Filter`. Those without a value come last in both directions."""
    if sort == NEWEST_FIRST:
        return found
    column, is_descending = sort.removeprefix("-"), sort.startswith("-")
    valued = [(value, one) for one in found if (value := _value(one[1], column)) is not None]
    without = [one for one in found if _value(one[1], column) is None]
    valued.sort(key=lambda pair: pair[0], reverse=is_descending)
    return [*(one for _, one in valued), *without]


def _value(release: ReleaseRecord | AirflowRelease, column: str) -> Any:
    if isinstance(release, AirflowRelease):
        values: dict[str, Any] = {"model": release.conf.get("model_name"), "age": release.started_at}
    else:
        speed = release.speed
        values = {"model": release.model_name, "age": release.attempted_at, "mae": release.mae}
        values |= {"size": release.size_bytes, "speedup": (speed.speedup or speed.low) if speed else None}
    value = values.get(column)
    if column == "age":
        return value and -value.timestamp()
    if column == "model":
        return str(value).lower() if value else None
    return value


def steps_of(release: AirflowRelease, now: datetime | None = None) -> tuple[StepView, ...]:
    """Return the steps of a DAG run in order. A skipped step is left out."""
    states = {"success": "done", "failed": "failed", "upstream_failed": "next", None: "next"}
    return tuple(
        StepView(name=STEPS[task.task_id], state=states.get(task.state, "now"), time=_time_of(task, now))
        for task in release.tasks
        if task.state not in ("skipped", "removed")
    )


def _time_of(task: TaskState, now: datetime | None) -> str:
    if task.started_at is None or task.state in ("upstream_failed", None):
        return ""
    return numbers.duration(((task.ended_at or now or datetime.now(UTC)) - task.started_at).total_seconds())


def again(rerun_url: str, name: str) -> str:
    """Return a part of the query in the address of a repeated release. The address is not trusted.

    No other part is used. The trigger page checks that the DAG is a release DAG.
    """
    try:
        return parse_qs(urlsplit(rerun_url).query).get(name, [""])[0]
    except ValueError:
        return ""


def _without_record(snapshot: Snapshot, releases: Releases, wanted: Filter) -> list[AirflowRelease]:
    """Return the DAG runs without a record that pass the filter."""
    known = {one.ids for record in snapshot.records if (one := releases.of(record))}
    text = wanted.q.lower()
    return [
        release
        for release in releases.all
        if release.ids not in known
        and (release.is_active or snapshot.problem)
        and wanted.model in ("", str(release.conf.get("model_name") or ""))
        and (not text or text in f"{release.dag_run_id} {release.note} {release.conf.get('model_name', '')}".lower())
    ]


def _ended(release: AirflowRelease) -> str:
    return "released" if release.state == "success" else "failed"
