from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from onnx_release.limits import REPORT_FILE
from onnx_release.records import Divergence, ExportAttempt, Finding, ReleaseReport
from onnx_release.records.schema import SCHEMA_FILE, schema_text
from onnx_release.report.acceptance import acceptance, report_failures
from onnx_release.report.markdown import summary_markdown
from onnx_release.report.metrics import release_metrics, release_verdicts
from onnx_release.report.numbers import size_text, three_digits
from onnx_release.report.release_report import build_report, read_report, write_report
from tests.core import records
from tests.refusals import refused

FINDING = Finding(severity="error", code="domain", message="com.microsoft is not allowed")


def _report(**changes: Any) -> ReleaseReport:
    parts = {
        "artifact": records.artifact(),
        "check": records.check(),
        "benchmark": records.benchmark(),
        **changes,
    }
    return build_report(records.TRAINING, **parts)


def test_a_release_that_passed_every_step_is_accepted() -> None:
    report = _report()
    assert (report.status, report.reasons) == ("accepted", ())


@pytest.mark.parametrize(
    ("changes", "part"),
    [
        ({"artifact": None}, "nothing was exported"),
        ({"check": None}, "no check report"),
        ({"benchmark": None}, "no benchmark report"),
        ({"check": records.check(passed=False)}, "the check did not pass and names no failure"),
        ({"check": records.check(passed=False, findings=(FINDING,))}, "check domain: com.microsoft is not allowed"),
        ({"check": records.check(findings=(FINDING,))}, "check domain"),
        ({"check": records.check(sha256="b" * 64)}, "the check report belongs to bbb"),
        ({"benchmark": records.benchmark(sha256="b" * 64)}, "the benchmark report belongs to bbb"),
        ({"benchmark": records.benchmark(passed=False)}, "the benchmark did not pass and names no failure"),
        ({"benchmark": records.benchmark(latency=None)}, "there is no latency report"),
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
def test_a_missing_or_failed_report_or_one_of_other_bytes_refuses(changes: dict[str, Any], part: str) -> None:
    report = _report(**changes)
    assert report.status == "refused"
    assert part in "; ".join(report.reasons)


def test_failures_of_every_step_are_listed_without_warnings() -> None:
    warning = Finding(severity="warning", code="size", message="large")
    check = records.check(passed=False, findings=(warning, FINDING))
    benchmark = records.benchmark(passed=False, parity=records.parity(passed=False, failures=("a", "b")), latency=None)
    assert report_failures(check, benchmark) == (
        "check domain: com.microsoft is not allowed",
        "parity: a",
        "parity: b",
    )
    assert report_failures(None, None) == ()


def test_a_written_report_is_read_back_equal(tmp_path: Path) -> None:
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
    keys = list(json.loads(first, parse_constant=pytest.fail))
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", "unreadable_report"),
        ("{", "unreadable_report"),
        ("[]", "other_schema_version"),
        ("{}", "other_schema_version"),
        ('{"schema_version": 2}', "other_schema_version"),
        ('{"schema_version": 1}', "wrong_field"),
        ('"\\ud800"', "other_schema_version"),
    ],
)
def test_another_file_than_a_report_is_refused(tmp_path: Path, text: str, code: str) -> None:
    path = tmp_path / REPORT_FILE
    path.write_text(text)
    with refused(code):
        read_report(path)


def test_a_missing_report_is_refused(tmp_path: Path) -> None:
    with refused("unreadable_report"):
        read_report(tmp_path / REPORT_FILE)


def test_a_report_of_another_schema_version_is_refused_with_both_versions(tmp_path: Path) -> None:
    path = write_report(tmp_path, _report())
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": 7}))
    with refused("other_schema_version", "version 7", "version 1"):
        read_report(path)


