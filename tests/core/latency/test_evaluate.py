from __future__ import annotations

import hashlib
import os
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from onnx_release.latency.evaluate import evaluate_latency, require_valid_latency_options
from onnx_release.latency.host import CpuWait, cgroup_quota, describe_host, usable_cpus
from onnx_release.limits import LatencyBudget, MeasurePlan
from onnx_release.records import BatchLatency, LatencyReport
from tests.core import records
from tests.refusals import refused


def _evaluate(
    *batches: BatchLatency, active: tuple[str, ...] = ("CPUExecutionProvider",), **budget: Any
) -> LatencyReport:
    measured = LatencyReport(
        sha256=records.SHA,
        batches=batches,
        threads=2,
        device="cpu",
        providers_requested=("CPUExecutionProvider",),
        providers_active=active,
        host=records.HOST,
    )
    assert (measured.passed, measured.verdict) == (False, "refused"), "without a verdict the model is refused"
    return evaluate_latency(measured, LatencyBudget(**budget))


def _batch(low: float, speedup: float, high: float, **changes: Any) -> BatchLatency:
    return records.batch(speedup_low=low, speedup=speedup, speedup_high=high, **changes)


@pytest.mark.parametrize(
    ("low", "speedup", "high", "verdict", "goal_reached"),
    [
        (1.6, 1.7, 1.8, "passed", True),
        (1.5, 1.7, 1.8, "passed", True),
        (1.4, 1.6, 1.8, "passed", False),
        (1.0, 1.1, 1.2, "passed", False),
        (0.9, 1.1, 1.2, "not settled", False),
        (0.9, 0.95, 1.0, "not settled", False),
        (0.8, 0.9, 0.99, "refused", False),
    ],
)
def test_the_verdict_depends_on_the_interval_and_not_on_the_estimate(
    low: float, speedup: float, high: float, verdict: str, goal_reached: bool
) -> None:
    report = _evaluate(_batch(low, speedup, high, conclusive=verdict != "not settled"))
    assert (report.verdict, report.goal_reached) == (verdict, goal_reached)
    assert report.passed is (verdict == "passed")
    assert bool(report.failures) is not report.passed
    assert report.warnings == ()


@pytest.mark.parametrize(
    ("low", "high", "verdicts"), [(0.9, 1.2, ("not settled", "not settled")), (0.8, 0.9, ("refused", "warning"))]
)
def test_a_budget_that_only_warns_passes_with_warnings(low: float, high: float, verdicts: tuple[str, str]) -> None:
    strict = _evaluate(_batch(low, low, high, conclusive=False))
    lenient = _evaluate(_batch(low, low, high, conclusive=False), on_miss="warn")
    assert not strict.passed
    assert lenient.passed
    assert (strict.verdict, lenient.verdict) == verdicts
    assert not lenient.goal_reached
    assert lenient.warnings == strict.failures != ()


def test_a_wide_interval_above_the_limit_passes_with_a_warning() -> None:
    report = _evaluate(_batch(1.1, 2.0, 3.0, conclusive=False))
    assert report.passed
    assert report.verdict == "passed"
    assert any("batch 1: the speedup is uncertain" in warning for warning in report.warnings)


def test_too_few_rounds_are_not_settled_and_name_the_parameter() -> None:
    report = _evaluate(_batch(1.1, 1.2, 1.3, conclusive=False, rounds=9))
    assert report.verdict == "not settled"
    assert "fewer than 10 rounds" in report.failures[0]
    assert "raise measure_max_s" in report.failures[0]


def test_a_slow_model_passes_with_few_rounds_when_the_interval_is_above_the_limit() -> None:
    report = _evaluate(_batch(1.1, 1.2, 1.3, conclusive=False, rounds=12))
    assert report.passed
    assert any("is uncertain after 12 rounds" in warning for warning in report.warnings)


def test_a_wide_interval_below_the_limit_is_refused() -> None:
    assert _evaluate(_batch(0.2, 0.5, 0.9, conclusive=False)).verdict == "refused"


def test_a_p95_above_its_limit_is_refused_at_any_speedup() -> None:
    report = _evaluate(_batch(0.9, 1.1, 1.2, conclusive=False), p95_max_ms=1.0)
    assert report.verdict == "refused"
    assert "p95 at batch 1 is 1.2 ms, above 1 ms" in report.failures[0]
    assert _evaluate(records.batch(), p95_max_ms=1.2).passed


def test_other_batch_sizes_never_change_the_verdict() -> None:
    slow = _batch(0.4, 0.5, 0.6, batch_size=32)
    report = _evaluate(records.batch(), slow)
    assert (report.verdict, report.goal_reached, report.warnings) == ("passed", True, ())


