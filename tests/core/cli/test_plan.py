"""Command `plan` on a real MLflow server, and the tables of the command."""

from __future__ import annotations

import uuid
from pathlib import Path

import mlflow
import pytest
import torch

from onnx_release.cli import console
from onnx_release.cli.main import main
from onnx_release.training_runs import tags
from tests.core.cli.command import document
from tests.services import Services

HOSTILE = "\x1b[2J\nrelease 1 run  <script>"


@pytest.fixture
def experiment(server: Services) -> str:
    """An experiment with one run of each kind."""
    name = f"plan-{uuid.uuid4().hex[:8]}"
    mlflow.set_experiment(name)
    with mlflow.start_run(run_name="pickle"):
        # Without requirements, MLflow loads the model in another process to infer them.
        more = {"serialization_format": "pickle", "pip_requirements": ["torch"]}
        mlflow.pytorch.log_model(torch.nn.Linear(2, 1), name="model", **more)
    for run, settings in {"ckpt": {}, "whole": {}, "released": {"onnx_release.dag_run_id": "x"}}.items():
        with mlflow.start_run(run_name=run, tags=settings):
            mlflow.log_text("weights", f"{run}.ckpt" if run == "ckpt" else f"{run}.pt2")
            if run != "ckpt":
                mlflow.set_tag(tags.INPUT_SPEC, '[{"name": "x", "dtype": "float32", "shape": ["batch", 3]}]')
                mlflow.set_tag(tags.STATUS, "refused" if run == "released" else "")
    with mlflow.start_run(run_name=HOSTILE):
        pass
    return name


def test_each_run_has_a_decision(experiment: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "plan", "--experiment", experiment)
    assert {run["run_name"]: (run["action"], run["reason_code"]) for run in found["runs"]} == {
        "pickle": ("refuse", "pickle"),
        "ckpt": ("refuse", "no_input_spec"),
        "whole": ("release", "finished"),
        "released": ("skip", "tried_before/refused"),
        HOSTILE: ("skip", "no_pytorch_model"),
    }
    assert found["totals"] == {"runs": 5, "release": 1, "refuse": 2, "skip": 2}
    assert found["estimate"]["releases"] == 1
    found = document(capsys, "plan", "--experiment", f"{experiment[:-2]}*", "--allow-pickle", "--model-name", "net")
    assert found["totals"]["release"] == 2
    assert {run["model_name"] for run in found["runs"] if run["action"] == "release"} == {"net"}


@pytest.mark.parametrize("wide", [(), ("--wide",)])
def test_foreign_names_cannot_write_to_the_terminal(
    experiment: str, wide: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert main(["plan", "--experiment", experiment, *wide]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("5 runs: 1 to release, 2 to refuse, 2 to skip.")
    assert not any("\x1b" in line or line.startswith("release 1 run") for line in lines)
    assert max(map(len, lines)) <= console.WIDTH_MAX


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("--from-date", "yesterday"), "not_a_time"),
        (("--from-date", "2030-01-01", "--to-date", "2020-01-01"), "empty_range"),
        (("--experiment", "no-such"), None),
        (("--filter", "tags.x = "), "model_not_found"),
    ],
)
def test_bad_arguments_are_refused(
    arguments: tuple[str, ...], code: str | None, server: Services, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("plan", "--experiment", "tests", *arguments)
    if code is None:
        assert document(capsys, *given)["totals"]["runs"] >= 0
        assert document(capsys, "plan", *arguments, code=2)["error"]["code"] == "wrong_argument"
    else:
        assert document(capsys, *given, code=2)["error"]["code"] == code


def test_a_server_that_does_not_answer_is_no_fault_of_the_command_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    mlflow.set_tracking_uri(None)
    assert document(capsys, "plan", "--experiment", "x", code=3)["error"]["class"] == "Transient"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.chdir(tmp_path)
    assert document(capsys, "plan", "--experiment", "x", code=2)["error"]["code"] == "no_tracking_uri"
    assert list(tmp_path.iterdir()) == [], "MLflow's default would be a database here"


def test_a_table_fits_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [["passed", "a name with several words " * 3, "漢字" * 3], ["failed", "x" * 200, ""]]
    for columns in (40, 72, 120):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = console.table(("verdict", "name", "more"), rows, {"failed": "bad"})
        assert all(len(line) <= columns for line in lines)
        assert "".join(lines).count("x") == 200
    assert "\033" not in "".join(lines)
