"""Options of a tuning."""

from __future__ import annotations

import math
from collections.abc import Collection

from pydantic import Field

from onnx_release.benchmark.setup import BenchmarkOptions, require_precisions
from onnx_release.errors import TuningRefused
from onnx_release.limits import METRIC_LOSS_MAX, SINGLE_FILE_MAX_BYTES, TUNE_MAX_S
from onnx_release.records import OnnxArtifact, Precision
from onnx_release.records.base import Record


class TuneOptions(Record):
    """Options of one tuning.

    `benchmark` are the options of the later benchmark: samples, limits, serving batch size, threads. `precisions` may
    be released. `max_s` is the longest duration. `opset` is the opset that the release requires; None: any.
    `evaluation` is the path of an ``.npz`` file (see `task_metrics.read_evaluation_sample`); None: no evaluation
    sample. `metric_loss_max` is the largest loss on it, relative to PyTorch's metric. `allowed_domains` are operator
    domains besides ONNX's own, as in `static_checks.CheckOptions`. `single_file_max_bytes` is that of the export, for
    the package of the chosen variant.
    """

    benchmark: BenchmarkOptions = Field(default_factory=BenchmarkOptions)
    precisions: tuple[Precision, ...] = (Precision.EXACT,)
    max_s: float = TUNE_MAX_S
    opset: int | None = None
    evaluation: str | None = None
    metric_loss_max: float = METRIC_LOSS_MAX
    allowed_domains: tuple[str, ...] = ()
    single_file_max_bytes: int = SINGLE_FILE_MAX_BYTES

    @property
    def allow_pickle(self) -> bool:
        """True where the deployment allows pickles."""
        return self.benchmark.allow_pickle

    @property
    def pickle_memory_bytes(self) -> int | None:
        """The memory limit of a pickle."""
        return self.benchmark.pickle_memory_bytes

    @property
    def pickle_user(self) -> int | None:
        """The account of a pickle where this process is root."""
        return self.benchmark.pickle_user


def require_valid_tune_options(options: TuneOptions) -> None:
    """Refuse options that allow no tuning.

    Raises:
        TuningRefused: `invalid_tune_options`; the message names every invalid option.
    """
    rules = {
        "tune_precisions is empty": bool(options.precisions),
        f"tune_max_s is {options.max_s}, not above 0": 0 < options.max_s < math.inf,
        f"metric_loss_max is {options.metric_loss_max}, not 0 or more": 0 <= options.metric_loss_max < math.inf,
    }
    if wrong := [text for text, valid in rules.items() if not valid]:
        raise TuningRefused(
            "The tuning parameters",
            f"contain invalid values: {'; '.join(wrong)}",
            "Correct them in the parameters of the release.",
            code="invalid_tune_options",
        )
    require_precisions(options.benchmark.precision_limits)


def require_precision(tuned: OnnxArtifact, precisions: Collection[Precision]) -> None:
    """Refuse the plain export where only reduced precisions may ship.

    Args:
        tuned: The result of the tuning.
        precisions: The precisions that may ship.

    Raises:
        TuningRefused: `no_reduced_variant`; the message has the outcome of each variant.
    """
    if tuned.precision in precisions or tuned.tuning is None:
        return
    reasons = [f"{v.name}: {v.outcome}, {v.reason}" for v in tuned.tuning.variants if v.precision in precisions]
    raise TuningRefused(
        f"The tuning to {', '.join(precisions)}",
        f"found no variant that passed and was faster than the plain export ({'; '.join(reasons)})",
        "The table of the report has every figure. Add 'exact' to the precisions to ship the plain export.",
        code="no_reduced_variant",
    )
