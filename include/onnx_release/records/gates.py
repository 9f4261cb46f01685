"""Records that every view of a release shows: gates, durations of the steps, and moves of an alias."""

from __future__ import annotations

from typing import Literal

from onnx_release.records.base import Record

Verdict = Literal["passed", "warning", "refused", "not settled", "not measured"]


class Gate(Record):
    """One measured value against one limit.

    Attributes:
        name: The measure, such as ``mae``, ``sqnr_db``, ``speedup`` or ``p95_ms``. `report.gates.TITLES` has all.
        subject: The output, ``batch 1``, ``file`` or ``all samples``.
        measured: The value. For an output it is the worst one over the samples that decide. None when nothing was
            measured, or when nothing differs.
        low: The lower end of the value's interval; `high` is the upper end.
        limit: The limit.
        unit: The unit of value and limit: ``ms``, ``dB``, ``x`` or nothing.
        sense: The direction of the limit; ``none`` for a gate without a number.
        verdict: The result.
    """

    name: str
    subject: str
    measured: float | None = None
    low: float | None = None
    high: float | None = None
    limit: float | None = None
    unit: str = ""
    sense: Literal["at most", "at least", "none"] = "none"
    verdict: Verdict


class StepTime(Record):
    """Duration of one task of a release in seconds.

    `waited_s` is the part of `wall_s` in which the task waited: for the training, for a person, for the measuring slot
    or for the lock of its host. None when it is not measured.
    """

    task: str
    wall_s: float
    waited_s: float | None = None


class AliasMove(Record):
    """Move of an alias of a registered model.

    Attributes:
        alias: The alias.
        from_version: The version before; None for a new alias.
        to_version: The version after; None for a removed alias.
        by: The person or the DAG that moved it.
        at: The time, as ISO 8601 in UTC.
        why: The reason.
        dag_run: The id of the DAG run; empty for a move outside Airflow.
    """

    alias: str
    from_version: int | None
    to_version: int | None
    by: str
    at: str
    why: str
    dag_run: str = ""
