"""Records of the check, the parity comparison and the latency measurement."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from onnx_release.records.artifact import Finding
from onnx_release.records.base import Record
from onnx_release.records.measures import Measures
from onnx_release.records.serving import RuntimeReport
from onnx_release.records.tensors import TensorSpec


class CheckReport(Record):
    """Result of the static checks of the ONNX file. It passes only when every check ran and none found an error."""

    sha256: str
    passed: bool
    findings: tuple[Finding, ...]
    opset: int | None = None
    ir_version: int | None = None
    domains: tuple[str, ...] = ()
    node_count: int | None = None
    size_bytes: int | None = None
    inputs: tuple[TensorSpec, ...] = ()
    outputs: tuple[TensorSpec, ...] = ()


class ColumnParity(Record):
    """Column of a float output that uses most of its limits.

    Attributes:
        axis: The axis whose indices are the columns: -1, or 1 for channels; None when the whole output is one column.
        index: The index of the column.
        mae: The mean absolute difference of the column.
        scale: The spread of the column's values over all samples, or the size of a constant column.
        sqnr_db: `scale` over the root mean square of the difference, in dB; None without a difference.
        share: The part of its limit that the difference uses; the limit is exceeded above 1.
    """

    axis: int | None
    index: int
    mae: float
    scale: float
    sqnr_db: float | None = None
    share: float

    def __str__(self) -> str:
        column = {None: "whole output", -1: f"column {self.index}"}.get(self.axis, f"channel {self.index}")
        ratio = "" if self.sqnr_db is None else f", SQNR {self.sqnr_db:.0f} dB"
        return f"{column}, MAE {self.mae:.2e} at a scale of {self.scale:.3g}{ratio}, {self.share:.2g} of its limit"


class AppliedLimit(Record):
    """One limit of an output on one sample, with the measured value.

    Attributes:
        name: The measure: a field of `Measures`, or ``tolerance`` (the largest difference over what `atol` and `rtol`
            allow), or ``column_sqnr_db`` (the ratio of a single column).
        measured: The value; None when there is none, such as a ratio to a difference of zero.
        limit: The limit in effect, which can depend on the spread and the rounding of the values.
        passed: True when the limit is kept.
    """

    name: str
    measured: float | None
    limit: float
    passed: bool


class OutputParity(Record):
    """Comparison of one output on one sample. A limit on a measure without a value has failed.

    `decides` is that of the sample: without it, a failed comparison is a warning of the report. Equal outputs without a
    finite value have no measures, and so no value was compared. `applied` are the limits; a comparison that failed
    for dtype, shape or the places of NaN has none that failed.
    """

    output: str
    sample: str
    batch_size: int
    dtype: str
    shape: tuple[int, ...]
    measures: Measures = Field(default_factory=Measures)
    applied: tuple[AppliedLimit, ...] = ()
    worst_column: ColumnParity | None = None
    decides: bool = True
    passed: bool
    failures: tuple[str, ...] = ()

    @property
    def has_values(self) -> bool:
        """True when at least one value was compared."""
        return self.measures.mae is not None


class Divergence(Record):
    """First difference between the two sides, in the order of the ONNX graph.

    Attributes:
        sample: The sample of the comparison, at `batch_size`.
        node: The name of the node at fault, of the type `op_type`; None when no single node is at fault.
        value: The output of the node.
        module: The path of the PyTorch module that computes the value, of the class `module_type`.
        mae: The mean absolute difference of the value.
        max_abs: Its largest absolute difference.
        scale: The root mean square of PyTorch's value.
        compared: The number of compared intermediate values.
        note: A restriction of the finding.
    """

    sample: str
    batch_size: int
    node: str | None = None
    op_type: str | None = None
    value: str | None = None
    module: str | None = None
    module_type: str | None = None
    mae: float | None = None
    max_abs: float | None = None
    scale: float | None = None
    compared: int = 0
    note: str | None = None


class ParityReport(Record):
    """Comparison of PyTorch and ONNX Runtime on the same inputs: every output, sample and size.

    `warnings` are differences on samples that do not decide. `notes` are the skipped samples with the reason.
    `divergence` is set when the outputs differ and the first difference was found.
    """

    sha256: str
    passed: bool
    comparisons: tuple[OutputParity, ...]
    batch_sizes: tuple[int, ...]
    unseen_batch_sizes: tuple[int, ...]
    limits: dict[str, Any]
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None

    def worst_per_output(self) -> dict[str, Measures]:
        """Return each output's worst measures over the samples that decide and have values."""
        found: dict[str, list[Measures]] = {}
        for comparison in self.comparisons:
            if comparison.decides and (comparison.has_values or not comparison.passed):
                found.setdefault(comparison.output, []).append(comparison.measures)
        return {output: Measures.worst(every) for output, every in found.items()}

    def worst_columns(self) -> dict[str, OutputParity]:
        """Return each float output's comparison whose worst column uses most of its limits."""
        found: dict[str, tuple[float, OutputParity]] = {}
        for comparison in self.comparisons:
            column = comparison.worst_column
            if comparison.decides and column and column.share > found.get(comparison.output, (-1.0, comparison))[0]:
                found[comparison.output] = column.share, comparison
        return {output: comparison for output, (_, comparison) in found.items()}


