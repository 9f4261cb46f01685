"""Command `trace`: everything that MLflow has about one version, also when parts of it are gone."""

from __future__ import annotations

import json
import uuid
from dataclasses import dataclass
from pathlib import Path

import mlflow
import numpy as np
import pytest

from onnx_release.cli.main import main
from onnx_release.records import AliasMove, FileDigest
from onnx_release.report.release_report import build_report, write_report
from onnx_release.training_runs import tags
from onnx_release.training_runs.alias_moves import move_list_text
from tests.core import records
from tests.core.cli.command import ROOT, document
from tests.services import Services

HOSTILE = "\x1b[31m<b>{{ 7*7 }}\nsecond line"


@dataclass(frozen=True)
class Made:
    """A registered model with one version that a release made of a training run."""

    name: str
    run_id: str


def move(alias: str, before: int | None, after: int | None, **changes: str) -> AliasMove:
    fields = {"by": "anna", "at": "2026-01-02T03:04:05Z", "why": "faster", "dag_run": "manual__1", **changes}
    return AliasMove(alias=alias, from_version=before, to_version=after, **fields)


@pytest.fixture
def made(server: Services, tmp_path: Path) -> Made:
    name = f"net-{uuid.uuid4().hex[:6]}"
    artifact = records.artifact(files=(FileDigest(path="model.onnx", sha256="b" * 64, size_bytes=3),))
    with mlflow.start_run(run_name=HOSTILE) as run:
        mlflow.log_params({"lr": "0.1", "password": "secret"})
        mlflow.log_metrics({"mae": 0.25})
        mlflow.log_input(mlflow.data.from_numpy(np.zeros((2, 3)), name="flights", digest="d1"), context="training")
        report = build_report(
            records.TRAINING.replace(training_run_id=run.info.run_id, model_name=name), artifact, records.check(),
            records.benchmark(),
        )  # fmt: skip
        mlflow.log_artifact(str(write_report(tmp_path, report)), f"onnx_release/{name}")
    client = mlflow.MlflowClient()
    lists = [
        [move("candidate", None, 1)],
        [move("champion", 4, 1, why=HOSTILE), move("champion", 1, 2), move("x", 2, 3)],
    ]
    client.create_registered_model(
        name, {f"{tags.ALIAS_LOG}.{number}": move_list_text(moves) for number, moves in enumerate(lists)}
    )
    of_version = {
        tags.VERSION_SHA256: artifact.sha256, tags.VERSION_DAG_RUN: "http://airflow/dags/x",
        tags.APPROVAL: "was approved by anna", tags.VERSION_SIGNATURE: "c" * 64,
    }  # fmt: skip
    client.create_model_version(name, "s3://models/x", run.info.run_id, of_version)
    client.set_registered_model_alias(name, "candidate", "1")
    return Made(name, run.info.run_id)


def test_the_whole_origin_is_shown(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    found = document(capsys, "trace", f"models:/{made.name}@candidate")
    run = found["training_run"]
    assert (found["version"], found["aliases"], found["sha256"]) == (1, ["candidate"], records.SHA)
    assert (found["dag_run"], found["approval"], found["signature"]) == (
        "http://airflow/dags/x", "was approved by anna", "c" * 64,
    )  # fmt: skip
    assert (run["run_id"], run["params"], run["metrics"]) == (made.run_id, {"lr": "0.1"}, {"mae": 0.25})
    assert [row["name"] for row in run["datasets"]] == ["flights"]
    assert [file["path"] for file in found["files"]] == ["model.onnx"]
    assert {gate["name"] for gate in found["gates"]} > {"parity", "speedup"}
    # The moves to and from this version, in their order.
    assert [(one["alias"], one["from_version"], one["to_version"]) for one in found["moves"]] == [
        ("candidate", None, 1), ("champion", 4, 1), ("champion", 1, 2),
    ]  # fmt: skip
    page = (ROOT / "docs" / "command-line.md").read_text().partition("| `trace` |")[2].partition("\n")[0]
    assert [field for field in found if f"`{field}`" not in page + "`command` `exit_code`"] == []
    assert main(["trace", f"models:/{made.name}/1"]) == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert "secret" not in shown + json.dumps(found)
    for text in ("flights", "was approved by anna", "v4 to v1", "no version to v1", "speedup", made.run_id):
        assert text in shown


def test_a_version_without_its_run_or_report_is_still_traced(made: Made, capsys: pytest.CaptureFixture[str]) -> None:
    client = mlflow.MlflowClient()
    # The report in the run belongs to other bytes: a later release of the run replaced it.
    client.set_model_version_tag(made.name, "1", tags.VERSION_SHA256, "0" * 64)
    found = document(capsys, "trace", f"models:/{made.name}/1")
    assert (found["gates"], found["files"], found["headline"]) == ([], [], None)
    client.delete_run(made.run_id)
    assert document(capsys, "trace", f"models:/{made.name}/1")["training_run"]["found"] is False
    # A version of another program has no tags and no run.
    client.create_model_version(made.name, "s3://models/y")
    assert document(capsys, "trace", f"models:/{made.name}/2")["training_run"] == {"run_id": None, "found": False}
    assert main(["trace", f"models:/{made.name}/2"]) == 0


@pytest.mark.parametrize(
    "uri", ["models:/absent/1", "models:/absent@x", "runs:/x/y", "net", "models:/a/b/c", "s3://b/p"]
)
def test_another_name_is_refused(server: Services, uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert document(capsys, "trace", uri, code=2)["error"]["code"] == "model_not_found"
