"""The log of a refused and of a failed task, as Airflow's own process writes it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from airflow_onnx.log_lines import LINE_MAX_CHARACTERS
from tests.edge.airflow_task import run_task
from tests.edge.test_airflow_urls import rerun_conf

CONF = {"training_run_id": "a" * 32, "mae_max": 1e-12}


def log_of(patch: pytest.MonkeyPatch, folder: Path, error: str) -> list[dict[str, Any]]:
    """Return the log of a task whose body raises the error."""
    code = f"""
from airflow.sdk import DAG, BaseOperator
from airflow_onnx.task_outcome import airflow_outcome
from onnx_release.errors import Refused, Transient

class Step(BaseOperator):
    def execute(self, context):
        with airflow_outcome(context):
            raise {error}

with DAG("d"):
    Step(task_id="t", retries=3)
"""
    return run_task(patch, folder, code, CONF)


def text_of(entries: list[dict[str, Any]]) -> str:
    return "\n".join(json.dumps(entry, ensure_ascii=False) for entry in entries)


def test_a_refusal_is_one_block_without_frames(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = "hold NaN: " + ", ".join(f"layer.{number}.weight" for number in range(30))
    entries = log_of(monkeypatch, tmp_path, f'Refused("The weights", "{long}", "Train again.", code="nan_weights")')
    block = [entry for entry in entries if entry["logger"] == "airflow_onnx.outcome_log"]
    events = [entry["event"] for entry in block]
    assert events[0].startswith("REFUSED · The weights hold NaN: layer.0.weight")
    assert events[-2] == "What to do: Train again."
    assert rerun_conf(events[-1].removeprefix("Release again: ")) == CONF
    assert max(len(event) for event in events[:-1]) <= LINE_MAX_CHARACTERS
    text = text_of(entries)
    assert text.count("layer.29.weight") == 1, [entry for entry in entries if "layer.29" in json.dumps(entry)]
    assert text.count("Train again.") == 1
    assert not [entry for entry in entries if "error_detail" in entry]
    assert "Task failed with exception" not in text


def test_debug_shows_the_frames_of_a_refusal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__LOGGING__LOGGING_LEVEL", "DEBUG")
    entries = log_of(monkeypatch, tmp_path, 'Refused("It", "fails", "Fix it.", code="nan_weights")')
    (detail,) = [entry["error_detail"] for entry in entries if "error_detail" in entry]
    assert [part["exc_type"] for part in detail] == ["TaskFailed", "Refused"]
    assert detail[1]["frames"]


@pytest.mark.parametrize(
    ("error", "words", "has_frames"),
    [
        ('Transient("The store", "is down", "Wait.")', "FAILED (try 1 of 4) · The store is down.", False),
        ('KeyError("x")', "FAILED (try 1 of 4) · The task ended with an unexpected KeyError", True),
    ],
)
def test_a_fault_is_no_refusal_and_an_unexpected_one_keeps_its_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str, words: str, has_frames: bool
) -> None:
    entries = log_of(monkeypatch, tmp_path, error)
    text = text_of(entries)
    assert words in text
    assert "REFUSED" not in text
    assert bool([entry for entry in entries if "error_detail" in entry]) is has_frames
