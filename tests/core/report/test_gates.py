"""Gates of a release, and its result in one sentence."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_release.errors import Refused
from onnx_release.latency.evaluate import evaluate_latency
from onnx_release.limits import LatencyBudget, ParityLimits
from onnx_release.parity.compare_outputs import compare_outputs, evaluate_parity
from onnx_release.records import Gate, ReleaseReport
from onnx_release.report.release_report import build_report
from onnx_release.samples.sample import Sample
from tests.core import records
from tests.core.judging import values


def compared(difference: float, **limits: Any) -> ReleaseReport:
    """Return the report of an output that differs by a constant, without a measured latency."""
    sample, reference = Sample(name="example", inputs={"x": values(3, 4)}, batch_size=3), {"y": values(3, 2)}
    results = compare_outputs(reference, {"y": reference["y"] + difference}, sample, ParityLimits(**limits))
    parity = evaluate_parity(records.artifact(), results, ParityLimits(**limits))
    latency = records.latency(budget={"batch_size": 1}) if parity.passed else None
    benchmark = records.benchmark(parity=parity, latency=latency, passed=parity.passed)
    return build_report(records.TRAINING, records.artifact(), records.check(), benchmark)


def measured(budget: LatencyBudget, **batch: Any) -> ReleaseReport:
    """Return the report of a model with this latency."""
    latency = evaluate_latency(records.latency(batches=(records.batch(**batch),)), budget)
    benchmark = records.benchmark(latency=latency, passed=latency.passed)
    return build_report(records.TRAINING, records.artifact(), records.check(), benchmark)


def gate(report: ReleaseReport, name: str) -> Gate:
    return next(gate for gate in report.gates if gate.name == name)


def test_a_release_has_a_gate_for_each_limit_and_its_figures_in_the_headline() -> None:
    report = compared(1e-7)
    assert {gate.name for gate in report.gates} == {
        *("check", "mae", "sqnr_db", "unseen_batch_sizes", "parity", "invented_inputs", "speedup")
    }
    assert {gate.verdict for gate in report.gates} == {"passed"}
    assert gate(report, "mae").limit == pytest.approx(1e-5, rel=1.0)
    assert report.headline == "Released: fp32, 1 kB, MAE 1e-07, 2.00x [1.90, 2.10] at batch 1."
    assert report.next_step == ""


@pytest.mark.parametrize(
    ("difference", "limits", "name"),
    [
        (1e-3, {}, "mae"),
        (1e-3, {"mae_max": None}, "sqnr_db"),
        (1e-6, {"max_abs": 1e-7}, "max_abs"),
        (1e-6, {"rtol": 1e-9}, "tolerance"),
        (3.0, {"mae_max": None, "sqnr_min_db": None, "cosine_min": 0.9}, "cosine"),
    ],
)
def test_a_missed_limit_is_a_refused_gate_and_the_headline(
    difference: float, limits: dict[str, Any], name: str
) -> None:
    report = compared(difference, **limits)
    assert report.status == "refused"
    refused = gate(report, name)
    assert refused.verdict == "refused"
    assert refused.measured is not None
    assert refused.limit is not None
    assert (refused.measured > refused.limit) is (refused.sense == "at most")
    assert report.headline.startswith("Refused: the ")
    assert report.headline.count("\n") == 0
    assert report.next_step
    assert gate(report, "speedup").verdict == "not measured"


def test_an_output_of_another_shape_is_a_gate_without_a_number() -> None:
    sample = Sample(name="example", inputs={"x": values(3, 4)}, batch_size=3)
    results = compare_outputs({"y": values(3, 2)}, {"y": values(3, 1)}, sample, ParityLimits())
    parity = evaluate_parity(records.artifact(), results, ParityLimits())
    benchmark = records.benchmark(parity=parity, latency=None, passed=False)
    report = build_report(records.TRAINING, records.artifact(), records.check(), benchmark)
    assert gate(report, "comparable").verdict == "refused"
    assert "shape is [3, 1], PyTorch's is [3, 2]" in report.headline


@pytest.mark.parametrize(
    ("budget", "batch", "verdict", "headline"),
    [
        (LatencyBudget(), {}, "passed", "Released: fp32, 1 kB, MAE 3e-08, 2.00x [1.90, 2.10] at batch 1."),
        (LatencyBudget(speedup_min=3.0), {}, "refused", "Refused: the speedup at batch 1 is 2.00x [1.90, 2.10]"),
        (
            LatencyBudget(speedup_min=2.0),
            {},
            "not settled",
            "Refused: the speed at batch 1 is not settled, 1.9x to 2.1x contains the limit 2x.",
        ),
        (
            LatencyBudget(speedup_min=2.0, on_miss="warn"),
            {},
            "not settled",
            "Released with a warning: the speed at batch 1 is not settled, 1.9x to 2.1x",
        ),
        (LatencyBudget(speedup_min=3.0, on_miss="warn"), {}, "warning", "Released with a warning: the speedup at"),
        (
            LatencyBudget(),
            {"cpu_wait_share": 0.5},
            "warning",
            "Released with a warning: the speed is uncertain, at least",
        ),
        (LatencyBudget(batch_size=4), {}, "not measured", "Refused: the serving batch size 4 was not measured"),
    ],
)
def test_the_speed_of_each_verdict(budget: LatencyBudget, batch: dict[str, Any], verdict: str, headline: str) -> None:
    report = measured(budget, **batch)
    assert gate(report, "speedup").verdict == verdict
    assert report.headline.startswith(headline)
    assert report.headline.endswith(".")


def test_a_95th_percentile_above_its_limit_is_its_own_gate() -> None:
    report = measured(LatencyBudget(p95_max_ms=1.0))
    assert (gate(report, "p95_ms").verdict, gate(report, "speedup").verdict) == ("refused", "passed")
    assert report.headline == "Refused: the 95th percentile at batch 1 is 1.2 ms, above the limit 1 ms."


def test_a_refusal_before_the_measurements_has_its_reason_and_advice_without_markdown() -> None:
    refusal = Refused("The weights", "hold NaN\n(n.0.weight)", "Call `model.eval()`, then log it again.", code="nan")
    report = build_report(records.TRAINING, None, None, None, refusal)
    assert report.gates == ()
    assert report.headline == "Refused: the weights hold NaN (n.0.weight)."
    assert report.next_step == "Call 'model.eval()', then log it again."
    assert (report.status, report.reason_code) == ("refused", "nan")
