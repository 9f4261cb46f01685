"""View model of a registered model: versions, aliases, attempts, and moves of aliases."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_onnx import defaults
from airflow_onnx.tracking.version_tags import REGISTERED
from airflow_onnx.ui import numbers
from airflow_onnx.ui.airflow_state import AirflowRelease
from airflow_onnx.ui.charts import Chart, Point, chart
from airflow_onnx.ui.release_index import ReleaseRecord, Snapshot
from airflow_onnx.ui.roll_backs import roll_backs
from airflow_onnx.ui.states import WORDS, Releases, model_of, state_of
from airflow_onnx.ui.verified import VerifiedView
from airflow_onnx.ui.view import SpeedView
from onnx_release.records import AliasMove
from onnx_release.training_runs import alias_moves, tags, verifications
from onnx_release.training_runs.records import ModelVersionEntry, RegisteredModel

ATTEMPTS_MAX = 20
VERSIONS_MAX = 50
MOVES_MAX = 30
_TEXT_MAX = 300
# The states by the tag of a version. One that is only registered has the state of its training run's release.
_VERSION_STATES = {
    "released with a warning": "warning",
    "rejected": "refused",
    "not answered": "refused",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One version of a model. `approval` is the answer of a person about it, such as ``was approved by anna``."""

    version: int
    run_id: str
    run_name: str
    state: str
    mae: str
    speed: SpeedView | None
    size: str
    aliases: tuple[str, ...]
    approval: str
    created_at: datetime
    verified: VerifiedView | None = None

    @property
    def word(self) -> str:
        """The state for people."""
        return WORDS[self.state]


@dataclass(frozen=True, slots=True, kw_only=True)
class AliasView:
    """An alias with the time of its newest move. `proposed` is the version that the dialog of a move offers first."""

    name: str
    version: int
    moved_at: datetime | None
    by: str
    proposed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptView:
    """The newest attempt of one training run, for the strip."""

    run_id: str
    run_name: str
    state: str
    at: datetime | None

    @property
    def word(self) -> str:
        """The state for people."""
        return WORDS[self.state]


@dataclass(frozen=True, slots=True, kw_only=True)
class MoveView:
    """A move of an alias that has not ended. `text` and `reason` are not trusted."""

    dag_id: str
    dag_run_id: str
    text: str
    reason: str
    by: str
    at: datetime | None
    is_waiting: bool

    @property
    def state(self) -> str:
        """The key of the state in `WORDS`."""
        return "waiting" if self.is_waiting else "running"

    @classmethod
    def of(cls, move: AirflowRelease) -> MoveView:
        """Read the parameters of a DAG run. They are texts of any kind."""
        alias, before, after, reason = (
            str(move.conf.get(name) or "")[:_TEXT_MAX] for name in ("alias", "expected_version", "version", "reason")
        )
        origin = f" from v{before}" if before else ""
        return cls(
            dag_id=move.dag_id,
            dag_run_id=move.dag_run_id,
            text=f"@{alias}{origin} to v{after}",
            reason=reason,
            by=move.started_by,
            at=move.started_at,
            is_waiting=move.waits_for_approval,
        )


def moves_of(name: str, moves: Sequence[AirflowRelease]) -> tuple[MoveView, ...]:
    """Return the moves of a model's aliases that have not ended."""
    return tuple(MoveView.of(move) for move in moves if name and move.conf.get("model_name") == name)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelView:
    """A registered model."""

    name: str
    aliases: tuple[AliasView, ...]
    versions: tuple[VersionRow, ...]
    attempts: tuple[AttemptView, ...]
    moves: tuple[AliasMove, ...]
    verdicts: tuple[VerifiedView, ...]
    moving: tuple[MoveView, ...]
    sizes: Chart | None
    speeds: Chart | None
    is_live: bool

    @property
    def rival(self) -> int:
        """The version that the newest one is compared with: the champion, else the one before; 0 without one."""
        newest = self.versions[0].version if self.versions else 0
        champion = next((one.version for one in self.aliases if one.name == defaults.CHAMPION_ALIAS), newest)
        before = self.versions[1].version if len(self.versions) > 1 else 0
        return champion if champion != newest else before

    @property
    def alias_choices(self) -> tuple[tuple[str, int], ...]:
        """The aliases and their versions, for the dialog of a move."""
        return tuple((alias.name, alias.version) for alias in self.aliases)


