"""Coordinates of the small charts of a model: one value for each version."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from airflow_onnx.ui import numbers

WIDTH, HEIGHT = 520, 150
_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 12, 26
_TICKS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The value of one version; `low` and `high` are the ends of its interval."""

    version: int
    value: float | None
    low: float | None = None
    high: float | None = None

    @property
    def shown(self) -> float | None:
        """The drawn value: a value that is not settled has its lower bound alone."""
        return self.low if self.value is None else self.value


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """One point in pixels. `y_low` and `y_high` are equal to `y` without an interval."""

    x: float
    y: float
    y_low: float
    y_high: float
    label: str
    is_settled: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Chart:
    """A chart with its sentence for a screen reader. `ticks` are pairs of y and text."""

    marks: tuple[Mark, ...]
    ticks: tuple[tuple[float, str], ...]
    limit_y: float | None
    sentence: str
    unit: str

    width = WIDTH
    height = HEIGHT
    left = _LEFT
    right = WIDTH - _RIGHT
    baseline = HEIGHT - _BOTTOM


def chart(points: Sequence[Point], *, subject: str, unit: str = "", limit: float | None = None) -> Chart | None:
    """Return the chart of the points with a value, the oldest version first; None for fewer than two.

    :param subject: the measure in words, such as ``Size``.
    """
    shown = [point for point in sorted(points, key=lambda one: one.version) if point.shown is not None]
    if len(shown) < 2:
        return None
    values = [value for point in shown for value in (point.shown, point.low, point.high) if value is not None]
    step_value = _step(max([*values, limit or 0.0]) or 1.0)
    top = step_value * math.ceil(1.02 * max([*values, limit or 0.0]) / step_value)
    span, step = HEIGHT - _TOP - _BOTTOM, (WIDTH - _LEFT - _RIGHT - 24) / (len(shown) - 1)

    def y_of(value: float) -> float:
        return round(_TOP + span * (1 - value / top), 1)

    marks = tuple(_mark(point, round(_LEFT + 12 + number * step, 1), y_of) for number, point in enumerate(shown))
    parts = range(round(top / step_value) + 1)
    ticks = tuple((y_of(part * step_value), _text(part * step_value, unit)) for part in parts)
    first, last = shown[0], shown[-1]
    return Chart(
        marks=marks,
        ticks=ticks,
        limit_y=None if limit is None else y_of(limit),
        sentence=f"{subject} by version: {_text(first.shown, unit)} in version {first.version}, "
        f"{_text(last.shown, unit)} in version {last.version}.",
        unit=unit,
    )


def _step(largest: float) -> float:
    """Return a round step of which three to five reach the largest value."""
    power = 10.0 ** math.floor(math.log10(largest))
    return next(part * power for part in (0.25, 0.5, 1.0, 2.5) if largest / (part * power) <= _TICKS)


def _mark(point: Point, x: float, y_of: Callable[[float], float]) -> Mark:
    y = y_of(point.shown or 0.0)
    return Mark(
        x=x,
        y=y,
        y_low=y if point.low is None else y_of(point.low),
        y_high=y if point.high is None else y_of(point.high),
        label=f"v{point.version}",
        is_settled=point.value is not None,
    )


def _text(value: float | None, unit: str) -> str:
    if unit == "B":
        return numbers.size(value)
    return f"{numbers.digits(value)}{unit}"
