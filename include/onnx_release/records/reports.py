"""Records of the check, the parity comparison and the latency measurement."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from onnx_release.records.artifact import Finding
from onnx_release.records.base import Record
from onnx_release.records.measures import Measures
from onnx_release.records.tensors import TensorSpec


class CheckReport(Record):
    """What static checks of the ONNX file found; `passed` only when every check ran and none found an error."""

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


class OutputParity(Record):
    """Comparison of one output on one sample. A limit on a measure without a value has failed."""

    output: str
    sample: str
    batch_size: int
    dtype: str
    shape: tuple[int, ...]
    measures: Measures = Field(default_factory=Measures)
    passed: bool
    failures: tuple[str, ...] = ()


class Divergence(Record):
    """Where ONNX Runtime's values first leave PyTorch's, in the order of the ONNX graph.

    `value` is what the node gives, `module` the path of the PyTorch module that it belongs to (empty when unknown),
    `scale` the root mean square of PyTorch's values, `compared` how many intermediate values were compared, and `note`
    what limits the finding.
    """

    sample: str
    batch_size: int
    node: str
    op_type: str
    value: str
    module: str = ""
    module_type: str = ""
    mae: float | None = None
    max_abs: float | None = None
    scale: float | None = None
    compared: int = 0
    note: str = ""


class ParityReport(Record):
    """PyTorch against ONNX Runtime on the same inputs: every output, every sample, several sizes of what may vary.

    `notes` say what was left out, and why. `divergence` is looked for when the outputs differ.
    """

    sha256: str
    passed: bool
    comparisons: tuple[OutputParity, ...]
    batch_sizes: tuple[int, ...]
    unseen_batch_sizes: tuple[int, ...]
    limits: dict[str, Any]
    failures: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    divergence: Divergence | None = None

    def worst_per_output(self) -> dict[str, Measures]:
        """Return each output's worst measures over all its samples."""
        found: dict[str, list[Measures]] = {}
        for comparison in self.comparisons:
            found.setdefault(comparison.output, []).append(comparison.measures)
        return {output: Measures.worst(every) for output, every in found.items()}


class SideLatency(Record):
    """One side's time per call, in ms; `throughput_per_s` counts samples (calls times batch size) a second."""

    p50_ms: float
    p95_ms: float
    cpu_p50_ms: float
    throughput_per_s: float


class BatchLatency(Record):
    """Both sides at one batch size. `speedup` is PyTorch's median over ONNX Runtime's, with its bootstrap interval.

    `rounds` counts interleaved rounds, of `calls_per_round` timed calls of each side. `cpu_wait_share` is the part of
    their time that this process's threads were ready to run and waited for a CPU that others had (None where the
    kernel does not count it): a busy host slows PyTorch more than ONNX Runtime, and flatters the speedup. So disturbed
    rounds, `rounds_disturbed` of them, are not among `rounds`, unless there were too few without; then the figures are
    not `conclusive`.
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


class HostInfo(Record):
    """The machine that measured. `load_1m` is the load average when the measuring began."""

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
    `LatencyBudget.speedup_goal` too. The default is a refusal: `latency.evaluate` sets the verdict.
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
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class BenchmarkReport(Record):
    """Parity and latency of one artifact; a model that failed parity is not timed (`latency` is None)."""

    sha256: str
    passed: bool
    parity: ParityReport
    latency: LatencyReport | None = None
