"""Numbers and times of the pages. The texts of numbers are those of the reports."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_AGES = ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h"), (math.inf, 24 * 3600, "d"))


def size(number: float | None) -> str:
    """Return a size in bytes, such as ``113 MB``, empty without one."""
    from onnx_release.report.numbers import size_text

    return "" if number is None else size_text(int(number))


def digits(number: float | None) -> str:
    """Return a number with three digits, empty without a finite one."""
    from onnx_release.report.numbers import three_digits

    return "" if number is None or not math.isfinite(number) else three_digits(number)


def speedup(value: float | None, low: float | None, high: float | None) -> str:
    """Return a speedup with its interval, such as ``2.16x [2.03, 2.29]``, empty without one."""
    from onnx_release.report.numbers import speedup_text

    return "" if value is None else speedup_text(value, low, high)


def duration(seconds: float) -> str:
    """Return a duration in whole seconds, such as ``2 m 24 s``."""
    from onnx_release.report.numbers import seconds_text

    return seconds_text(round(seconds))


def age(seconds: float) -> str:
    """Return a rounded duration, such as ``3 h``."""
    seconds = max(0.0, seconds)
    _limit, unit_s, unit = next(one for one in _AGES if seconds < one[0])
    return f"{int(seconds / unit_s)} {unit}"


def since(moment: datetime | None, now: datetime | None = None) -> str:
    """Return the age of a moment, empty without one."""
    return "" if moment is None else age(((now or datetime.now(UTC)) - moment).total_seconds())


def utc(moment: datetime | None) -> str:
    """Return a moment for the attribute of a time element."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


def moment(text: str) -> datetime | None:
    """Return the time of a text in ISO 8601, None for any other text."""
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        return None
    return found if found.tzinfo else found.replace(tzinfo=UTC)
