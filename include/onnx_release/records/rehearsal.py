"""Records of a rehearsal: released models in other versions of ONNX Runtime, beside the present one."""

from __future__ import annotations

from typing import Literal

from onnx_release.records.base import Record
from onnx_release.records.reports import Divergence, HostInfo

RuntimeVerdict = Literal["bit-equal", "within limits", "changes", "does not run", "does not load", "not rehearsed"]


class Runtime(Record):
    """Version of ONNX Runtime to rehearse.

    Attributes:
        name: The name for people: the version, or the name or path of an environment.
        version: The exact version to install; None for an environment that exists.
        python: The interpreter or the folder of an environment that exists.
    """

    name: str
    version: str | None = None
    python: str | None = None


class RuntimeLatency(Record):
    """Time per call beside the present runtime, from the same interleaved rounds.

    Attributes:
        batch_size: The batch size.
        present_p50_ms: The median of the present runtime.
        p50_ms: The median of the other runtime.
        ratio: The other's median over the present one's, with an interval from `ratio_low` to `ratio_high` at
            `confidence`. Below 1 the other runtime is faster.
        rounds: The number of interleaved rounds.
        settled: False when the interval is too wide, or when too few rounds were quiet.
    """

    batch_size: int
    present_p50_ms: float
    p50_ms: float
    ratio: float
    ratio_low: float
    ratio_high: float
    confidence: float
    rounds: int
    settled: bool


class RehearsedRuntime(Record):
    """One released model in one other version of ONNX Runtime.

    Attributes:
        runtime: The name of the runtime.
        version: Its version of ONNX Runtime; None if it is unknown.
        verdict: ``bit-equal`` to the present runtime, other values ``within limits`` of the release, or beyond them
            (``changes``). A model of the other three was not compared.
        problem: The error, or the first difference beyond the limits.
        compared: The number of compared outputs, over all samples.
        difference: The largest absolute difference from the present runtime, over the samples that decide; None
            without a comparison.
        reference: The result of the comparison with PyTorch's stored outputs; None for a release without them.
        reference_difference: The largest absolute difference from PyTorch's outputs.
        node: The first node with other values than in the present runtime; None for bit-equal outputs.
        latency: The times; None without a measurement.
        note: A restriction of the result.
    """

    runtime: str
    version: str | None = None
    verdict: RuntimeVerdict = "not rehearsed"
    problem: str = ""
    compared: int = 0
    difference: float | None = None
    reference: Literal["passed", "failed"] | None = None
    reference_difference: float | None = None
    node: Divergence | None = None
    latency: RuntimeLatency | None = None
    note: str = ""


class RehearsedModel(Record):
    """One released model in all runtimes of a rehearsal.

    Attributes:
        name: The name for people, such as ``net v3``.
        sha256: The sha256 of the artifact; None for a model that cannot be read.
        present: The version of the present runtime.
        problem: The reason why the model was not rehearsed, else empty.
        samples: The number of compared samples.
        runtimes: One result for each runtime, in their order.
        notes: Restrictions that hold for all of them.
        host: The host of the rehearsal.
    """

    name: str
    sha256: str | None = None
    present: str
    problem: str = ""
    samples: int = 0
    runtimes: tuple[RehearsedRuntime, ...] = ()
    notes: tuple[str, ...] = ()
    host: HostInfo | None = None


class RehearsalReport(Record):
    """Result of a rehearsal.

    Attributes:
        created: The time in ISO format.
        present: The version of the present runtime.
        runtimes: The names of the other runtimes.
        models: One result for each model.
    """

    created: str
    present: str
    runtimes: tuple[str, ...]
    models: tuple[RehearsedModel, ...]

    @property
    def hosts(self) -> tuple[str, ...]:
        """The hosts of the models in words, without duplicates."""
        found = (model.host for model in self.models if model.host)
        return tuple(dict.fromkeys(f"{host.cpu_model}, {host.usable_cpus} CPUs, {host.platform}" for host in found))