def model_view(
    name: str,
    model: RegisteredModel | None,
    versions: Sequence[ModelVersionEntry],
    snapshot: Snapshot,
    releases: Releases,
    moves_now: Sequence[AirflowRelease] = (),
    now: datetime | None = None,
) -> ModelView:
    """Return the view of a model.

    :param model: None for a model without a version.
    :param moves_now: the DAG runs that move an alias of any model.
    """
    records = [record for record in snapshot.records if model_of(record, releases) == name]
    of_version = {record.version: record for record in records if record.version}
    moves = tuple(reversed(alias_moves.moves_in(model.tags))) if model else ()
    aliases = model.aliases if model else {}
    back, of_run = roll_backs(tuple(reversed(moves))), {record.run_id: record for record in records}

    def version_state(one: ModelVersionEntry) -> str:
        status = one.tags.get(tags.VERSION_STATUS, "")
        if status == REGISTERED and (record := of_run.get(one.run_id)):
            return state_of(record, releases, snapshot, now)
        return _VERSION_STATES.get(status, "released")

    rows = tuple(
        _version_row(
            one,
            of_version.get(str(one.version)),
            tuple(sorted(alias for alias, version in aliases.items() if version == one.version)),
            "rolled_back" if one.version in back else version_state(one),
        )
        for one in versions[:VERSIONS_MAX]
    )
    attempts = tuple(
        AttemptView(
            run_id=one.run_id,
            run_name=one.run_name,
            state=state_of(one, releases, snapshot, now),
            at=one.attempted_at,
        )
        for one in records[:ATTEMPTS_MAX]
    )
    shown = {row.version: record for row in rows if (record := of_version.get(str(row.version)))}
    return ModelView(
        name=name,
        aliases=tuple(
            _alias(alias, version, moves, [row.version for row in rows]) for alias, version in sorted(aliases.items())
        ),
        versions=rows,
        attempts=attempts,
        moves=moves[:MOVES_MAX],
        verdicts=_verdicts(versions[:VERSIONS_MAX]),
        moving=(moving := moves_of(name, moves_now)),
        sizes=chart(list(_sizes(shown)), subject="Size", unit="B"),
        speeds=chart(list(_speeds(shown)), subject="Speedup", unit="x", limit=1.0),
        is_live=bool(moving) or any(one.state in ("running", "waiting") for one in attempts),
    )


def _verdicts(versions: Sequence[ModelVersionEntry]) -> tuple[VerifiedView, ...]:
    """Return the changes of the verdicts of the versions, the newest first."""
    changes = [change for one in versions for change in verifications.changes_in(one.tags)]
    views = [view for change in sorted(changes, key=lambda one: one.at) if (view := VerifiedView.of(change))]
    return tuple(reversed(views))[:MOVES_MAX]


def _sizes(records: Mapping[int, ReleaseRecord]) -> Iterator[Point]:
    for version, record in records.items():
        if record.size_bytes:
            yield Point(version=version, value=record.size_bytes)


def _speeds(records: Mapping[int, ReleaseRecord]) -> Iterator[Point]:
    for version, record in records.items():
        if speed := record.speed:
            high = speed.high if speed.speedup else None
            yield Point(version=version, value=speed.speedup, low=speed.low, high=high)


def _version_row(
    entry: ModelVersionEntry, record: ReleaseRecord | None, aliases: tuple[str, ...], state: str
) -> VersionRow:
    """Return the row of a version.

    :param record: its release, None without tags in MLflow.
    """
    return VersionRow(
        version=entry.version,
        run_id=entry.run_id,
        run_name=record.run_name if record else "",
        state=state,
        mae=numbers.digits(record.mae) if record else "",
        speed=SpeedView.of(record.speed) if record else None,
        size=entry.tags.get(tags.VERSION_SIZE, "")[:20],
        aliases=aliases,
        approval=entry.tags.get(tags.APPROVAL, "")[:_TEXT_MAX],
        created_at=datetime.fromtimestamp(entry.created_at_ms / 1000, UTC),
        verified=VerifiedView.of(verifications.of_version(entry.version, entry.tags)),
    )


def _alias(name: str, version: int, moves: Sequence[AliasMove], versions: Sequence[int]) -> AliasView:
    move = next((one for one in moves if one.alias == name and one.to_version == version), None)
    return AliasView(
        name=name,
        version=version,
        moved_at=numbers.moment(move.at) if move else None,
        by=move.by if move else "",
        proposed=proposed_version(version, versions, move),
    )


def proposed_version(version: int, versions: Sequence[int], move: AliasMove | None = None) -> int:
    """Return the version before the newest move of an alias, else the one below it, else the newest."""
    if move and move.from_version in versions:
        return int(move.from_version or 0)
    return max((one for one in versions if one < version), default=max(versions, default=version))
