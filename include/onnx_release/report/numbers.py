"""Numbers for people: three digits and a unit."""

from __future__ import annotations

from onnx_release.records import Gate


def three_digits(value: float | None) -> str:
    """Return a number with three significant digits and without an exponent from 0.0001 on; None is a dash."""
    if value is None:
        return "-"
    return f"{float(f'{value:.3g}'):.0f}" if 1000 <= abs(value) < 1e15 else f"{value:.3g}"


def size_text(size_bytes: int | None) -> str:
    """Return a size with three digits and a unit, for example ``113 MB``; None is a dash."""
    for factor, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if size_bytes is not None and size_bytes >= factor:
            return f"{three_digits(size_bytes / factor)} {unit}"
    return f"{three_digits(size_bytes)} bytes" if size_bytes is not None else "-"


def seconds_text(seconds: float | None) -> str:
    """Return a duration, for example ``2 m 24 s`` or ``0.3 s``; None is a dash."""
    if seconds is None or seconds < 60:
        return "-" if seconds is None else f"{three_digits(seconds)} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} m" if hours else f"{minutes} m {rest} s"


def speedup_text(value: float | None, low: float | None, high: float | None) -> str:
    """Return a speedup with its interval, for example ``2.16x [2.03, 2.29]``; a dash without a value."""
    if value is None or low is None or high is None:
        return "-"
    return f"{value:.2f}x [{low:.2f}, {high:.2f}]"


def measured_text(gate: Gate) -> str:
    """Return the measured value of a gate with its interval and unit; a dash when nothing was measured."""
    if gate.measured is None:
        return "within rounding" if gate.verdict == "passed" and gate.limit is not None else "-"
    if gate.low is not None and gate.high is not None:
        # An uncertain speedup is not published as a plain number.
        if gate.verdict == "not settled":
            return f"{three_digits(gate.low)}x to {three_digits(gate.high)}x"
        if gate.verdict == "warning" and gate.low >= (gate.limit or 0.0):
            return f"at least {three_digits(gate.low)}x"
        return speedup_text(gate.measured, gate.low, gate.high)
    return _with_unit(gate.measured, gate.unit)


def limit_text(gate: Gate) -> str:
    """Return the limit of a gate with its direction, for example ``at most 1e-05``; a dash without a limit."""
    if gate.limit is None:
        return "-"
    # A count without an allowance.
    return f"no {gate.unit}" if gate.limit == 0 and gate.unit else f"{gate.sense} {_with_unit(gate.limit, gate.unit)}"


def _with_unit(value: float, unit: str) -> str:
    if value == 1 and unit.endswith("s") and unit != "ms":
        unit = unit.removesuffix("s")
    # A share close to 1 needs more digits, so that it is not shown as its limit.
    digits = f"{value:.6g}" if 0.9 < abs(value) < 1 and not unit else three_digits(value)
    return f"{digits}{unit}" if unit in ("", "x") else f"{digits} {unit}"