def test_nan_and_infinity_become_null(tmp_path: Path) -> None:
    worst = records.comparison(mae=float("nan"), max_abs=float("inf"), sqnr_db=float("-inf"), passed=False)
    report = _report(benchmark=records.benchmark(parity=records.parity(comparisons=(worst,))))
    data = json.loads(write_report(tmp_path, report).read_text())
    measures = data["benchmark"]["parity"]["comparisons"][0]["measures"]
    assert (measures["mae"], measures["max_abs"], measures["sqnr_db"]) == (None, None, None)
    assert read_report(tmp_path / REPORT_FILE).benchmark is not None


def test_the_published_schema_is_that_of_the_records() -> None:
    path = Path(__file__).parents[3] / SCHEMA_FILE
    assert path.read_text() == schema_text(), "run `python -m onnx_release.records.schema`"


def test_the_schema_names_its_version_and_allows_no_other_field() -> None:
    schema = json.loads(schema_text())
    assert schema["properties"]["schema_version"]["const"] == 1
    assert schema["additionalProperties"] is False


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.012345, "0.0123"), (2.0, "2"), (12.345, "12.3"), (1234.5, "1230"), (123456.0, "123000"), (None, "-")],
)
def test_numbers_for_people_have_three_digits(value: float | None, text: str) -> None:
    assert three_digits(value) == text


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1000, "1 kB"), (112_700_000, "113 MB"), (2_156_000_000, "2.16 GB")],
)
def test_sizes_for_people_have_a_unit(size_bytes: int | None, text: str) -> None:
    assert size_text(size_bytes) == text


@pytest.mark.parametrize("part", ["parity", "latency"])
def test_a_part_of_other_bytes_or_without_a_pass_is_not_accepted(part: str) -> None:
    make = getattr(records, part)
    other = records.benchmark(**{part: make(sha256="b" * 64)})
    failed = records.benchmark(**{part: make(passed=False)})
    artifact, check = records.artifact(), records.check()
    assert acceptance(artifact, check, records.benchmark()) == ()
    assert acceptance(artifact, check, other) == (f"the {part} report belongs to {'b' * 64}, not to {records.SHA}",)
    assert acceptance(artifact, check, failed) == (f"the {part} did not pass and names no failure",)


def test_metrics_have_the_worst_parity_and_every_latency() -> None:
    found = release_metrics(_report())
    assert found["onnx_release/parity/y/mae"] == 3e-8
    assert found["onnx_release/parity/y/cosine"] == 0.5
    assert found["onnx_release/latency/batch_1/speedup"] == 2.0
    assert found["onnx_release/latency/batch_1/reference_p95_ms"] == 2.5
    assert found["onnx_release/latency/batch_1/candidate_p50_ms"] == 1.0
    assert found["onnx_release/size_bytes"] == 1000.0


@pytest.mark.parametrize(
    ("batch", "verdict", "settled"),
    [
        ({}, "passed", True),
        ({}, "refused", True),
        ({}, "warning", True),
        ({}, "not settled", False),
        ({"conclusive": False}, "passed", False),
        ({"cpu_wait_share": 0.6}, "passed", False),
    ],
)
def test_a_speedup_that_is_not_settled_has_only_its_lower_bound(
    batch: dict[str, Any], verdict: str, settled: bool
) -> None:
    latency = records.latency(verdict=verdict, batches=(records.batch(**batch),), budget={"batch_size": 1})
    report = _report(benchmark=records.benchmark(latency=latency))
    root = "onnx_release/latency"
    speedups = {name: value for name, value in release_metrics(report).items() if "speedup" in name}
    low = {f"{root}/batch_1/speedup_low": 1.9}
    plain = {f"{root}/batch_1/speedup": 2.0, f"{root}/batch_1/speedup_high": 2.1}
    assert speedups == (low | plain if settled else low)
    of_batch = "settled" if settled else "not settled"
    assert release_verdicts(report) == {f"{root}/verdict": verdict, f"{root}/batch_1/verdict": of_batch}


