"""Results of a DAG run of the verification as text for its log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from airflow_onnx import params
from airflow_onnx.log_lines import one_line
from onnx_release.records.verification import VersionResult

_COLUMNS = ("result", "version", "aliases", "ONNX Runtime", "difference", "reason")
_REASON_MAX_CHARACTERS = 200
# Failures first.
_ORDER = ("failed", "not verified", "passed")


def lines(results: Sequence[VersionResult]) -> Iterator[str]:
    """Yield one line for each version, the failures first, and a line for each measured latency."""
    rows = [_COLUMNS, *map(_row, sorted(results, key=lambda one: _ORDER.index(one.outcome)))]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_COLUMNS) - 1)]
    for row in rows if results else ():
        cells = (f"{text:<{width}}" for text, width in zip(row, widths, strict=False))
        yield "  ".join((*cells, row[-1])).rstrip()
    for one in results:
        if one.latency:
            yield one_line(f"{one.model} v{one.version}: {one.latency}", 500)


def headline(results: Sequence[VersionResult]) -> str:
    """Return the result in one sentence."""
    counts = {outcome: sum(one.outcome == outcome for one in results) for outcome in _ORDER}
    if not results:
        return "No version to verify."
    parts = [f"{count} {outcome}" for outcome, count in counts.items() if count]
    return f"{len(results)} version{'' if len(results) == 1 else 's'}: {', '.join(parts)}."


def flat(lists: Any) -> list[VersionResult]:
    """Return the results of all mapped tasks. A task without a result has none."""
    rows = [row for one in params.value(lists) or [] for row in one or []]
    return [VersionResult.from_dict(row) for row in rows]


def _row(one: VersionResult) -> tuple[str, ...]:
    return (
        f"{one.outcome}{' (new)' if one.is_news else ''}",
        one_line(f"{one.model} v{one.version}", 80),
        one_line(", ".join(one.aliases), 60) or "-",
        one_line(one.runtime, 20) or "-",
        "-" if one.max_abs is None else f"{one.max_abs:.3g}",
        one_line(one.reason, _REASON_MAX_CHARACTERS) or "-",
    )
