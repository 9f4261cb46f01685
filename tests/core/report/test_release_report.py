from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from onnx_release.errors import Refused
from onnx_release.limits import REPORT_FILE
from onnx_release.records import Divergence, ExportAttempt, Finding, ReleaseReport
from onnx_release.report.release_report import (
    build_report,
    metrics,
    read_report,
    reasons,
    summary_markdown,
    write_report,
)
from tests.core import records

FINDING = Finding(severity="error", code="domain", message="com.microsoft is not allowed")


def _report(**changes: Any) -> ReleaseReport:
    parts = {
        "artifact": records.artifact(),
        "check": records.check(),
        "benchmark": records.benchmark(),
        **changes,
    }
    return build_report("net", records.TRAINING, **parts)


def test_a_release_that_passed_everything_is_accepted() -> None:
    report = _report()
    assert (report.status, report.reasons) == ("accepted", ())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"artifact": None}, "nothing was exported"),
        ({"check": None}, "no check report"),
        ({"benchmark": None}, "no benchmark report"),
        ({"check": records.check(passed=False)}, "did not pass, and names no error"),
        ({"check": records.check(passed=False, findings=(FINDING,))}, "check domain: com.microsoft is not allowed"),
        ({"check": records.check(findings=(FINDING,))}, "check domain"),
        ({"check": records.check(sha256="b" * 64)}, "the check report is about bbb"),
        ({"benchmark": records.benchmark(sha256="b" * 64)}, "the benchmark report is about bbb"),
        ({"benchmark": records.benchmark(passed=False)}, "names no failure"),
        ({"benchmark": records.benchmark(latency=None)}, "without a latency"),
        (
            {"benchmark": records.benchmark(passed=False, parity=records.parity(passed=False, failures=("far",)))},
            "parity: far",
        ),
        (
            {"benchmark": records.benchmark(passed=False, latency=records.latency(passed=False, failures=("slow",)))},
            "latency: slow",
        ),
    ],
)
def test_anything_missing_failed_or_of_other_bytes_refuses(changes: dict[str, Any], words: str) -> None:
    report = _report(**changes)
    assert report.status == "refused"
    assert words in "; ".join(report.reasons)


def test_reasons_gather_from_every_step_and_leave_out_what_only_informs() -> None:
    warning = Finding(severity="warning", code="size", message="large")
    check = records.check(passed=False, findings=(warning, FINDING))
    benchmark = records.benchmark(passed=False, parity=records.parity(passed=False, failures=("a", "b")), latency=None)
    assert reasons(check, benchmark) == (
        "check domain: com.microsoft is not allowed",
        "parity: a",
        "parity: b",
    )
    assert reasons(None, None) == ()


def test_a_report_survives_the_file(tmp_path: Path) -> None:
    report = _report(check=records.check(passed=False, findings=(FINDING,)))
    path = write_report(tmp_path, report)
    assert path == tmp_path / REPORT_FILE
    assert [file.name for file in tmp_path.iterdir()] == [REPORT_FILE]
    assert read_report(path) == report


def test_equal_reports_are_equal_bytes_of_strict_json(tmp_path: Path) -> None:
    worst = records.comparison(mae=float("nan"), max_abs=float("inf"), passed=False)
    report = _report(benchmark=records.benchmark(parity=records.parity(comparisons=(worst,))))
    first = write_report(tmp_path, report).read_bytes()
    assert write_report(tmp_path, report).read_bytes() == first
    text = first.decode()
    assert "NaN" not in text
    assert "Infinity" not in text
    keys = list(json.loads(text))
    assert keys == sorted(keys)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"schema_version": 2}', '{"schema_version": 1}', '"\\ud800"'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / REPORT_FILE
    path.write_text(text)
    with pytest.raises(Refused):
        read_report(path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refused, match="cannot be read"):
        read_report(tmp_path / REPORT_FILE)


