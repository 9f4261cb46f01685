"""View model of a registered model: versions, aliases, attempts, and the comparison of two versions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from airflow_onnx.hooks.mlflow_records import ModelVersionEntry, RegisteredModel
from airflow_onnx.tracking import alias_log, tags
from airflow_onnx.ui import numbers
from airflow_onnx.ui.charts import Chart, Point, chart
from airflow_onnx.ui.release_index import ReleaseRecord, Snapshot
from airflow_onnx.ui.states import WORDS, Releases, state_of
from airflow_onnx.ui.view import SpeedView
from onnx_release.records import AliasMove, ReleaseReport

ATTEMPTS_MAX = 20
VERSIONS_MAX = 50
MOVES_MAX = 30


@dataclass(frozen=True, slots=True, kw_only=True)
class VersionRow:
    """One version of a model. `record` is the release of its training run, None without tags in MLflow."""

    version: int
    run_id: str
    run_name: str
    state: str
    mae: str
    speed: SpeedView | None
    size: str
    aliases: tuple[str, ...]
    created_at: datetime

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
class ModelView:
    """A registered model."""

    name: str
    aliases: tuple[AliasView, ...]
    versions: tuple[VersionRow, ...]
    attempts: tuple[AttemptView, ...]
    moves: tuple[AliasMove, ...]
    sizes: Chart | None
    speeds: Chart | None
    is_live: bool

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
    now: datetime | None = None,
) -> ModelView:
    """Return the view of a model.

    :param model: None for a model without a version.
    """
    records = [record for record in snapshot.records if record.model_name == name]
    of_version = {record.version: record for record in records if record.version}
    moves = tuple(reversed(alias_log.moves_in(model.tags))) if model else ()
    aliases = model.aliases if model else {}
    rows = tuple(_version_row(one, of_version.get(str(one.version)), aliases) for one in versions[:VERSIONS_MAX])
    attempts = tuple(
        AttemptView(run_id=one.run_id, run_name=one.run_name, state=state_of(one, releases, now), at=one.attempted_at)
        for one in records[:ATTEMPTS_MAX]
    )
    speeds = [
        Point(version=row.version, value=speed.speedup, low=speed.low, high=speed.high if speed.speedup else None)
        for row in rows
        if (record := of_version.get(str(row.version))) and (speed := record.speed)
    ]
    sizes = [
        Point(version=row.version, value=record.size_bytes)
        for row in rows
        if (record := of_version.get(str(row.version))) and record.size_bytes
    ]
    return ModelView(
        name=name,
        aliases=tuple(
            _alias(alias, version, moves, [row.version for row in rows]) for alias, version in sorted(aliases.items())
        ),
        versions=rows,
        attempts=attempts,
        moves=moves[:MOVES_MAX],
        sizes=chart(sizes, subject="Size", unit="B"),
        speeds=chart(speeds, subject="Speedup", unit="x", limit=1.0),
        is_live=any(one.state in ("running", "waiting") for one in attempts),
    )


def _version_row(entry: ModelVersionEntry, record: ReleaseRecord | None, aliases: dict[str, int]) -> VersionRow:
    is_warned = entry.tags.get(tags.VERSION_STATUS) == WORDS["warning"]
    return VersionRow(
        version=entry.version,
        run_id=entry.run_id,
        run_name=record.run_name if record else "",
        state="warning" if is_warned else "released",
        mae=numbers.digits(record.mae) if record else "",
        speed=SpeedView.of(record.speed) if record else None,
        size=entry.tags.get(tags.VERSION_SIZE, "")[:20],
        aliases=tuple(sorted(name for name, version in aliases.items() if version == entry.version)),
        created_at=datetime.fromtimestamp(entry.created_at_ms / 1000, UTC),
    )


def _alias(name: str, version: int, moves: Sequence[AliasMove], versions: Sequence[int]) -> AliasView:
    move = next((one for one in moves if one.alias == name and one.to_version == version), None)
    return AliasView(
        name=name,
        version=version,
        moved_at=moment(move.at) if move else None,
        by=move.by if move else "",
        proposed=proposed_version(version, versions, move),
    )


def proposed_version(version: int, versions: Sequence[int], move: AliasMove | None = None) -> int:
    """Return the version before the newest move of an alias, else the one below it, else the newest."""
    if move and move.from_version in versions:
        return int(move.from_version or 0)
    return max((one for one in versions if one < version), default=max(versions, default=version))


def moment(text: str) -> datetime | None:
    """Return the time of a text in ISO 8601, None for any other text."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One line of a comparison."""

    name: str
    before: str
    after: str
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two versions of one model.

    :param sentence: the answer in words.
    :param is_comparable: False for versions with other inputs or outputs.
    :param rows: the values that differ.
    :param equal: the names of the values that do not.
    """

    sentence: str
    is_comparable: bool
    rows: tuple[Difference, ...]
    equal: tuple[str, ...]


def compare(before: ReleaseReport, after: ReleaseReport, names: tuple[str, str]) -> Comparison:
    """Compare the reports of two versions.

    :param names: the versions for people, such as ``v4``.
    """
    facts = _facts(before), _facts(after)
    is_comparable = facts[0]["inputs"] == facts[1]["inputs"] and facts[0]["outputs"] == facts[1]["outputs"]
    rows = [Difference(name=name, before=text, after=facts[1][name]) for name, text in facts[0].items()]
    speeds = _speed_rows(before, after)
    sentence = speeds[0].verdict if speeds else "The speed of one of them was not measured."
    if not is_comparable:
        sentence = "They have other inputs or outputs: they are not the same model, and their speed is not compared."
        speeds = []
    elif speeds:
        sentence = f"{names[1]} against {names[0]} at the serving batch size: {sentence}"
    return Comparison(
        sentence=sentence,
        is_comparable=is_comparable,
        rows=(*speeds, *(row for row in rows if row.before != row.after)),
        equal=tuple(row.name for row in rows if row.before == row.after),
    )


def _facts(report: ReleaseReport) -> dict[str, str]:
    artifact, check = report.artifact, report.check
    if artifact is None:
        return {"inputs": "", "outputs": ""}
    found = {
        side: ", ".join(f"{one.name} {one.dtype} [{', '.join(map(str, one.shape))}]" for one in specs)
        for side, specs in (("inputs", artifact.inputs), ("outputs", artifact.outputs))
    }
    found |= {"size": numbers.size(artifact.size_bytes), "precision": str(artifact.precision)}
    found |= {"opset": str(artifact.opset), "export": str(artifact.strategy), "variant": artifact.variant or "none"}
    found["nodes"] = str(check.node_count) if check and check.node_count else ""
    if report.benchmark:
        worst = report.benchmark.parity.worst_per_output().values()
        maes = [one.mae for one in worst if one.mae is not None]
        found["worst MAE"] = numbers.digits(max(maes)) if maes else ""
    return found


def _speed_rows(before: ReleaseReport, after: ReleaseReport) -> list[Difference]:
    sides = [
        {batch.batch_size: batch for batch in report.benchmark.latency.batches}
        if report.benchmark and report.benchmark.latency
        else {}
        for report in (before, after)
    ]
    hosts = [
        report.benchmark.latency.host.cpu_model if report.benchmark and report.benchmark.latency else ""
        for report in (before, after)
    ]
    rows = []
    for size in sorted(set(sides[0]) & set(sides[1])):
        one, other = sides[0][size], sides[1][size]
        texts = [
            f"{numbers.digits(batch.candidate.p50_ms)} ms, {numbers.digits(batch.speedup)}x "
            f"[{numbers.digits(batch.speedup_low)}, {numbers.digits(batch.speedup_high)}] of PyTorch"
            for batch in (one, other)
        ]
        if hosts[0] != hosts[1]:
            verdict = "measured on different hosts: not comparable."
        elif not (one.conclusive and other.conclusive):
            verdict = "one of the measurements is not settled: no difference is shown."
        elif one.speedup_low <= other.speedup_high and other.speedup_low <= one.speedup_high:
            verdict = "the intervals overlap: no difference is shown."
        else:
            share = other.speedup / one.speedup
            word = "faster" if share > 1 else "slower"
            verdict = f"{word}, {numbers.digits(max(share, 1 / share))} times, by two separate measurements."
        rows.append(Difference(name=f"time per call at batch {size}", before=texts[0], after=texts[1], verdict=verdict))
    return rows