def test_a_batch_size_that_is_only_reported_is_settled_by_its_own_interval() -> None:
    batches = (records.batch(), records.batch(batch_size=8))
    latency = records.latency(verdict="not settled", batches=batches, budget={"batch_size": 1})
    found = release_metrics(_report(benchmark=records.benchmark(latency=latency)))
    assert "onnx_release/latency/batch_8/speedup" in found
    assert "onnx_release/latency/batch_1/speedup" not in found


def test_a_release_without_a_measurement_has_no_verdict() -> None:
    assert release_verdicts(_report(benchmark=records.benchmark(passed=False, latency=None))) == {}


def test_metrics_have_names_and_values_that_mlflow_accepts() -> None:
    odd = records.comparison(output="logits/ü:0", mae=None, max_abs=float("inf"), passed=False)
    dots = records.comparison(output="..")
    found = release_metrics(_report(benchmark=records.benchmark(parity=records.parity(comparisons=(odd, dots)))))
    assert "onnx_release/parity/_../max_rel" in found
    assert all(re.fullmatch(r"[A-Za-z0-9_./-]+", name) for name in found)
    assert "onnx_release/parity/logits___0/max_rel" in found
    assert "onnx_release/parity/logits___0/mae" not in found
    assert "onnx_release/parity/logits___0/max_abs" not in found


def test_a_measure_missing_at_one_sample_has_no_worst_value() -> None:
    comparisons = (records.comparison(), records.comparison(batch_size=8, mae=None, passed=False))
    found = release_metrics(_report(benchmark=records.benchmark(parity=records.parity(comparisons=comparisons))))
    assert "onnx_release/parity/y/mae" not in found


def test_a_release_without_an_artifact_has_no_metrics() -> None:
    assert release_metrics(_report(artifact=None, check=None, benchmark=None)) == {}


def test_the_summary_shows_verdict_parity_and_speed() -> None:
    text = summary_markdown(_report(benchmark=records.benchmark(latency=records.latency(budget={"batch_size": 1}))))
    first, second = text.split("\n\n")[:2]
    assert first == "Released: fp32, 1 kB, MAE 3e-08, 2.00x [1.90, 2.10] at batch 1."
    assert second.startswith("Model **net**, training run `")
    assert "| speedup | batch 1 | 2.00x [1.90, 2.10] | at least 1x | passed |" in text
    assert "| y | 3.00e-08 | 2.00e-08 | 1.00e-06 | 0.50000000 | - | - | - | yes |" in text
    assert "| 1 | 2 / 2.5 ms | 1 / 1.2 ms | 490 / 980 | 2.00x [1.90, 2.10] at 95% | 40 x 10 |" in text
    assert "verdict: passed, goal reached" in text
    assert records.SHA in text


def test_the_summary_of_a_refusal_has_the_reasons_and_marks_an_unsettled_speedup() -> None:
    comparisons = (records.comparison(passed=False), records.comparison(output="a|b"))
    latency = records.latency(
        verdict="not settled",
        goal_reached=False,
        budget={"batch_size": 1},
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
    assert "| not settled, at least 1.9x at 95% |" in text
    assert "2.00x" not in text
    assert "- warning: host was busy" in text
    assert "Code of the refusal: `pickle`." in summary_markdown(_report(check=None).replace(reason_code="pickle"))
    unmeasured = summary_markdown(_report(benchmark=records.benchmark(passed=False, latency=None)))
    assert "Latency was not measured" in unmeasured


def test_the_summary_has_failed_strategies_findings_and_the_first_difference() -> None:
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
    changed = report.replace(
        artifact=report.artifact.replace(attempts=attempts, findings=(finding,)),
        benchmark=report.benchmark.replace(
            parity=report.benchmark.parity.replace(divergence=divergence, notes=("length 9 was left out",)),
        ),
    )
    text = summary_markdown(changed)
    assert "- strategy dynamo: failed, no \\| way\n" in text
    assert "- warning no_example: the model has none; correct it with `log_model(...)`\n" in text
    assert "- length 9 was left out\n" in text
    assert "The difference begins at node `node_linear` (Gemm) of module `head`" in text
    assert ReleaseReport.from_dict(changed.to_dict()) == changed
