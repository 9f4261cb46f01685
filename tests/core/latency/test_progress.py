"""Lines about a running measurement: their form, their interval and their cost."""

from __future__ import annotations

import functools
import logging
import re
import time

import numpy as np
import pytest

from onnx_release.latency.measure import Sides, measure
from onnx_release.latency.progress import log_progress
from onnx_release.runners.progress import Progress
from tests.core.latency.test_measure import QUICK, SAMPLE, Sleeper

LINE = re.compile(r"batch \d: round \d+, \d+\.\d\dx \[\d+\.\d\d, \d+\.\d\d\], \d+ of \d+ s")


def test_a_line_has_the_interval_around_the_ratio_and_costs_little(caplog: pytest.LogCaptureFixture) -> None:
    random = np.random.default_rng(1)
    reference, candidate = (scale * (1 + 0.1 * random.random((2000, 200))) for scale in (2.0, 1.0))
    caplog.set_level(logging.INFO)
    began = time.process_time()
    log_progress(8, reference, candidate, 14.2, 40.0)
    assert time.process_time() - began < 0.5, "every 5 s of a measurement"
    (line,) = caplog.messages
    assert LINE.fullmatch(line)
    value, low, high = map(float, re.findall(r"\d+\.\d\d", line))
    assert low <= value <= high
    assert value == pytest.approx(2.0, abs=0.02)


def test_a_measurement_logs_in_intervals(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnx_release.latency.measure.Progress", functools.partial(Progress, 0.05))
    caplog.set_level(logging.INFO)
    plan = QUICK.replace(measure_min_s=0.3, measure_max_s=0.4, interval_width_max=1e-6)
    measure(Sides(reference=Sleeper("a", []), candidate=Sleeper("b", [])), SAMPLE, plan)
    assert 1 <= len(caplog.messages) <= 8
    assert all(LINE.fullmatch(line) for line in caplog.messages)