class SideLatency(Record):
    """Time per call of one side in ms.

    `quantiles_ms` has the quantiles `limits.LATENCY_QUANTILES`. `throughput_per_s` counts samples (calls times batch
    size) per second.
    """

    p50_ms: float
    p95_ms: float
    cpu_p50_ms: float
    throughput_per_s: float
    quantiles_ms: tuple[float, ...]


class ChampionLatency(Record):
    """Time per call of the champion, from the same rounds as that of the candidate.

    Attributes:
        times: The champion's times.
        speed: Its median over the candidate's, with an interval from `speed_low` to `speed_high`. Above 1 the candidate
            is faster.
    """

    times: SideLatency
    speed: float
    speed_low: float
    speed_high: float


class BatchLatency(Record):
    """Latency of both sides at one batch size.

    Attributes:
        batch_size: The batch size.
        reference: PyTorch's times.
        candidate: ONNX Runtime's times.
        speedup: PyTorch's median over ONNX Runtime's, with an interval from `speedup_low` to `speedup_high` at
            `confidence`.
        rounds: The number of interleaved rounds, each with `calls_per_round` timed calls of the faster
            side and fewer of a slower one.
        measured_s: The duration of the measurement in seconds.
        conclusive: False when the interval is too wide or disturbed rounds had to be used.
        rounds_disturbed: The rounds that are not in `rounds` because the threads waited for a CPU. A busy host slows
            PyTorch more than ONNX Runtime and raises the speedup.
        cpu_wait_share: The share of the time in which threads of this process waited for a CPU; None where the kernel
            does not count it.
        champion: The champion's times; None without a champion.
    """

    batch_size: int
    reference: SideLatency
    candidate: SideLatency
    speedup: float
    speedup_low: float
    speedup_high: float
    confidence: float
    rounds: int
    calls_per_round: int
    measured_s: float
    conclusive: bool
    rounds_disturbed: int = 0
    cpu_wait_share: float | None = None
    champion: ChampionLatency | None = None


class HostInfo(Record):
    """Host of the measurement. `load_1m` is the load average at its start."""

    cpu_model: str
    logical_cpus: int
    usable_cpus: int
    load_1m: float
    platform: str


class LatencyReport(Record):
    """Latency of one artifact at every batch size, and the verdict at the serving batch size.

    `verdict` is ``passed``, ``refused`` (a limit is missed), ``warning`` (a limit is missed and the budget only warns),
    or ``not settled`` (the interval of the speedup still contains the limit after the longest measurement). A verdict
    of ``not settled`` refuses the model unless the budget only warns. `goal_reached`: the interval is above
    `LatencyBudget.speedup_goal` too. The default is a refusal: `latency.evaluate` sets the verdict. `waited_s` is the
    time for which the measurement waited for the lock of its host.
    """

    sha256: str
    passed: bool = False
    verdict: Literal["passed", "warning", "refused", "not settled"] = "refused"
    goal_reached: bool = False
    batches: tuple[BatchLatency, ...]
    budget: dict[str, Any] = Field(default_factory=dict)
    threads: int
    device: str
    providers_requested: tuple[str, ...]
    providers_active: tuple[str, ...]
    host: HostInfo
    waited_s: float = 0.0
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class ChampionMetric(Record):
    """Metric of one output on the evaluation sample. `loss` is relative to the champion's; None if it has no value."""

    output: str
    name: str
    champion: float | None
    candidate: float | None
    loss: float | None


class ChampionComparison(Record):
    """Candidate beside the champion, the version that has the alias of production. `BatchLatency` has the times.

    Attributes:
        sha256: The candidate's; `size_bytes` is its size without reference outputs.
        alias: The alias of the champion.
        version: The version of the champion.
        champion_sha256: The champion's; `champion_size_bytes` is its size without reference outputs.
        agreement: The worst differences between the outputs of both, by output.
        parity: The champion's worst differences from its own PyTorch model, from the report of its release.
        metrics: The task metric of both, if there is an evaluation sample.
        margin: The allowed loss of speed, and growth of the size, as a fraction.
        metric_loss_max: The allowed loss of the metric, as a fraction.
        on_worse: The effect of a worse candidate, and of a comparison that is not possible; `on_unsettled` is that of a
            speed that is not settled.
        problem: The reason why the champion could not be measured, else empty.
        passed: The default is a refusal: `report.champion` sets the verdict.
    """

    sha256: str
    size_bytes: int
    alias: str
    version: int
    champion_sha256: str | None = None
    champion_size_bytes: int | None = None
    agreement: dict[str, Measures] = Field(default_factory=dict)
    parity: dict[str, Measures] = Field(default_factory=dict)
    metrics: tuple[ChampionMetric, ...] = ()
    margin: float
    metric_loss_max: float
    on_worse: Literal["refuse", "warn"]
    on_unsettled: Literal["refuse", "warn"]
    problem: str = ""
    passed: bool = False
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class BenchmarkReport(Record):
    """Parity and latency of one artifact. A model that failed parity has no `latency`.

    `timed` is False when the latency was not to be measured, as a person asked of the command line. `champion` is the
    comparison with the version in production; None without one. `runtimes` are the other versions of ONNX Runtime that
    the release names.
    """

    sha256: str
    passed: bool
    timed: bool = True
    parity: ParityReport
    latency: LatencyReport | None = None
    champion: ChampionComparison | None = None
    runtimes: tuple[RuntimeReport, ...] = ()
