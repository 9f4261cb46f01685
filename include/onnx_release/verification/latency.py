"""Latency of a released folder on this machine, beside the one that its release recorded. It decides nothing."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from onnx_release.latency.host import describe_host
from onnx_release.latency.host_lock import HostLock, LockOptions
from onnx_release.limits import MODEL_FILE
from onnx_release.parity.compare_model import run
from onnx_release.records import OnnxArtifact, ReleaseReport
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.generate import make_samples
from onnx_release.text import bounded
from onnx_release.trained.mlflow_model import read_example

_WARMUP_S, _MEASURE_S, _CALLS_MIN = 0.3, 2.0, 10


def latency_sentence(folder: Path, report: ReleaseReport, artifact: OnnxArtifact, lock: LockOptions) -> str:
    """Measure the model alone, with the recorded batch size and number of threads.

    Args:
        folder: The folder, whose files were compared with the record.
        report: The report of its release.
        artifact: The record of the artifact.
        lock: The lock of the host during the measurement.

    Returns:
        One sentence with both latencies; empty if the release recorded none.

    Raises:
        Transient: Another process has held the lock for too long.
        Refused: ONNX Runtime does not run the model.
    """
    recorded = report.benchmark.latency if report.benchmark else None
    if recorded is None or not recorded.batches:
        return ""
    wanted = recorded.budget.get("batch_size")
    batch = next((one for one in recorded.batches if one.batch_size == wanted), recorded.batches[0])
    sample = make_samples(artifact.inputs, read_example(folder), (batch.batch_size,))[0]
    options = OnnxRuntimeOptions(threads=recorded.threads, session_options=artifact.session_options)
    with OnnxRuntimeRunner(folder / MODEL_FILE, options) as runner, HostLock(lock).held():
        times_ms: list[float] = []
        warm_at = time.perf_counter() + _WARMUP_S
        while time.perf_counter() < warm_at:
            run(runner, sample)
        end = time.perf_counter() + _MEASURE_S
        while time.perf_counter() < end or len(times_ms) < _CALLS_MIN:
            began = time.perf_counter()
            runner.run(sample.inputs)
            times_ms.append(1000 * (time.perf_counter() - began))
    p50_ms, p95_ms = np.percentile(times_ms, (50, 95))
    here, there = describe_host().cpu_model, recorded.host.cpu_model
    return bounded(
        f"p50 {p50_ms:.3g} ms, p95 {p95_ms:.3g} ms at batch {batch.batch_size} with {recorded.threads} threads; the "
        f"release recorded p50 {batch.candidate.p50_ms:.3g} ms, p95 {batch.candidate.p95_ms:.3g} ms on "
        f"{'the same CPU model' if here == there else there}",
        400,
    )
