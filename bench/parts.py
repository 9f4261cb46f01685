"""All parts of the bench in their order."""

from __future__ import annotations

from collections.abc import Sequence

from bench import airflow_parts, gemm, pages, profile, release, small, speed, timing, verification
from bench.figure import Part
from bench.scale import workers
from bench.watch import backfill, delay, poll

# Timing within a percent comes first: a machine may be throttled after an hour of work.
PARTS = (
    speed.own,
    speed.fp32,
    speed.repeatability,
    timing.measure,
    gemm.measure,
    speed.compiled,
    speed.int8,
    release.export,
    release.release,
    profile.measure,
    release.upload,
    verification.measure,
    airflow_parts.dag_parse,
    airflow_parts.tasks,
    small.measure,
    pages.measure,
    delay.measure,
    poll.measure,
    backfill.measure,
    workers.measure,
    airflow_parts.big,
)


def chosen(names: Sequence[str]) -> list[Part]:
    """Return the parts with these names, or with figures of these names, in order; all parts without a name.

    Raises:
        KeyError: A name is neither a part nor a figure.
    """
    names_of = {part.name: {part.name, *(figure.name for figure in part.figures)} for part in PARTS}
    if unknown := [name for name in names if not any(name in known for known in names_of.values())]:
        raise KeyError(f"{', '.join(unknown)}: not a part or a figure. There are: {listing()}")
    return [part for part in PARTS if not names or names_of[part.name] & set(names)]


def listing() -> str:
    """Return every part with its figures in brackets."""
    return "; ".join(f"{part.name} ({', '.join(figure.name for figure in part.figures)})" for part in PARTS)
