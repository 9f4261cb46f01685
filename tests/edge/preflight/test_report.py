"""The check of a whole deployment: one table with every problem, without a secret, in limited time."""

from __future__ import annotations

import json
import os
import re
import socket
import sys
import time
from datetime import UTC, datetime
from email.utils import format_datetime
from importlib.metadata import Distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from airflow_onnx.preflight import clock, components, packages, run, table, worker
from airflow_onnx.preflight.checks import CHECKS, Check, Noticed, State, Subject
from airflow_onnx.preflight.deployment import DagFacts, Deployment
from airflow_onnx.preflight.run import DeploymentReport, Place

PAGE = Path(__file__).parents[3] / "docs" / "preflight.md"
PASSWORD = "pass-of-the-server"
SECRET_KEY = "secret-key-of-the-store"
HOSTILE = "\x1b[31mred\n| x |"


def dag(**changes: Any) -> DagFacts:
    given: dict[str, Any] = {"dag_id": "release_a", "is_watch": False, "is_paused": False, "has_import_errors": False}
    return DagFacts(**(given | {"params": {"bucket": "models"}} | changes))


def report_of(*checks: Check) -> DeploymentReport:
    counts = {state.value: sum(one.state is state for one in checks) for state in State}
    return DeploymentReport(
        checked_at=datetime.now(UTC), seconds=1.0, host="h", place=Place.COMMAND, state=State.FAILED, counts=counts,
        checks=checks,
    )  # fmt: skip


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Connections to closed ports, with secrets."""
    mlflow = {"conn_type": "mlflow", "host": "http://127.0.0.1:9", "login": "anna", "password": PASSWORD}
    store = {
        "conn_type": "aws", "login": "key", "password": SECRET_KEY,
        "extra": {"endpoint_url": f"http://anna:{PASSWORD}@127.0.0.1:9"},
    }  # fmt: skip
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps(mlflow))
    monkeypatch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", json.dumps(store))


def test_every_problem_is_in_one_report_without_a_secret(unreachable: None) -> None:
    # The database has no tables here: its checks fail as well, and end none of the others.
    watch = dag(dag_id="watch", is_watch=True, is_paused=True, params={"routes": [{"dag_id": "gone"}]})
    deployment = Deployment((dag(is_paused=True, has_import_errors=True), dag(dag_id="release_b", params={})), (watch,))
    report = run.run_checks(deployment, Place.COMMAND, deadline_s=600.0)
    failed = {(check.subject, check.id) for check in report.checks if check.state is State.FAILED}
    assert {
        ("DAG release_a", "dag.parsed"), ("DAG release_a", "dag.unpaused"), ("Watch watch", "watch.unpaused"),
        ("Watch watch", "watch.routes"), ("MLflow (mlflow_default)", "mlflow.version"),
        ("MLflow (mlflow_default)", "mlflow.read"), ("Store s3://models (minio_default)", "store.bucket"),
    } <= failed  # fmt: skip
    assert ("DAG release_b", "dag.bucket") in {
        (one.subject, one.id) for one in report.checks if one.state is State.WARNING
    }
    assert report.state is State.FAILED
    assert "check.ended" not in {check.id for check in report.checks}
    text = "\n".join([json.dumps(report.to_dict()), *table.lines(report)])
    assert PASSWORD not in text
    assert SECRET_KEY not in text
    assert all(check.action for check in report.checks if check.state is State.FAILED), text
    assert DeploymentReport.from_dict(json.loads(json.dumps(report.to_dict()))) == report


def test_a_server_that_never_answers_ends_at_the_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"http://127.0.0.1:{silent.getsockname()[1]}"
        monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": host}))
        monkeypatch.setenv("AIRFLOW_CONN_MINIO_DEFAULT", json.dumps({"conn_type": "s3store", "host": host}))
        report = run.run_checks(Deployment((dag(),), ()), Place.API_SERVER, deadline_s=1.0)
    late = {check.subject for check in report.checks if check.id == "check.ended"}
    assert "MLflow (mlflow_default)" in late
    assert "a worker" in next(one.found for one in report.checks if one.id == "worker.packages")


def test_the_parts_of_a_deployment_are_those_of_its_dags_and_routes() -> None:
    routes = [{"dag_id": "release_b", "params": {"bucket": "routed", "prefix": "team"}}]
    watch = dag(dag_id="watch", is_watch=True, params={"routes": routes, "mlflow_conn_id": "other"}, pools={"p": 1})
    deployment = Deployment((dag(pools={"p": 2}), dag(dag_id="release_b", params={})), (watch,))
    assert {folder.uri: users for folder, users in deployment.folders.items()} == {
        "s3://models": ("release_a",),
        "s3://routed/team": ("release_b",),
    }
    assert deployment.mlflow_conn_ids == {"mlflow_default": ("release_a", "release_b"), "other": ("watch",)}
    assert deployment.pools == {"p": (2, ("release_a", "watch"))}


def test_a_bucket_of_a_route_that_releases_would_refuse_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    routes = [{"dag_id": "release_a", "params": {"bucket": name}} for name in ("models", "listed", "other")]
    deployment = Deployment((dag(),), (dag(dag_id="watch", is_watch=True, params={"routes": routes}),))
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__RELEASE_BUCKETS", "listed")
    subject = Subject("DAG release_a")
    components.check_dag(subject, dag(), {"release_a"}, deployment.routed_buckets("release_a"))
    (found,) = [one for one in subject.checks if one.id == "dag.bucket_allowed"]
    assert (found.state, "not allow: other" in found.found, "release_buckets" in found.action) == (
        State.FAILED,
        True,
        True,
    )


def test_a_library_that_raises_anything_is_a_failed_check() -> None:
    def broken() -> str:
        raise KeyError("x")

    subject = Subject("It")
    assert not subject.check("store.put", broken)
    assert not subject.check("store.get", lambda: "read", needs=["store.put"])
    assert [check.state for check in subject.checks] == [State.FAILED, State.SKIPPED]
    assert "KeyError" in subject.checks[0].found


def test_the_account_of_pickles_is_checked_where_they_are_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    assert worker.check_pickles() == "pickles are refused"
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PICKLE_EXPERIMENTS", "12")
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__PICKLE_USER", "0")
    assert worker.check_pickles() == f"pickles run as the account {os.geteuid()}"


@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can change its account")
def test_a_folder_that_is_closed_to_the_account_of_pickles_is_a_warning(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "our_models").mkdir()
    tmp_path.chmod(0o700)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__ALLOW_PICKLE", "True")
    with pytest.raises(Noticed, match="pickles run as root: the account 65533 has no access to /") as caught:
        worker.check_pickles()
    assert (caught.value.state, "chmod o+rx" in caught.value.action) == (State.WARNING, True)


@pytest.mark.parametrize(
    ("ahead_s", "state"), [(0, None), (-3, None), (90, State.WARNING), (-90, State.WARNING), (7200, State.FAILED)]
)
def test_the_difference_of_two_clocks_has_limits(ahead_s: float, state: State | None) -> None:
    now = time.time()
    header = format_datetime(datetime.fromtimestamp(now + ahead_s, UTC), usegmt=True)
    try:
        clock.parse_date(header, now).text(clock.MLFLOW_WARN_S, clock.MLFLOW_MAX_S)
        found = None
    except Noticed as notice:
        found = notice.state
    assert found is state


@pytest.mark.parametrize("header", ["", "yesterday", "Mon, 99 Foo 2026"])
def test_an_answer_without_a_date_is_skipped(header: str) -> None:
    with pytest.raises(Noticed, match="no header Date"):
        clock.parse_date(header, time.time())


LINES = {
    "airflow-onnx-release": [
        "pydantic>=1", 'torch>=99; extra == "core"', 'no-such-package>=1.2; extra == "core"',
        'airflow-onnx-release[airflow,core]; extra == "worker"', 'never>=1; extra == "kubernetes"',
    ]
}  # fmt: skip


def test_packages_are_compared_with_the_bounds_of_the_extras(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "requires", LINES.__getitem__)
    monkeypatch.setattr(packages, "metadata", lambda _: SimpleNamespace(get_all=lambda _: ["core", "worker"]))
    assert {one.name for one in packages.requirements()} == {"pydantic", "torch", "no-such-package"}
    with pytest.raises(Noticed) as caught:
        packages.check_packages()
    assert (caught.value.state, caught.value.found) == (State.FAILED, "missing: no-such-package")
    assert caught.value.action == 'Run: pip install "airflow-onnx-release[worker]".'
    monkeypatch.setenv("AIRFLOW__CORE__EXECUTOR", "CeleryExecutor")
    with pytest.raises(Noticed, match="This host may run no task") as caught:
        packages.check_packages()
    assert caught.value.state is State.WARNING
    monkeypatch.setitem(LINES, "airflow-onnx-release", ['torch>=99; extra == "core"', LINES["airflow-onnx-release"][3]])
    with pytest.raises(Noticed, match=r"torch .* \(tested: >=99\)"):
        packages.check_packages()


def test_without_an_installation_the_names_are_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> Any:
        return Distribution.from_name("no-such-distribution").requires

    monkeypatch.setattr(packages, "requires", absent)
    assert [one.name for one in packages.requirements()] == list(packages.PACKAGES)
    assert "torch" in packages.check_packages()


def test_the_table_has_hostile_names_as_text_and_fits_the_terminal() -> None:
    long = Check(id="store.put", subject=HOSTILE, state=State.FAILED, found=HOSTILE + "w " * 200, action="do " * 80)
    fine = Check(id="clock.store", subject="B", state=State.OK, found="fine", dag_ids=("d",))
    lines = list(table.lines(report_of(long, fine), 80))
    assert max(map(len, lines)) <= 80
    assert "\x1b" not in "".join(lines)
    assert lines[-1] == "1 ok, 1 failed in 1.0 s on h."
    assert any(line.startswith("  FAILED") for line in lines)
    assert "B  for d" in lines
    assert "\x1b[31;1mFAILED" in "\n".join(table.lines(report_of(long), 80, color=True))


def test_the_page_of_the_docs_has_every_check_and_every_field() -> None:
    page = PAGE.read_text()
    assert re.findall(r"^\| `([a-z_]+\.[a-z_]+)` \|", page, re.MULTILINE) == list(CHECKS)
    for name in (*DeploymentReport.model_fields, *Check.model_fields):
        assert f"`{name}`" in page, name


def test_a_short_line_has_the_first_problem_and_no_control_character() -> None:
    good = Check(id="pool.exists", subject="Pools", state=State.OK, found="4")
    skipped = good.replace(state=State.SKIPPED)
    slow = good.replace(state=State.WARNING, found="slow")
    broken = good.replace(state=State.FAILED, found=HOSTILE)
    assert table.short(report_of(good, good, skipped)) == "2 of 2 ok"
    line = table.short(report_of(good, slow, broken))
    assert line.startswith("1 of 3 ok. Pools, exists: ")
    assert "red" in line
    assert "\x1b" not in line
    assert len(line.splitlines()) == 1
