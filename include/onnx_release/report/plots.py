"""Geometry of the drawings in a report: the bar of a gate, and the plot of the times per call."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from onnx_release.limits import LATENCY_QUANTILES
from onnx_release.records import BatchLatency, Gate, LatencyReport, SideLatency
from onnx_release.report.gates import is_settled
from onnx_release.report.numbers import three_digits

# The place of the limit on a bar, and the decades of an error below it.
_LIMIT_PLACE, _DECADES = 0.7, 6.0
# The place of a lower limit.
_LEAST_PLACE = 0.4
# The powers of two on each side of a speedup's limit.
_OCTAVES = 3.0
# The plot in its own units: width, the edges of the axis, and the heights above the sides, of a side and of the axis.
_WIDTH, _LEFT, _RIGHT = 420.0, 84.0, 404.0
_HEAD_HEIGHT, _SIDE_HEIGHT, _AXIS_HEIGHT = 20.0, 19.0, 34.0
_TICKS_MAX = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Bar:
    """Places on the bar of a gate, from 0 to 1. `low` and `high` are the ends of the drawn line."""

    limit: float
    low: float
    high: float
    dot: float | None = None
    sentence: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One side at one batch size: x of the quantiles 5 %, 25 %, 50 %, 75 % and 95 %, and y of the line."""

    side: str
    name: str
    y: float
    x05: float
    x25: float
    x50: float
    x75: float
    x95: float
    text: str
    text_x: float
    anchor: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One batch size: its label, its speedup, and its marks."""

    label: str
    speedup: str
    y: float
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Plot:
    """Plot of the times per call of all sides on a logarithmic axis."""

    width: float
    height: float
    left: float
    right: float
    axis_y: float
    ticks: tuple[tuple[float, str], ...]
    groups: tuple[Group, ...]
    sentence: str


def gate_bar(gate: Gate) -> Bar | None:
    """Return the bar of a gate; None for counts and for values without a limit above zero."""
    value, limit = gate.measured, gate.limit
    if value is None or limit is None or limit <= 0 or not math.isfinite(value) or gate.name == "unseen_batch_sizes":
        return None
    if gate.low is not None and gate.high is not None:
        low, dot, high = (
            _clipped(0.5 + _log(edge / limit, 2.0) / (2 * _OCTAVES)) for edge in (gate.low, value, gate.high)
        )
        return Bar(limit=0.5, low=low, high=high, dot=dot, sentence=f"{three_digits(value / limit)} times the limit")
    sentence = f"{three_digits(100 * value / limit)} % of the limit"
    if gate.sense == "at least" and gate.unit == "" and limit < 1 and value <= 1:
        # A share close to 1: its distance to 1 is compared.
        used = (1 - value) / (1 - limit)
        sentence = f"{three_digits(100 * used)} % of the allowed distance to 1"
        place = 1 - (1 - _LIMIT_PLACE) * used if used <= 1 else _LIMIT_PLACE / used
        return Bar(limit=_LIMIT_PLACE, low=0.0, high=_clipped(place), sentence=sentence)
    if gate.sense == "at least":
        return Bar(limit=_LEAST_PLACE, low=0.0, high=_clipped(_LEAST_PLACE * value / limit), sentence=sentence)
    place = (
        _LIMIT_PLACE * (1 + _log(value / limit, 10.0) / _DECADES) if gate.unit != "ms" else _LIMIT_PLACE * value / limit
    )
    return Bar(limit=_LIMIT_PLACE, low=0.0, high=_clipped(place), sentence=sentence)


def latency_plot(latency: LatencyReport) -> Plot | None:
    """Return the plot of all batch sizes; None without a measurement."""
    times = [time for batch in latency.batches for _, _, side in sides(batch) for time in _quantiles(side)]
    times = [time for time in times if math.isfinite(time) and time > 0]
    if not times:
        return None
    first, last = math.log10(min(times)), math.log10(max(times))
    margin = max(0.05 * (last - first), 0.04)
    first, last = first - margin, last + margin

    def x(time_ms: float) -> float:
        return _LEFT + (_log(time_ms, 10.0) - first) / (last - first) * (_RIGHT - _LEFT)

    height = _HEAD_HEIGHT + _SIDE_HEIGHT * max(len(list(sides(batch))) for batch in latency.batches)
    groups = tuple(_group(batch, latency, row * height, x) for row, batch in enumerate(latency.batches))
    axis_y = len(groups) * height
    return Plot(
        width=_WIDTH,
        height=axis_y + _AXIS_HEIGHT,
        left=_LEFT,
        right=_RIGHT,
        axis_y=axis_y,
        ticks=tuple((x(10**tick), three_digits(10**tick)) for tick in _ticks(first, last)),
        groups=groups,
        sentence="Median time per call. " + " ".join(_sentence(batch) for batch in latency.batches),
    )


def sides(batch: BatchLatency) -> Iterator[tuple[str, str, SideLatency]]:
    """Yield the class, the name and the times of each side."""
    yield "reference", "PyTorch", batch.reference
    yield "candidate", "ONNX Runtime", batch.candidate
    if batch.champion:
        yield "champion", "Champion", batch.champion.times


def _group(batch: BatchLatency, latency: LatencyReport, top: float, x: Callable[[float], float]) -> Group:
    marks = []
    for row, (side, name, times) in enumerate(sides(batch)):
        x05, x25, x50, x75, x95 = (x(time) for time in _quantiles(times))
        fits = x95 < _RIGHT - 76
        marks.append(
            Mark(
                side=side,
                name=name,
                y=top + _HEAD_HEIGHT + row * _SIDE_HEIGHT,
                x05=x05,
                x25=x25,
                x50=x50,
                x75=x75,
                x95=x95,
                text=f"{three_digits(times.p50_ms)} ms",
                text_x=x95 + 7 if fits else x05 - 7,
                anchor="start" if fits else "end",
            )
        )
    return Group(
        label=f"batch {batch.batch_size}",
        speedup=f"{batch.speedup:.2f}x" if is_settled(batch, latency) else "not settled",
        y=top + _HEAD_HEIGHT,
        marks=tuple(marks),
    )


def _quantiles(side: SideLatency) -> Sequence[float]:
    """Return the quantiles 5 %, 25 %, 50 %, 75 % and 95 % in ms."""
    found = dict(zip(LATENCY_QUANTILES, side.quantiles_ms, strict=False))
    return [
        found.get(0.05, side.p50_ms),
        found.get(0.25, side.p50_ms),
        side.p50_ms,
        found.get(0.75, side.p50_ms),
        side.p95_ms,
    ]


def _ticks(first: float, last: float) -> list[float]:
    """Return logarithms of round numbers between two logarithms."""
    for steps in ((1, 2, 5), (1, 3), (1,)):
        found = [
            tick
            for decade in range(math.floor(first), math.ceil(last) + 1)
            for step in steps
            if first <= (tick := decade + math.log10(step)) <= last
        ]
        if len(found) <= _TICKS_MAX:
            return found
    return found[:: math.ceil(len(found) / _TICKS_MAX)]


def _sentence(batch: BatchLatency) -> str:
    medians = ", ".join(f"{name} {three_digits(side.p50_ms)} ms" for _, name, side in sides(batch))
    return f"Batch {batch.batch_size}: {medians}."


def _log(value: float, base: float) -> float:
    return math.log(max(value, 1e-300), base)


def _clipped(place: float) -> float:
    return min(1.0, max(0.015, place))
