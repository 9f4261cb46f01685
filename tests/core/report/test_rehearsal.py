"""Report of a rehearsal: a sentence for each runtime, and foreign text that stays text."""

from __future__ import annotations

from typing import Any

import pytest

from onnx_release.records import Divergence
from onnx_release.records.rehearsal import RehearsalReport, RehearsedModel, RehearsedRuntime, RuntimeLatency
from onnx_release.report.rehearsal import is_ready, rehearsal_html, rehearsal_markdown, runtime_sentence

NODE = Divergence(sample="example", batch_size=1, node="Gelu_7", op_type="Gelu", max_abs=3e-4, compared=9)


def _latency(ratio: float, *, settled: bool = True) -> RuntimeLatency:
    return RuntimeLatency(
        batch_size=1, present_p50_ms=1.0, p50_ms=ratio, ratio=ratio, ratio_low=ratio - 0.1, ratio_high=ratio + 0.1,
        confidence=0.95, rounds=40, settled=settled,
    )  # fmt: skip


def _report(*results: dict[str, Any], name: str = "net") -> RehearsalReport:
    models = tuple(
        RehearsedModel(
            name=f"{name}{number}", present="1.32.0", runtimes=(RehearsedRuntime(runtime="1.17.1", **fields),)
        )
        for number, fields in enumerate(results)
    )
    return RehearsalReport(created="2026-01-01", present="1.32.0", runtimes=("1.17.1",), models=models)


EQUAL = {"verdict": "bit-equal", "difference": 0.0}
CHANGES = {"verdict": "changes", "difference": 3e-4, "node": NODE}


@pytest.mark.parametrize(
    ("results", "sentence"),
    [
        (
            [{"verdict": "does not load"}] * 2 + [CHANGES] + [{**EQUAL, "latency": _latency(0.93)}] * 11,
            "2 of 14 models do not load; 1 changes by 0.0003 in node Gelu_7; the others are bit-equal; "
            "median latency ratio 0.93.",
        ),
        ([EQUAL], "1 of 1 model is bit-equal."),
        ([CHANGES, CHANGES, {"verdict": "does not run"}], "1 does not run; 2 change by up to 0.0003."),
        (
            [{"verdict": "within limits", "difference": 2e-7}, {"verdict": "not rehearsed"}],
            "1 differs by at most 2e-07, within its limits; 1 was not rehearsed.",
        ),
        ([{**EQUAL, "latency": _latency(2, settled=False)}], "1 of 1 model is bit-equal; no latency ratio is settled."),
        (
            [{**EQUAL, "latency": _latency(2, settled=False)}, {**EQUAL, "latency": _latency(0.5)}],
            "2 of 2 models are bit-equal; median latency ratio 0.50 (1 of 2 are settled).",
        ),
    ],
)
def test_the_sentence_of_a_runtime(results: list[dict[str, Any]], sentence: str) -> None:
    assert runtime_sentence(_report(*results), "1.17.1") == f"ONNX Runtime 1.17.1: {sentence}"


def test_only_models_that_run_within_their_limits_are_ready() -> None:
    assert is_ready(_report(EQUAL, {"verdict": "within limits", "reference": "passed"}))
    for fields in (CHANGES, {"verdict": "not rehearsed"}, {"verdict": "bit-equal", "reference": "failed"}):
        assert not is_ready(_report(EQUAL, fields))
    lost = RehearsedModel(name="lost", present="1.32.0", problem="gone")
    assert not is_ready(_report().replace(models=(lost,)))
    assert "lost: gone" in rehearsal_markdown(_report().replace(models=(lost,)))


def test_foreign_text_stays_text() -> None:
    name = '<script>alert(1)</script>|[x](http://x)"'
    report = _report({"verdict": "does not load", "problem": name}, name=name)
    page, summary = rehearsal_html(report), rehearsal_markdown(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "<script" not in summary
    assert "http://x" not in summary
