"""The decision about the bytes: every reason against them, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_release.records import ChampionComparison, Finding, RuntimeReport
from onnx_release.report.acceptance import acceptance, report_failures
from tests.core import records

ARTIFACT, CHECK = records.artifact(), records.check()
FINDINGS = tuple(
    Finding(severity=severity, code=severity, message="a finding")  # type: ignore[arg-type]
    for severity in ("warning", "error", "info")
)


def _champion(**changes: Any) -> ChampionComparison:
    fields = {"sha256": records.SHA, "size_bytes": 1000, "alias": "champion", "version": 1, "passed": True}
    rules = {"margin": 0.1, "metric_loss_max": 0.01, "on_worse": "refuse", "on_unsettled": "warn"}
    return ChampionComparison(**fields | rules | changes)


def _runtime(**changes: Any) -> RuntimeReport:
    return RuntimeReport(**{"sha256": records.SHA, "version": "1.20.1", "passed": True} | changes)


def test_bytes_with_every_report_are_accepted() -> None:
    benchmark = records.benchmark(runtimes=(_runtime(loads=True),))
    assert acceptance(ARTIFACT, CHECK, benchmark) == ()


def test_without_any_report_each_is_a_reason() -> None:
    missing = ("there is no check report", "there is no benchmark report")
    assert acceptance(None, None, None) == ("nothing was exported", *missing)
    assert acceptance(None, CHECK, records.benchmark()) == ("nothing was exported",)
    assert acceptance(ARTIFACT, None, None) == missing


def test_a_latency_is_missing_only_if_parity_passed() -> None:
    failed = records.parity(passed=False, failures=("far",))
    untimed = records.benchmark(passed=False, parity=failed, latency=None)
    assert acceptance(ARTIFACT, CHECK, untimed) == ("parity: far",)
    assert acceptance(ARTIFACT, CHECK, records.benchmark(latency=None)) == ("there is no latency report",)
    other = records.benchmark(passed=False, parity=failed, latency=records.latency(sha256="b" * 64))
    assert acceptance(ARTIFACT, CHECK, other)[1:] == (
        f"the latency report belongs to {'b' * 64}, not to {records.SHA}",
    )


@pytest.mark.parametrize("sha256", ["0" * 64, "b" * 64])
def test_each_report_of_other_bytes_is_a_reason(sha256: str) -> None:
    benchmark = records.benchmark(
        sha256=sha256,
        parity=records.parity(sha256=sha256),
        latency=records.latency(sha256=sha256),
        champion=_champion(sha256=sha256),
        runtimes=(_runtime(sha256=sha256),),
    )
    reasons = acceptance(ARTIFACT, records.check(sha256=sha256), benchmark)
    names = ("check", "benchmark", "parity", "latency", "ONNX Runtime 1.20.1", "champion")
    assert reasons == tuple(f"the {name} report belongs to {sha256}, not to {records.SHA}" for name in names)


def test_every_failure_is_a_reason_once() -> None:
    benchmark = records.benchmark(
        passed=False,
        parity=records.parity(passed=False, failures=("far", "farther")),
        latency=records.latency(passed=False),
        champion=_champion(passed=False, failures=("larger",)),
        runtimes=(_runtime(passed=False, failures=("does not load",)),),
    )
    check = records.check(passed=False, findings=FINDINGS)
    expected = (
        "check error: a finding",
        "parity: far",
        "parity: farther",
        "ONNX Runtime 1.20.1: does not load",
        "the latency did not pass and names no failure",
        "champion: larger",
    )
    assert report_failures(check, benchmark) == expected
    assert acceptance(ARTIFACT, check, benchmark) == expected
    assert report_failures(records.check(passed=False), None) == ("the check did not pass and names no failure",)


def test_a_report_without_failures_that_did_not_pass_is_a_reason() -> None:
    unnamed = ("the benchmark did not pass and names no failure",)
    assert acceptance(ARTIFACT, CHECK, records.benchmark(passed=False)) == unnamed


def test_a_refused_gate_is_a_reason_and_a_warning_is_none() -> None:
    def with_interval(low: float, high: float, on_miss: str) -> Any:
        batch = records.batch(speedup_low=low, speedup=low, speedup_high=high)
        budget = {"batch_size": 1, "speedup_min": 1.0, "on_miss": on_miss}
        return records.benchmark(latency=records.latency(batches=(batch,), budget=budget))

    [reason] = acceptance(ARTIFACT, CHECK, with_interval(0.5, 0.6, "refuse"))
    assert "speedup" in reason
    for low, high, on_miss in ((0.5, 0.6, "warn"), (0.9, 1.1, "warn"), (1.1, 1.2, "refuse")):
        assert acceptance(ARTIFACT, CHECK, with_interval(low, high, on_miss)) == ()