def test_an_uncertain_speedup_at_another_batch_size_is_a_warning() -> None:
    report = _evaluate(records.batch(), _batch(0.4, 1.5, 2.6, batch_size=32, conclusive=False))
    assert report.passed
    assert "batch 32: the speedup is uncertain after 40 rounds in 4 s, 0.40 to 2.60" in report.warnings[0]


def test_a_busy_host_is_a_warning() -> None:
    report = _evaluate(records.batch(cpu_wait_share=0.4))
    assert "waited 40% of its time" in report.warnings[0]
    assert _evaluate(records.batch(cpu_wait_share=None)).warnings == ()


@pytest.mark.parametrize("on_miss", ["refuse", "warn"])
def test_a_missing_measurement_is_refused_under_either_policy(on_miss: str) -> None:
    report = _evaluate(records.batch(batch_size=8), on_miss=on_miss)
    assert (report.verdict, report.passed) == ("refused", False)
    assert "serving batch size 1 was not measured" in report.failures[0]


@pytest.mark.parametrize("on_miss", ["refuse", "warn"])
def test_another_provider_than_requested_is_refused_under_either_policy(on_miss: str) -> None:
    report = _evaluate(records.batch(), active=("AzureExecutionProvider",), on_miss=on_miss)
    assert not report.passed
    assert "ran on AzureExecutionProvider, not on CPUExecutionProvider" in report.failures[0]


@pytest.mark.parametrize(
    ("budget", "plan", "invalid"),
    [
        ({"batch_size": 0}, {}, "batch_size is 0"),
        ({"speedup_min": float("nan")}, {}, "speedup_min is nan"),
        ({"speedup_goal": 0.0}, {}, "speedup_goal is 0.0"),
        ({"p95_max_ms": -1.0}, {}, "p95_max_ms is -1.0"),
        ({}, {"threads": 0}, "threads is 0"),
        ({}, {"warmup_rounds": -1}, "warmup_rounds is -1"),
        ({}, {"rounds_min": 9}, "rounds_min is 9"),
        ({}, {"measure_min_s": float("nan")}, "measure_min_s is nan"),
        ({}, {"measure_max_s": float("inf")}, "measure_max_s is inf"),
        ({}, {"measure_max_s": 0.0}, "measure_max_s is 0.0"),
        ({}, {"confidence": 1.0}, "confidence is 1.0"),
        ({}, {"interval_width_max": 0.0}, "interval_width_max is 0.0"),
    ],
)
def test_invalid_numbers_are_refused(budget: dict[str, Any], plan: dict[str, Any], invalid: str) -> None:
    with refused("invalid_latency_options", invalid):
        require_valid_latency_options(LatencyBudget(**budget), MeasurePlan(**plan))


def test_the_defaults_are_valid() -> None:
    require_valid_latency_options(LatencyBudget(), MeasurePlan())


def test_the_host_is_described() -> None:
    host = describe_host()
    assert 1 <= host.usable_cpus <= host.logical_cpus
    assert host.cpu_model
    assert usable_cpus() == host.usable_cpus


@pytest.mark.parametrize(
    ("files", "cpus"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({}, None),
        ({"cpu.max": "nonsense"}, None),
    ],
)
def test_a_containers_quota_limits_the_usable_cpus(tmp_path: Path, files: dict[str, str], cpus: float | None) -> None:
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    assert cgroup_quota(tmp_path) == cpus


def test_the_wait_for_a_cpu_is_a_share() -> None:
    wait = CpuWait()
    sum(range(10**6))
    share = wait.share()
    assert share is None or 0 <= share <= 1


@pytest.mark.skipif(not Path("/proc/self/schedstat").exists(), reason="the kernel does not count waiting")
def test_threads_that_share_one_cpu_wait_for_it() -> None:
    # hashlib releases the interpreter's lock, so both threads are ready to run on one CPU.
    affinity = os.sched_getaffinity(0)
    block = bytes(1 << 22)

    def work() -> None:
        os.sched_setaffinity(0, {min(affinity)})
        for _ in range(20):
            hashlib.sha256(block)
        done.wait()

    done = threading.Barrier(3)
    threads = [threading.Thread(target=work) for _ in range(2)]
    wait = CpuWait()
    for thread in threads:
        thread.start()
    # A thread's count ends with the thread. So read the counts while both threads wait at the barrier.
    while done.n_waiting < 2:
        time.sleep(0.01)
    share = wait.share()
    done.wait()
    for thread in threads:
        thread.join()
    assert share is not None
    assert share > 0.2
