from __future__ import annotations

from typing import Any

import pytest

from onnx_release.latency.evaluate import evaluate_latency, require_valid_latency_options
from onnx_release.limits import LatencyBudget, MeasurePlan
from onnx_release.records import BatchLatency, LatencyReport
from tests.core import records
from tests.refusals import refused


def _evaluate(
    *batches: BatchLatency,
    active: tuple[str, ...] = ("CPUExecutionProvider",),
    requested: tuple[str, ...] = ("CPUExecutionProvider",),
    **budget: Any,
) -> LatencyReport:
    measured = LatencyReport(
        sha256=records.SHA,
        batches=batches,
        threads=2,
        device="cpu",
        providers_requested=requested,
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


NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("name", "valid", "invalid"),
    [
        ("batch_size", [1, 2], [0, -1]),
        ("speedup_min", [1e-9, 3.0], [0.0, -1.0, INF, NAN]),
        ("speedup_goal", [1e-9, 3.0], [0.0, -1.0, INF, NAN]),
        ("p95_max_ms", [None, 1e-9, 3.0], [0.0, -1.0, NAN]),
        ("threads", [None, 1, 2], [0, -1]),
        ("warmup_rounds", [0, 1], [-1, -2]),
        ("rounds_min", [10, 11], [9, 8]),
        ("measure_min_s", [0.0, 0.1], [-0.1, INF, NAN]),
        ("measure_max_s", [1e-9, 3.0], [0.0, -1.0, INF, NAN]),
        ("reported_max_s", [1e-9, 3.0], [0.0, -1.0, INF, NAN]),
        ("confidence", [0.5, 0.9, 0.99], [0.49, 0.991, 1.0, NAN]),
        ("interval_width_max", [1e-9, 3.0], [0.0, -1.0, NAN]),
    ],
)
def test_numbers_within_their_bounds_are_accepted_and_others_refused(
    name: str, valid: list[Any], invalid: list[Any]
) -> None:
    def require(value: Any) -> None:
        budget = {name: value} if name in LatencyBudget.model_fields else {}
        require_valid_latency_options(LatencyBudget(**budget), MeasurePlan(**{} if budget else {name: value}))

    for value in valid:
        require(value)
    for value in invalid:
        with refused("invalid_latency_options", f"{name} is {value}, not ") as caught:
            require(value)
        assert ";" not in caught.value.problem


def test_every_invalid_number_is_named() -> None:
    with refused("invalid_latency_options", "batch_size is 0", "; rounds_min is 9, not 10 or more"):
        require_valid_latency_options(LatencyBudget(batch_size=0), MeasurePlan(rounds_min=9))


def test_the_defaults_are_valid() -> None:
    require_valid_latency_options(LatencyBudget(), MeasurePlan())


@pytest.mark.parametrize("on_miss", ["warn", "ask"])
def test_a_budget_that_does_not_refuse_makes_every_miss_a_warning(on_miss: str) -> None:
    report = _evaluate(_batch(0.8, 0.9, 0.95), on_miss=on_miss, p95_max_ms=1.0)
    assert (report.passed, report.verdict, report.failures) == (True, "warning", ())
    assert report.warnings == (
        "speedup at batch 1 is 0.90 [0.80, 0.95], below the required 1",
        "p95 at batch 1 is 1.2 ms, above 1 ms",
    )


def test_a_missed_goal_of_a_model_that_does_not_pass_is_not_reached() -> None:
    for report in (_evaluate(_batch(1.6, 1.7, 1.8, rounds=9)), _evaluate(_batch(1.6, 1.7, 1.8), p95_max_ms=1.0)):
        assert not report.passed
        assert not report.goal_reached


def test_a_refused_model_has_one_failure_and_no_remark_about_the_same_interval() -> None:
    report = _evaluate(_batch(0.2, 0.5, 0.9, conclusive=False), _batch(0.4, 1.5, 2.6, batch_size=32, conclusive=False))
    assert report.failures == ("speedup at batch 1 is 0.50 [0.20, 0.90], below the required 1",)
    assert [warning.partition(":")[0] for warning in report.warnings] == ["batch 32"]


@pytest.mark.parametrize(
    ("rounds", "reason"),
    [
        (9, "fewer than 10 rounds were measured (after 9 rounds in 4 s); raise measure_max_s"),
        (10, "the interval still contains it after 10 rounds in 4 s; lower speedup_min, or measure longer on a "),
        (11, "the interval still contains it after 11 rounds in 4 s; lower speedup_min, or measure longer on a "),
    ],
)
def test_a_speedup_that_is_not_settled_has_its_reason(rounds: int, reason: str) -> None:
    [failure] = _evaluate(_batch(0.9, 1.1, 1.2, rounds=rounds)).failures
    assert failure.startswith(f"speedup at batch 1 is 0.90 to 1.20, not settled against the required 1: {reason}")


def test_ten_rounds_settle_a_speedup() -> None:
    assert _evaluate(_batch(1.1, 1.2, 1.3, rounds=10)).verdict == "passed"


def test_an_interval_without_a_value_is_refused() -> None:
    assert _evaluate(_batch(NAN, NAN, NAN)).verdict == "refused"


@pytest.mark.parametrize(("p95_max_ms", "passes"), [(1.19, False), (1.2, True), (1.3, True)])
def test_a_p95_may_reach_its_limit(p95_max_ms: float, passes: bool) -> None:
    assert _evaluate(records.batch(), p95_max_ms=p95_max_ms).passed is passes


def test_the_serving_batch_size_is_the_budgets() -> None:
    slow = [_batch(0.4, 0.5, 0.6, batch_size=size) for size in (1, 32)]
    assert _evaluate(*slow, _batch(1.6, 1.7, 1.8, batch_size=8), batch_size=8).verdict == "passed"


@pytest.mark.parametrize(
    ("active", "failure"),
    [
        (("TensorrtExecutionProvider", "CPUExecutionProvider"), "ran on TensorrtExecutionProvider, CPUExecution"),
        ((), "ran on nothing, not on CPUExecutionProvider"),
    ],
)
def test_only_the_first_provider_counts(active: tuple[str, ...], failure: str) -> None:
    assert _evaluate(records.batch(), active=("CPUExecutionProvider", "AzureExecutionProvider")).passed
    both = ("CUDAExecutionProvider", "CPUExecutionProvider")
    assert _evaluate(records.batch(), active=both, requested=both).passed
    assert not _evaluate(records.batch(), active=both[1:], requested=both).passed
    report = _evaluate(records.batch(), active=active, p95_max_ms=1.0)
    assert failure in report.failures[0]
    assert "p95 at batch 1" in report.failures[1]


@pytest.mark.parametrize(("share", "remarks"), [(None, 0), (0.0, 0), (0.05, 0), (0.06, 1)])
def test_a_share_of_waiting_above_the_limit_is_a_remark(share: float | None, remarks: int) -> None:
    assert len(_evaluate(records.batch(cpu_wait_share=share)).warnings) == remarks
