"""What a tuning may try, how long, and what it is held to."""

from __future__ import annotations

import math

from pydantic import Field

from onnx_release.benchmark.setup import BenchmarkOptions, require_precisions
from onnx_release.errors import Refused
from onnx_release.limits import METRIC_LOSS_MAX, TUNE_MAX_S
from onnx_release.records import Precision
from onnx_release.records.base import Record


class TuneOptions(Record):
    """`judge` says how the release itself will judge: samples, limits, serving batch size, threads.

    `precisions` are those that may be shipped: without ``float32`` a tuning that finds nothing of the others is
    refused. `opset` is the one that the release asked for, which is then kept. `evaluation` is the path of an ``.npz``
    file (see `evaluation.read_evaluation`), empty for none, and `metric_loss_max` what a candidate may lose on it, as a
    part of PyTorch's metric. `allowed_domains` are those of operators besides ONNX's own, as for `check.CheckOptions`.
    """

    judge: BenchmarkOptions = Field(default_factory=BenchmarkOptions)
    precisions: tuple[Precision, ...] = (Precision.EXACT,)
    max_s: float = TUNE_MAX_S
    opset: int | None = None
    evaluation: str = ""
    metric_loss_max: float = METRIC_LOSS_MAX
    allowed_domains: tuple[str, ...] = ()

    @property
    def allow_pickle(self) -> bool:
        """True where the deployment allows pickles."""
        return self.judge.allow_pickle


def require_tunable(options: TuneOptions) -> None:
    """Raise `Refused` naming every option that no tuning could be made by."""
    rules = {
        "tune_precisions is empty": bool(options.precisions),
        f"tune_max_s is {options.max_s}, not above 0": 0 < options.max_s < math.inf,
        f"metric_loss_max is {options.metric_loss_max}, not 0 or more": 0 <= options.metric_loss_max < math.inf,
    }
    if wrong := [text for text, holds in rules.items() if not holds]:
        raise Refused("The tuning's parameters", "; ".join(wrong), "Correct them in the release's parameters.")
    require_precisions(options.judge.precision_limits)
