"""Complete records, for tests of single fields."""

from __future__ import annotations

from typing import Any

from onnx_release.records import (
    BatchLatency,
    BenchmarkReport,
    CheckReport,
    HostInfo,
    LatencyReport,
    Measures,
    OnnxArtifact,
    OutputParity,
    ParityReport,
    SideLatency,
    TensorSpec,
    TrainedModel,
)

SHA = "a" * 64
HOST = HostInfo(cpu_model="a CPU", logical_cpus=2, usable_cpus=2, load_1m=0.1, platform="Linux")
TRAINING = TrainedModel(training_run_id="run1", model_uri="models:/m-1", run_name="a run", model_name="net")


def artifact(**changes: Any) -> OnnxArtifact:
    fields: dict[str, Any] = {
        "sha256": SHA,
        "size_bytes": 1000,
        "files": (),
        "opset": 20,
        "ir_version": 10,
        "inputs": (TensorSpec(name="x", dtype="float32", shape=("batch", 4)),),
        "outputs": (TensorSpec(name="y", dtype="float32", shape=("batch", 2)),),
        "strategy": "dynamo",
        "trained_format": "pt2",
        "device": "cpu",
        "providers": ("CPUExecutionProvider",),
        "export_batch_size": 2,
        "export_wall_s": 1.0,
        "tool_versions": {"torch": "2.13.0"},
    }
    return OnnxArtifact(**fields | changes)


def comparison(**changes: Any) -> OutputParity:
    fields: dict[str, Any] = {
        "output": "y",
        "sample": "example",
        "batch_size": 1,
        "dtype": "float32",
        "shape": (1, 2),
        "passed": True,
    }
    measures = {"mae": 1e-8, "max_abs": 2e-8, "max_rel": 1e-6, "cosine": 1.0} | {
        name: changes.pop(name) for name in Measures.model_fields if name in changes
    }
    return OutputParity(**fields | changes, measures=Measures(**measures))


def quantiles(p50_ms: float) -> tuple[float, ...]:
    return tuple(p50_ms * share for share in (0.9, 0.93, 0.95, 0.98, 1.0, 1.1, 1.2, 1.25, 1.5))


def batch(**changes: Any) -> BatchLatency:
    fields: dict[str, Any] = {
        "batch_size": 1,
        "reference": SideLatency(
            p50_ms=2.0, p95_ms=2.5, cpu_p50_ms=3.9, throughput_per_s=490.0, quantiles_ms=quantiles(2.0)
        ),
        "candidate": SideLatency(
            p50_ms=1.0, p95_ms=1.2, cpu_p50_ms=1.9, throughput_per_s=980.0, quantiles_ms=quantiles(1.0)
        ),
        "speedup": 2.0,
        "speedup_low": 1.9,
        "speedup_high": 2.1,
        "confidence": 0.95,
        "rounds": 40,
        "calls_per_round": 10,
        "measured_s": 4.0,
        "conclusive": True,
        "cpu_wait_share": 0.01,
    }
    return BatchLatency(**fields | changes)


def latency(**changes: Any) -> LatencyReport:
    fields: dict[str, Any] = {
        "sha256": SHA,
        "passed": True,
        "verdict": "passed",
        "goal_reached": True,
        "batches": (batch(),),
        "budget": {},
        "threads": 2,
        "device": "cpu",
        "providers_requested": ("CPUExecutionProvider",),
        "providers_active": ("CPUExecutionProvider",),
        "host": HOST,
    }
    return LatencyReport(**fields | changes)


def parity(**changes: Any) -> ParityReport:
    fields: dict[str, Any] = {
        "sha256": SHA,
        "passed": True,
        "comparisons": (comparison(), comparison(batch_size=3, mae=3e-8, cosine=0.5)),
        "batch_sizes": (1, 3),
        "unseen_batch_sizes": (1, 3),
        "limits": {},
    }
    return ParityReport(**fields | changes)


def benchmark(**changes: Any) -> BenchmarkReport:
    fields: dict[str, Any] = {"sha256": SHA, "passed": True, "parity": parity(), "latency": latency()}
    return BenchmarkReport(**fields | changes)


def check(**changes: Any) -> CheckReport:
    return CheckReport(**{"sha256": SHA, "passed": True, "findings": (), **changes})


def side(p50_ms: float) -> SideLatency:
    """Return times of one side around a median."""
    return batch().reference.replace(p50_ms=p50_ms, p95_ms=1.25 * p50_ms, quantiles_ms=quantiles(p50_ms))