def test_metrics_are_the_worst_parity_and_every_latency() -> None:
    found = metrics(_report())
    assert found["onnx_release/parity/y/mae"] == 3e-8
    assert found["onnx_release/parity/y/cosine"] == 0.5
    assert found["onnx_release/latency/batch_1/speedup"] == 2.0
    assert found["onnx_release/latency/batch_1/reference_p95_ms"] == 2.5
    assert found["onnx_release/latency/batch_1/candidate_p50_ms"] == 1.0
    assert found["onnx_release/size_bytes"] == 1000.0


def test_metrics_have_names_that_mlflow_takes_and_no_value_that_it_does_not() -> None:
    odd = records.comparison(output="logits/ü:0", mae=None, max_abs=float("inf"), passed=False)
    found = metrics(_report(benchmark=records.benchmark(parity=records.parity(comparisons=(odd,)))))
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", name) for name in found)
    assert "onnx_release/parity/logits___0/max_rel" in found
    assert "onnx_release/parity/logits___0/mae" not in found
    assert "onnx_release/parity/logits___0/max_abs" not in found


def test_a_measure_missing_at_one_sample_has_no_worst_value() -> None:
    comparisons = (records.comparison(), records.comparison(batch_size=8, mae=None, passed=False))
    found = metrics(_report(benchmark=records.benchmark(parity=records.parity(comparisons=comparisons))))
    assert "onnx_release/parity/y/mae" not in found


def test_metrics_of_a_release_that_never_got_far_are_none() -> None:
    assert metrics(_report(artifact=None, check=None, benchmark=None)) == {}


def test_the_summary_shows_verdict_parity_and_speed() -> None:
    text = summary_markdown(_report())
    assert text.startswith("**net**: accepted\n")
    assert "| y | 3.00e-08 | 2.00e-08 | 1.00e-06 | 0.50000000 | - | - | - | yes |" in text
    assert "| 1 | 2 / 2.5 | 1 / 1.2 | 490 / 980 | 2.00 [1.90, 2.10] at 95% | 40 x 10 |" in text
    assert "verdict: passed, goal reached" in text
    assert records.SHA in text


def test_the_summary_of_a_refusal_says_why_and_marks_what_is_uncertain() -> None:
    comparisons = (records.comparison(passed=False), records.comparison(output="a|b"))
    latency = records.latency(
        verdict="not settled",
        goal_reached=False,
        batches=(records.batch(conclusive=False),),
        warnings=("host was busy",),
    )
    benchmark = records.benchmark(
        passed=False, parity=records.parity(comparisons=comparisons, failures=("y is off",)), latency=latency
    )
    text = summary_markdown(_report(benchmark=benchmark))
    assert "- parity: y is off" in text
    assert re.search(r"^\| y \|.*\| no \|$", text, re.M)
    assert "| a\\|b |" in text
    assert "at 95% (uncertain)" in text
    assert "- warning: host was busy" in text
    unmeasured = summary_markdown(_report(benchmark=records.benchmark(passed=False, latency=None)))
    assert "Latency was not measured" in unmeasured


def test_the_summary_says_what_was_tried_found_and_where_a_difference_begins() -> None:
    attempts = (
        ExportAttempt(strategy="dynamo", outcome="failed", reason="no | way"),
        ExportAttempt(strategy="dynamo-auto", outcome="taken"),
    )
    finding = Finding(severity="warning", code="no_example", message="the model has none", fix="log_model(...)")
    divergence = Divergence(
        sample="example", batch_size=4, node="node_linear", op_type="Gemm", value="linear", module="head", mae=1e-3
    )
    report = _report()
    assert report.artifact is not None
    assert report.benchmark is not None
    told = report.replace(
        artifact=report.artifact.replace(attempts=attempts, findings=(finding,)),
        benchmark=report.benchmark.replace(
            parity=report.benchmark.parity.replace(divergence=divergence, notes=("length 9 was left out",)),
        ),
    )
    text = summary_markdown(told)
    assert "- strategy dynamo: failed, no \\| way\n" in text
    assert "- warning no_example: the model has none; mended by `log_model(...)`\n" in text
    assert "- length 9 was left out\n" in text
    assert "The difference begins at node `node_linear` (Gemm) of module `head`" in text
    assert ReleaseReport.from_dict(told.to_dict()) == told
