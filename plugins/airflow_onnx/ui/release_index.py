"""Releases of all training runs in MLflow, kept in memory for the pages.

MLflow searches neither for a part of a name without its filter language, nor does it count. So the pages filter and
count here. A refresh reads the newest page only; all releases are read again every few minutes.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice, takewhile

from airflow_onnx.hooks.mlflow_rest import MlflowRest
from airflow_onnx.hooks.mlflow_server import MlflowServer
from airflow_onnx.ui import numbers
from airflow_onnx.ui.refreshed import Refreshed
from airflow_onnx.ui.roll_backs import roll_backs_in
from onnx_release.errors import Refused, Transient
from onnx_release.records import AliasMove
from onnx_release.records.verification import Verification
from onnx_release.text import shorten
from onnx_release.training_runs import tags, verifications
from onnx_release.training_runs.records import TrainingRun
from onnx_release.training_runs.server import RunQuery

log = logging.getLogger(__name__)

TIMEOUT_S = 3.0
AGE_S = 3.0
# Deleted runs, and tags that changed without a new attempt.
REREAD_S = 300.0
RELEASES_MAX = 20_000
_PAGE_SIZE = 50
# More news than this is read in large pages, by the next refresh.
_NEWS_MAX = 500
_FULL_PAGE_SIZE = 500
_FULL_TIMEOUT_S = 30.0
_TEXT_MAX = 600
_NEVER = datetime.fromtimestamp(0, UTC)
_SPEEDUP = r"{root}/latency/batch_(\d{{1,6}})/speedup_low"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Speedup at the smallest measured batch size. `speedup` is None for a value that is not settled."""

    batch_size: int
    speedup: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ReleaseRecord:
    """The release of one training run, from its tags and metrics. All texts are not trusted.

    `mae` is the worst mean absolute error of the outputs.
    """

    run_id: str
    run_name: str
    experiment_id: str
    experiment: str
    model_name: str
    status: str
    headline: str
    reason: str
    reason_code: str
    version: str
    alias_note: str
    precision: str
    sha256: str
    s3_uri: str
    warning: str
    attempted_at: datetime | None
    last_attempt: str
    dag_run_id: str
    dag_run_url: str
    last_attempt_url: str
    rerun_url: str
    mae: float | None
    speed: Speed | None
    size_bytes: float | None
    verification: Verification | None = None

    @classmethod
    def from_run(cls, run: TrainingRun, experiment: str) -> ReleaseRecord:
        """Read the tags and metrics of a training run."""
        found = {name: text[:_TEXT_MAX] for name, text in run.tags.items()}
        precision = found.get(tags.PRECISION, "")
        root = tags.ROOT if precision in ("", "exact") else f"{tags.ROOT}/{precision}"
        is_mae = re.compile(rf"{re.escape(root)}/parity/[^/]+/mae").fullmatch
        maes = [value for name, value in run.metrics.items() if is_mae(name)]
        return cls(
            run_id=run.run_id,
            run_name=run.name[:_TEXT_MAX],
            experiment_id=run.experiment_id,
            experiment=experiment,
            model_name=found.get(tags.REGISTERED_MODEL) or found.get(tags.MODEL_NAME, ""),
            status=found.get(tags.STATUS, ""),
            headline=found.get(tags.HEADLINE, ""),
            reason=found.get(tags.REASON, ""),
            reason_code=found.get(tags.REASON_CODE, ""),
            version=found.get(tags.VERSION, ""),
            alias_note=found.get(tags.ALIAS_NOTE, ""),
            precision=precision,
            sha256=found.get(tags.SHA256, ""),
            s3_uri=found.get(tags.S3_URI, ""),
            warning=found.get(tags.WARNING, ""),
            attempted_at=numbers.moment(found.get(tags.ATTEMPTED_AT, "")),
            last_attempt=found.get(tags.LAST_ATTEMPT, ""),
            dag_run_id=found.get(tags.DAG_RUN_ID, ""),
            dag_run_url=found.get(tags.DAG_RUN_URL, ""),
            last_attempt_url=found.get(tags.LAST_ATTEMPT_URL, ""),
            rerun_url=run.tags.get(tags.RERUN_URL, ""),
            mae=max(filter(math.isfinite, maes), default=None),
            speed=_speed(run.metrics, root),
            size_bytes=_finite(run.metrics, f"{root}/size_bytes"),
            verification=_verification(run.tags),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The releases at one moment, the newest attempt first.

    :param aliases: by model name, the aliases and their versions.
    :param rolled_back: by model name, the versions that an alias has left for an older one, with the move.
    :param server: the server of the connection, None if the connection cannot be read.
    :param problem: the reason why MLflow did not answer the newest request, else empty.
    :param complete_at: monotonic time at which all releases were read, None before that.
    """

    records: tuple[ReleaseRecord, ...] = ()
    aliases: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    rolled_back: Mapping[str, Mapping[int, AliasMove]] = field(default_factory=dict)
    server: MlflowServer | None = None
    read_at: datetime | None = None
    problem: str = ""
    complete_at: float | None = None

    def of_run(self, run_id: str) -> ReleaseRecord | None:
        """Return the release of a training run."""
        return next((record for record in self.records if record.run_id == run_id), None)

    def roll_back_of(self, record: ReleaseRecord) -> AliasMove | None:
        """Return the move with which an alias left the released version for an older one, or None."""
        if record.status != "released" or not record.version.isdecimal():
            return None
        return self.rolled_back.get(record.model_name, {}).get(int(record.version))


class ReleaseIndex:
    """The releases of one MLflow server.

    :param connect: returns the server of the connection. It may raise any error of Airflow's secrets backends.
    """

    def __init__(self, connect: Callable[[], MlflowServer]) -> None:
        self._connect = connect
        self._snapshot = Refreshed(self._refresh, AGE_S)

    def snapshot(self, wait_s: float = TIMEOUT_S + 0.5) -> Snapshot:
        """Return the releases. The first call waits for MLflow, later ones only for a moment."""
        return self._snapshot.get(first_wait_s=wait_s) or Snapshot(problem="MLflow has not answered yet.")

    def _refresh(self, last: Snapshot | None) -> Snapshot:
        # The first page is shown before the older releases are read, which may take a while.
        is_full = last is not None and not last.problem and _is_due(last)
        last = last or Snapshot()
        server = last.server
        try:
            server = self._connect()
            with MlflowRest(server, _FULL_TIMEOUT_S if is_full else TIMEOUT_S) as rest:
                return replace(_read(rest, last, is_full=is_full), server=server, read_at=datetime.now(UTC))
        except Exception as error:  # noqa: BLE001 - a secrets backend may raise anything, and the page must still open
            log.warning("The page of releases shows no newer states: %s", error)
            return replace(last, server=server, problem=_problem(error))


def _is_due(last: Snapshot) -> bool:
    return last.complete_at is None or time.monotonic() - last.complete_at > REREAD_S


def _read(rest: MlflowRest, last: Snapshot, *, is_full: bool) -> Snapshot:
    experiments = {one.experiment_id: one.name for one in rest.experiments()}
    query = RunQuery(
        experiment_ids=list(experiments),
        filter=f"tags.`{tags.STATUS}` IS NOT NULL",
        order_by=f"tags.`{tags.ATTEMPTED_AT}`",
        newest_first=True,
        page_size=_FULL_PAGE_SIZE if is_full else _PAGE_SIZE,
    )
    found = (ReleaseRecord.from_run(run, experiments[run.experiment_id]) for run in rest.runs(query))
    models = rest.registered_models()
    now = replace(
        last,
        problem="",
        aliases={model.name: model.aliases for model in models if model.aliases},
        rolled_back={model.name: moves for model in models if (moves := roll_backs_in(model.tags))},
    )
    if is_full:
        return replace(now, records=tuple(islice(found, RELEASES_MAX)), complete_at=time.monotonic())
    known = {record.run_id: record for record in last.records}
    # The newest page is read as a whole: the clocks of two workers may differ. More pages follow while they have news.
    changed = list(islice(found, _PAGE_SIZE))
    is_last = len(changed) < _PAGE_SIZE
    if known and not is_last and known.get(changed[-1].run_id) != changed[-1]:
        changed += islice(takewhile(lambda one: known.get(one.run_id) != one, found), _NEWS_MAX)
    merged = known | {record.run_id: record for record in changed}
    complete_at = last.complete_at
    if is_last:
        complete_at = time.monotonic()
    elif len(changed) > _NEWS_MAX:
        complete_at = None
    newest_first = sorted(merged.values(), key=lambda one: one.attempted_at or _NEVER, reverse=True)
    return replace(now, records=tuple(newest_first[:RELEASES_MAX]), complete_at=complete_at)


def _problem(error: Exception) -> str:
    if isinstance(error, Refused | Transient):
        return shorten(error, 300)
    # An error of another package may contain a secret.
    return f"The connection to MLflow cannot be read ({type(error).__name__})."


def _verification(run_tags: Mapping[str, str]) -> Verification | None:
    """Return the newest verification of the present version. An earlier version of the run may have another one."""
    found = verifications.of_run(run_tags)
    return found if found and str(found.version) == run_tags.get(tags.VERSION) else None


def _speed(metrics: Mapping[str, float], root: str) -> Speed | None:
    sizes = [int(found[1]) for name in metrics if (found := re.fullmatch(_SPEEDUP.format(root=re.escape(root)), name))]
    if not sizes:
        return None
    prefix = f"{root}/latency/batch_{min(sizes)}"
    names = ("speedup", "speedup_low", "speedup_high")
    speedup, low, high = (_finite(metrics, f"{prefix}/{name}") for name in names)
    return Speed(batch_size=min(sizes), speedup=speedup, low=low, high=high) if low is not None else None


def _finite(metrics: Mapping[str, float], name: str) -> float | None:
    value = metrics.get(name, math.nan)
    return value if math.isfinite(value) else None
