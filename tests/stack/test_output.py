"""What the demo prints, from the records as the tasks make them; no services."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from onnx_release.records import (
    BatchLatency,
    BenchmarkReport,
    FileDigest,
    HostInfo,
    LatencyReport,
    Measures,
    ModelVersion,
    OnnxArtifact,
    OutputParity,
    ParityReport,
    S3Object,
    SideLatency,
)
from stack.progress import TaskProgress
from stack.release import Outcome, TaskState, last_error, own_lines
from stack.result import print_outcome

SHA = "ab" * 32
URI = f"s3://heimdall-models/heimdall-localization-onnx/{'c' * 32}/{SHA[:16]}/"


def parity(output: str, mae: float | None, cosine: float) -> OutputParity:
    return OutputParity(
        output=output, sample="s", batch_size=1, dtype="float32", shape=(1, 2), passed=True,
        measures=Measures(mae=mae, max_abs=2e-7, max_rel=3e-6, cosine=cosine),
    )  # fmt: skip


def latency() -> LatencyReport:
    side = SideLatency(p50_ms=12.345, p95_ms=23.456, cpu_p50_ms=24.0, throughput_per_s=80.0, quantiles_ms=(12.345,) * 9)
    batch = BatchLatency(
        batch_size=8, reference=side, candidate=side.replace(p50_ms=6.789), speedup=1.82, speedup_low=1.75,
        speedup_high=1.91, confidence=0.95, rounds=30, calls_per_round=4, measured_s=4.0, conclusive=True,
    )  # fmt: skip
    host = HostInfo(cpu_model="A Processor", logical_cpus=2, usable_cpus=2, load_1m=0.1, platform="Linux")
    return LatencyReport(
        sha256=SHA, passed=True, verdict="passed", goal_reached=True, batches=(batch,), threads=2, device="cpu",
        providers_requested=("CPUExecutionProvider",), providers_active=("CPUExecutionProvider",), host=host,
    )  # fmt: skip


@pytest.fixture
def outcome() -> Outcome:
    files = (FileDigest(path="model.onnx", sha256=SHA, size_bytes=3_210_000),)
    artifact = OnnxArtifact(
        sha256=SHA, size_bytes=3_210_000, files=files, opset=20, ir_version=10, inputs=(), outputs=(),
        strategy="dynamo", trained_format="pt2", device="cpu", providers=("CPUExecutionProvider",),
        export_batch_size=2, export_wall_s=3.2, tool_versions={},
    )  # fmt: skip
    compared = (parity("positions", 1e-8, 0.9999), parity("positions", 9e-8, 1.0), parity("uncertainties", None, 1.0))
    report = ParityReport(
        sha256=SHA, passed=True, comparisons=compared, batch_sizes=(1, 8), unseen_batch_sizes=(8,), limits={}
    )
    benchmark = BenchmarkReport(sha256=SHA, passed=True, parity=report, latency=latency())
    stored = S3Object(uri=URI, bucket="heimdall-models", prefix="p", sha256=SHA, size_bytes=3_210_000)
    version = ModelVersion(
        name="heimdall-localization-onnx",
        version=3,
        sha256=SHA,
        source=URI,
        training_run_id="c" * 32,
        alias="candidate",
    )
    return Outcome("c" * 32, *(record.to_dict() for record in (artifact, benchmark, stored, version)))


def printed(outcome: Outcome, width: int = 140) -> str:
    text = io.StringIO()
    print_outcome(Console(file=text, width=width, highlight=False), outcome)
    return text.getvalue()


def test_the_table_says_all_that_a_release_is_known_by(outcome: Outcome) -> None:
    text = printed(outcome)
    wanted = ["c" * 32, SHA, "3.21 MB", "20 (IR 10)", "dynamo on cpu", URI, "heimdall-localization-onnx", "candidate"]
    wanted += ["12.35", "6.79", "23.46", "1.82x", "1.75 to 1.91 (95%)", "A Processor", "passed, goal reached"]
    assert [word for word in wanted if word not in text] == []


def test_parity_shows_the_worst_sample_and_says_when_one_was_not_measured(outcome: Outcome) -> None:
    rows = {line.split()[0]: line for line in printed(outcome).splitlines() if "e-0" in line}
    assert "9.0e-08" in rows["positions"]
    assert "0.99990000" in rows["positions"]
    assert "not measured" in rows["uncertainties"]


def test_a_narrow_terminal_loses_no_character_of_what_is_copied(outcome: Outcome) -> None:
    joined = "".join(line.strip().split("  ")[-1] for line in printed(outcome, width=60).splitlines())
    assert SHA in joined
    assert URI in joined


def states(*words: str) -> list[TaskState]:
    return [TaskState(f"task{i}", word, 1, 2.0 if word == "success" else None) for i, word in enumerate(words)]


def test_without_a_terminal_each_change_is_one_line() -> None:
    text = io.StringIO()
    with TaskProgress(Console(file=text, width=80)) as progress:
        for seen in (("waiting", "waiting"), ("running", "waiting"), ("running", "waiting"), ("success", "running")):
            progress.show(states(*seen))
    assert [line.split()[:2] for line in text.getvalue().splitlines()] == [
        ["task0", "running"], ["task0", "success"], ["task1", "running"],
    ]  # fmt: skip


def test_on_a_terminal_the_table_is_drawn_in_place() -> None:
    text = io.StringIO()
    with TaskProgress(
        Console(file=text, width=80, force_terminal=True, _environ={"TERM": "xterm-256color"})
    ) as progress:
        progress.show(states("running", "waiting"))
        progress.show(states("success", "running"))
    assert "\x1b[" in text.getvalue()
    assert "2.0 s" in text.getvalue()


def test_the_error_of_a_failed_task_is_its_exception() -> None:
    content: list[dict[str, Any]] = [
        {"event": "starting", "level": "info"},
        {"event": "a warning of a library", "level": "error"},
        {
            "event": "Task failed",
            "level": "error",
            "error_detail": [{"exc_type": "Refused", "exc_value": "run 1: bad"}],
        },
        {"event": "bye", "level": "info"},
    ]
    assert last_error(content) == "Refused: run 1: bad"
    assert last_error(content[:2]) == "a warning of a library"
    assert last_error(content[:1]) == "no error in its log"
    lines = ("REFUSED · The run is", "  bad.", "What to do: Train.", "Release again: http://x")
    block = [{"logger": "airflow_onnx.outcome_log", "event": line} for line in lines]
    assert last_error([*content, *block]) == "REFUSED · The run is bad. What to do: Train."


def test_each_line_of_a_task_is_printed_once() -> None:
    content = [
        {"logger": "task", "level": "info", "event": "::group::Pre Execute"},
        {"logger": "onnx_release.export.fallback", "level": "info", "event": "Exporting by dynamo."},
        {"logger": "airflow.task.operators.airflow_onnx.operators.export.OnnxExportOperator", "event": "[red]done"},
    ]
    text, task = io.StringIO(), TaskState("export", "running", 1, None)
    with TaskProgress(Console(file=text, width=80)) as progress:
        for count in (2, 2, 3):
            progress.log(task, own_lines(content[:count]))
    assert text.getvalue().splitlines() == ["    Exporting by dynamo.", "    [red]done"]
