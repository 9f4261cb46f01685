"""Result of a retirement as text for a terminal and for a log."""

from __future__ import annotations

from collections.abc import Iterator

from airflow_onnx.leftovers.table import age_text, aligned
from airflow_onnx.retirement.records import Fate, Retirement
from onnx_release.text import printable

COLUMNS = ("model", "version", "age", "size", "goes", "reason")


def rows(found: Retirement) -> list[dict[str, str]]:
    """Return the versions as rows of plain texts."""
    from onnx_release.report.numbers import size_text

    return [
        {
            "model": printable(one.model),
            "version": str(one.version),
            "age": age_text(one.age_s),
            "size": size_text(one.size_bytes) if one.size_bytes else "-",
            "goes": "yes" if one.retires else "no",
            "reason": printable(_reason(one)),
        }
        for one in found.versions
    ]


def lines(found: Retirement) -> Iterator[str]:
    """Yield the table and the result in one line."""
    yield from aligned(COLUMNS, rows(found))
    yield result(found)


def result(found: Retirement) -> str:
    """Return the result in one line."""
    from onnx_release.report.numbers import size_text

    going = found.going
    kept = f"{len(found.versions) - len(going)} versions stay"
    if not going:
        return f"{found.place}: no version to retire, {kept}."
    if found.dry_run:
        total = size_text(sum(one.size_bytes for one in going))
        return f"{found.place}: {len(going)} versions to retire, {total}; {kept}. Nothing was deleted: a dry run."
    text = f"{found.place}: {len(going) - found.left} of {len(going)} versions retired; {kept}"
    return text + (f". {found.left} could not be retired." if found.left else ".")


def _reason(one: Fate) -> str:
    text = f"stays: {one.stays}" if one.stays else f"retired: {one.reason}" if one.retired else one.reason
    return f"{text}; {one.note}" if one.note else text
