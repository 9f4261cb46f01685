"""The comparison of two versions: the same rounds, separate measurements, and reports that cannot be trusted."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_release.records import (
    BenchmarkReport,
    ChampionComparison,
    ChampionLatency,
    ReleaseReport,
    TrainedModel,
)
from onnx_release.report.comparison import Comparison, compare, measured_speeds, reported_speeds
from onnx_release.report.release_report import build_report
from tests.core import records
from tests.core.records import side


def report(p50_ms: float, *, champion: float | None = None, inputs: Any = None, **batch: Any) -> ReleaseReport:
    """Return the report of a version that takes `p50_ms`; `champion` is the ratio to version 4 in the same rounds."""
    times = {"reference": side(8.0), "candidate": side(p50_ms), "conclusive": True}
    times |= {"speedup": 8 / p50_ms, "speedup_low": 7.6 / p50_ms, "speedup_high": 8.4 / p50_ms}
    if champion:
        beside = ChampionLatency(
            times=side(champion * p50_ms), speed=champion, speed_low=0.9 * champion, speed_high=1.1 * champion
        )
        times["champion"] = beside
    latency = records.latency(batches=(records.batch(batch_size=1, **times | batch),), budget={"batch_size": 1})
    artifact = records.artifact(**({"inputs": inputs} if inputs else {}))
    compared = ChampionComparison(
        sha256=artifact.sha256, size_bytes=artifact.size_bytes, alias="champion", version=4, margin=0.1,
        metric_loss_max=0.01, on_worse="warn", on_unsettled="warn",
    )  # fmt: skip
    benchmark = BenchmarkReport(
        sha256=artifact.sha256, passed=True, parity=records.parity(), latency=latency,
        champion=compared if champion else None,
    )  # fmt: skip
    trained = TrainedModel(training_run_id="0", model_uri="models:/m-1", model_name="net")
    return build_report(trained, artifact, None, benchmark)


def compared(before: ReleaseReport, after: ReleaseReport) -> Comparison:
    return compare(before, after, ("v4", "v5"), reported_speeds(before, after, 4))


def test_versions_of_the_same_rounds_are_compared_by_these() -> None:
    # Alone they seem equal, because the host was slower at one time.
    found = compared(report(4.0), report(4.0, champion=1.5))
    assert found.sentence == "v5 is faster than v4: 1.5 times as fast [1.35, 1.65] at batch 1."
    assert "in the same rounds" in found.trust
    assert (found.rows[0].before, found.rows[0].after) == ("6 ms", "4 ms")


@pytest.mark.parametrize(
    ("before_ms", "after_ms", "sentence"),
    [
        (4.0, 2.0, "v5 is faster than v4: 2 times as fast [1.86, 2.14] at batch 1."),
        (2.0, 4.0, "v5 is slower than v4: 0.5 times as fast [0.465, 0.536] at batch 1."),
        (4.0, 3.9, "No difference in speed is shown: v5 is 1.03 times as fast [0.954, 1.1] at batch 1."),
    ],
)
def test_separate_measurements_show_a_difference_beyond_both_intervals(
    before_ms: float, after_ms: float, sentence: str
) -> None:
    found = compared(report(before_ms), report(after_ms))
    assert found.sentence == sentence
    assert "at different times" in found.trust


@pytest.mark.parametrize(
    "batch", [{"conclusive": False}, {"speedup_low": 0.0}, {"speedup_high": 1e300}, {"speedup": float("nan")}]
)
def test_an_unsettled_or_impossible_measurement_shows_no_difference(batch: dict[str, Any]) -> None:
    found = compared(report(4.0), report(2.0, **batch))
    assert found.sentence == "A measurement is not settled: it shows no difference between v4 and v5."


def test_other_inputs_are_another_model() -> None:
    spec = records.artifact().inputs[0].replace(name="other")
    found = compared(report(4.0), report(2.0, inputs=(spec,)))
    assert (found.is_comparable, found.sentence) == (False, "v4 and v5 are not the same model.")
    assert not any("ms" in row.before for row in found.rows)


def test_a_measurement_of_both_precedes_the_reports() -> None:
    batch = records.batch(reference=side(6.0), candidate=side(4.0), speedup=1.5, speedup_low=1.4, speedup_high=1.6)
    speeds = measured_speeds([batch.replace(conclusive=True)], batch.batch_size)
    found = compare(report(4.0), report(4.0), ("old", "new"), speeds)
    assert found.sentence.startswith("new is faster than old: 1.5 times as fast [1.4, 1.6]")
    assert "in the same rounds" in found.trust
