"""Findings of a garbage collection as text for a terminal and for a log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from airflow_onnx.leftovers.findings import Findings, Leftover
from onnx_release.text import printable

COLUMNS = ("kind", "place", "age", "size", "reason")


def rows(found: Findings) -> list[dict[str, str]]:
    """Return the leftovers as rows of plain texts."""
    from onnx_release.report.numbers import size_text

    return [
        {
            "kind": str(one.kind),
            "place": printable(one.place),
            "age": age_text(one.age_s),
            "size": size_text(one.size_bytes) if one.size_bytes else "-",
            "reason": _reason(one),
        }
        for one in found.leftovers
    ]


def lines(found: Findings) -> Iterator[str]:
    """Yield the table, the places that stay, and the result in one line."""
    yield from aligned(COLUMNS, rows(found))
    for kept in found.kept:
        yield f"stays: {printable(kept.place)}: {printable(kept.reason)}"
    for note in found.notes:
        yield f"note: {printable(note)}"
    yield result(found)


def aligned(columns: Sequence[str], table: Sequence[Mapping[str, str]]) -> Iterator[str]:
    """Yield rows below a heading, in columns of equal width. Nothing for no row."""
    if not table:
        return
    widths = {name: max(len(name), *(len(row[name]) for row in table)) for name in columns}
    for row in (dict(zip(columns, columns, strict=True)), *table):
        yield "  ".join(f"{row[name]:<{widths[name]}}" for name in columns).rstrip()


def result(found: Findings) -> str:
    """Return the result in one line."""
    from onnx_release.report.numbers import size_text

    total = size_text(sum(one.size_bytes for one in found.leftovers))
    count = len(found.leftovers)
    if not count:
        return f"{found.place}: no leftovers."
    if found.dry_run:
        return f"{found.place}: {count} leftovers, {total}. Nothing was removed: this was a dry run."
    removed = count - found.left
    return f"{found.place}: {removed} of {count} leftovers removed" + (f", {found.left} stay." if found.left else ".")


def _reason(one: Leftover) -> str:
    if one.removed:
        return f"removed: {one.reason}"
    return printable(f"stays: {one.stays}" if one.stays else one.reason)


def age_text(age_s: float | None) -> str:
    """Return an age for people, in days from the third day on."""
    from onnx_release.report.numbers import seconds_text, three_digits

    if age_s is not None and age_s >= 48 * 3600:
        return f"{three_digits(age_s / 86400)} days"
    return seconds_text(age_s)
