"""Steps that measure the measurement of latency: its duration, its arithmetic, and its end."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import mlflow
import numpy as np
import torch

from bench.models import ARTIFACT
from bench.step import Meter
from bench.watch.training_steps import SIGNATURE, small_model
from onnx_release.benchmark.benchmark_model import benchmark_artifact
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.export.export_model import ExportStepOptions, export_trained
from onnx_release.latency import measure
from onnx_release.latency.rounds import Round, run_round
from onnx_release.latency.stopping import StoppingRule
from onnx_release.limits import MeasurePlan
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

# The functions of the arithmetic. Some call each other.
_ARITHMETIC: list[tuple[object, str]] = [(measure, "summarize")]
_ARITHMETIC += [(StoppingRule, name) for name in ("ends", "keep", "speedup", "interval", "is_conclusive")]
# Shapes of the matrices, and the duration of a call from which on they are large.
_SMALL, _LARGE, _LARGE_FROM_S = (64, 64), (768, 768), 4e-3
_TRIALS = 50


def decide(meter: Meter, folder: str, first_rounds: str) -> dict[str, Any]:
    """Compare and time a small model with the default limits, which its speedup is far from."""
    trained, onnx = Path(folder, "trained"), Path(folder, ARTIFACT)
    model, signal = small_model(seed=0)
    example = {"signature": SIGNATURE, "input_example": signal[:4].numpy(), "pip_requirements": ["torch"]}
    mlflow.pytorch.save_model(model, trained, **example)
    artifact = export_trained(trained, onnx, ExportStepOptions(device="cpu"))
    options = BenchmarkOptions()
    arithmetic, rounds = _Arithmetic(), _Rounds(options.latency_budget.batch_size)
    with meter.work():
        report = benchmark_artifact(trained, onnx, artifact, options)
    if report.latency is None:
        raise SystemExit(f"The small model is refused: {report.parity.failures}")
    return {
        # The warm-up comes before the rounds.
        "first_rounds_s": sum(rounds.seconds[options.measure_plan.warmup_rounds :][: int(first_rounds)]),
        "arithmetic_s": arithmetic.seconds,
        "measured_s": sum(batch.measured_s for batch in report.latency.batches),
        "batches": [batch.to_dict() for batch in report.latency.batches],
    }


def overrun(meter: Meter, max_s: str, *pairs: str) -> dict[str, Any]:
    """Measure simulated models until the time is up.

    Args:
        meter: The step's meter.
        max_s: The longest duration of each measurement in seconds.
        pairs: Milliseconds of a call of both sides, such as ``5:0.25``.
    """
    arithmetic, found = _Arithmetic(), []
    sample = Sample(name="none", inputs={"x": np.ones((1, 2), np.float32)}, batch_size=1)
    # A speedup at its limit with an interval that is never narrow enough is looked at each time.
    plan = MeasurePlan(measure_max_s=float(max_s), interval_width_max=1e-9)
    with meter.work():
        for pair in pairs:
            reference, candidate = (_Worker(1e-3 * float(milliseconds)) for milliseconds in pair.split(":"))
            arithmetic.seconds = 0.0
            began = time.perf_counter()
            measured = measure.measure(measure.Sides(reference=reference, candidate=candidate), sample, plan)
            wall_s = time.perf_counter() - began
            times = {"p50_ms": [measured.reference.p50_ms, measured.candidate.p50_ms], "rounds": measured.rounds}
            found.append({"pair": pair, "measured_s": wall_s, "arithmetic_s": arithmetic.seconds, **times})
    return {"cases": found}


class _Arithmetic:
    """Time in the arithmetic of the intervals. A call within another one counts once."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._depth = 0
        for place, name in _ARITHMETIC:
            setattr(place, name, self._timed(getattr(place, name)))

    def _timed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            self._depth += 1
            began = time.perf_counter()
            try:
                return function(*arguments, **keywords)
            finally:
                self._depth -= 1
                if not self._depth:
                    self.seconds += time.perf_counter() - began

        return timed


class _Rounds:
    """Durations of the rounds of one batch size, with those of the warm-up."""

    def __init__(self, batch_size: int) -> None:
        self.seconds: list[float] = []

        def timed(runners: Any, sample: Sample, *arguments: Any, **keywords: Any) -> Round:
            began = time.perf_counter()
            done = run_round(runners, sample, *arguments, **keywords)
            if sample.batch_size == batch_size:
                self.seconds.append(time.perf_counter() - began)
            return done

        setattr(measure, "run_round", timed)  # noqa: B010 - the module does not export the name


class _Worker:
    """Runner whose calls are products of matrices, so many that a call takes these seconds on a quiet host.

    Few large products are like a model. A busy host makes each product slower, because its threads wait for each other.
    """

    name = "products"

    def __init__(self, seconds: float) -> None:
        self._matrix = torch.ones(_LARGE if seconds > _LARGE_FROM_S else _SMALL)
        self._result = torch.empty_like(self._matrix)
        self._products = max(1, round(seconds / self._product_s()))

    def _product_s(self) -> float:
        """Return the time of one product: the least of many, which a busy host does not change."""
        times = []
        for _ in range(_TRIALS):
            began = time.perf_counter()
            torch.mm(self._matrix, self._matrix, out=self._result)
            times.append(time.perf_counter() - began)
        return min(times)

    def run(self, inputs: Arrays) -> Arrays:
        for _ in range(self._products):
            torch.mm(self._matrix, self._matrix, out=self._result)
        return {"y": self._result[:1, :1].numpy()}

    def close(self) -> None: ...

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None: ...
