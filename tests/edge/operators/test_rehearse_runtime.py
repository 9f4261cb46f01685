"""The DAG `rehearse_runtime` in a real Airflow: one mapped task for each version, a report and tags in MLflow."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import pytest

from airflow_onnx.hooks.mlflow import MlflowHook
from airflow_onnx.operators.rehearse_runtime import ChooseRehearsalOperator, ReportRehearsalOperator
from onnx_release.records.rehearsal import RehearsalReport
from onnx_release.serving.runtime_environment import installed_version
from onnx_release.training_runs import tags
from tests.core.rehearsal.runtimes import differing_python
from tests.edge.conftest import Services
from tests.edge.events.airflow_home import ROOT, run_in_airflow
from tests.edge.operators.test_move_alias import published  # noqa: F401 - a fixture
from tests.edge.releasing import Release
from tests.refusals import failed

EXPERIMENT = "rehearsals"
SCRIPT = """
from airflow.models.xcom import XComModel
from airflow.utils.session import create_session
from sqlalchemy import select

run = bag.dags["rehearse_runtime"].test(run_conf=json.loads(os.environ["CONF"]))
found["states"] = sorted([one.task_id, one.map_index, one.state] for one in run.get_task_instances())
with create_session() as session:
    returned = XComModel.task_id == "report", XComModel.key == "return_value"
    (found["report"],) = session.scalars(select(XComModel.value).where(*returned))
"""


@pytest.fixture
def released(hook: MlflowHook, published: Release) -> str:  # noqa: F811 - the fixture
    """A model whose version 1 has an alias and its files, and whose version 2 has an alias and other files."""
    version = published.returned["register"]
    name, run = f"model-{uuid.uuid4().hex[:8]}", hook.client.create_run("0").info.run_id
    hook.client.create_registered_model(name)
    found = dict(hook.client.get_model_version(version["name"], "1").tags)
    for number, marks in enumerate((found, found | {tags.VERSION_SHA256: "0" * 64}), 1):
        hook.client.create_model_version(name, version["source"], run, marks, await_creation_for=0)
        hook.client.set_registered_model_alias(name, f"alias{number}", str(number))
    return name


def test_each_version_is_rehearsed_and_the_report_names_model_and_node(
    hook: MlflowHook,
    released: str,
    published: Release,  # noqa: F811 - the fixture
    services: Services,
    tmp_path: Path,
) -> None:
    from stack import setup

    python = differing_python(tmp_path)
    own = installed_version()
    conf = {
        "runtimes": [own, "serving"], "models": [released], "latency": False, "buckets": [_bucket(published)],
        "experiment": EXPERIMENT, "timeout_s": 60,
    }  # fmt: skip
    home = tmp_path / "airflow"
    home.mkdir()
    found = run_in_airflow(
        home,
        {"rehearse_runtime.py": (ROOT / "dags" / "rehearse_runtime.py").read_text()},
        SCRIPT,
        CONF=json.dumps(conf),
        AIRFLOW__ONNX_RELEASE__REHEARSAL_ENVIRONMENTS=json.dumps({"serving": str(python)}),
        **setup.connection_environment(services.context),
    )
    assert found["states"] == [
        ["choose", -1, "success"],
        ["rehearse", 0, "success"],
        ["rehearse", 1, "success"],
        ["report", -1, "success"],
    ], found["log"][-3000:]
    run = hook.client.get_run(found["report"]["run_id"])
    assert (run.info.status, run.data.metrics[f"{own}/bit-equal"], run.data.metrics["serving/changes"]) == (
        "FINISHED",
        1,
        1,
    )
    assert run.data.tags[tags.WATCHED] == "rehearsal"
    assert found["report"]["url"].endswith(f"/runs/{run.info.run_id}/artifacts/rehearsal/rehearsal.html")
    files = {Path(one.path).name for one in hook.client.list_artifacts(run.info.run_id, "rehearsal")}
    assert files == {"rehearsal.json", "rehearsal.html", "rehearsal.md"}
    local = hook.client.download_artifacts(run.info.run_id, "rehearsal/rehearsal.json", str(tmp_path))
    report = RehearsalReport.from_dict(json.loads(Path(local).read_text()))
    two, one = report.models
    assert (two.name, two.runtimes) == (f"{released} v2", ())
    assert "0000" in two.problem
    assert [result.verdict for result in one.runtimes] == ["bit-equal", "changes"]
    assert one.runtimes[1].node
    assert one.runtimes[1].node.op_type == "Gelu"
    text = hook.client.get_model_version(released, "1").tags[tags.VERSION_REHEARSED]
    assert text.endswith(f"{own} bit-equal, serving changes")
    assert f"in node {one.runtimes[1].node.node}" in "".join(found["report"]["sentences"])


def _bucket(release: Release) -> str:
    source: str = release.returned["register"]["source"]
    return source.removeprefix("s3://").partition("/")[0]


@pytest.mark.parametrize("runtimes", [["/bin/python"], ["1.20; rm"], [], None, ["serving"], ["1.20.1"] * 1000])
@pytest.mark.usefixtures("connections")
def test_paths_and_other_texts_of_a_form_are_refused(runtimes: Any) -> None:
    with failed("runtimes", "runtimes"):
        ChooseRehearsalOperator(task_id="choose", runtimes=runtimes).execute({})


def test_a_version_whose_task_failed_is_in_the_report() -> None:
    version = {
        "name": "net", "version": 3, "sha256": "", "source": "", "training_run_id": "", "created_at_ms": 0,
    }  # fmt: skip
    chosen = [{"version": version, "runtimes": [{"name": "1.20.1", "version": "1.20.1"}]}]
    report = ReportRehearsalOperator(task_id="report", chosen=chosen, results=None)._report()
    (model,) = report.models
    assert (model.name, report.runtimes) == ("net v3", ("1.20.1",))
    assert "task failed" in model.problem
