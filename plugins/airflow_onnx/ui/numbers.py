"""Numbers and times for people: three digits and a unit."""

from __future__ import annotations

import math
from datetime import UTC, datetime

_SIZES = ("B", "kB", "MB", "GB", "TB")
_AGES = ((60, 1, "s"), (3600, 60, "min"), (48 * 3600, 3600, "h"), (math.inf, 24 * 3600, "d"))


def size(number: float | None) -> str:
    """Return a size in bytes, such as ``113 MB``."""
    if number is None:
        return ""
    power = 0
    while number >= 999.5 and power + 1 < len(_SIZES):
        number, power = number / 1000, power + 1
    return f"{digits(number) if power else int(number)} {_SIZES[power]}"


def digits(number: float | None) -> str:
    """Return a number with three digits, without an exponent from 0.001 up to a million."""
    if number is None or not math.isfinite(number):
        return ""
    if number == 0:
        return "0"
    if not 1e-3 <= abs(number) < 1e6:
        return f"{number:.2g}".replace("e-0", "e-").replace("e+0", "e+")
    return f"{number:.{max(0, 2 - math.floor(math.log10(abs(number))))}f}"


def age(seconds: float) -> str:
    """Return a rounded duration, such as ``3 h``."""
    seconds = max(0.0, seconds)
    _limit, unit_s, unit = next(one for one in _AGES if seconds < one[0])
    return f"{int(seconds / unit_s)} {unit}"


def duration(seconds: float) -> str:
    """Return a duration as ``16 s`` or ``2:24``."""
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60}:{whole % 60:02d}"


def since(moment: datetime | None, now: datetime | None = None) -> str:
    """Return the age of a moment, empty without one."""
    return "" if moment is None else age(((now or datetime.now(UTC)) - moment).total_seconds())


def utc(moment: datetime | None) -> str:
    """Return a moment for the attribute of a time element."""
    return "" if moment is None else f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"
