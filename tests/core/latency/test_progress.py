"""Lines about a running measurement: their form and their interval."""

from __future__ import annotations

import functools
import logging
import re

import pytest

from onnx_release.latency.measure import Sides, measure
from onnx_release.runners.progress import Progress
from tests.core.latency.test_measure import QUICK, SAMPLE, Sleeper

LINE = re.compile(r"batch \d: round \d+, \d+\.\d\dx \[\d+\.\d\d, \d+\.\d\d\], \d+ of \d+ s")


def test_a_measurement_logs_in_intervals(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.latency.measure.Progress", functools.partial(Progress, 0.05))
    caplog.set_level(logging.INFO)
    plan = QUICK.replace(measure_min_s=0.3, measure_max_s=0.4, interval_width_max=1e-6)
    measure(Sides(reference=Sleeper("a", []), candidate=Sleeper("b", [])), SAMPLE, plan)
    assert 1 <= len(caplog.messages) <= 8
    for line in caplog.messages:
        assert LINE.fullmatch(line)
        value, low, high = map(float, re.findall(r"\d+\.\d\d", line))
        assert low <= value <= high
