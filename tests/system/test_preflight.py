"""The command ``airflow onnx-release check`` on the local stack."""

from __future__ import annotations

import json
import re
import subprocess
from typing import Any

import pytest

from stack.layout import tool

from .embedded import RunningStack

pytestmark = pytest.mark.system

# A DAG of docs/examples, whose bucket the stack does not have.
OTHER_DAG = "release_churn"


def check(stack: RunningStack, *arguments: str) -> tuple[int, dict[str, Any]]:
    """Return the exit status and the report."""
    script = f'source "{stack.context.layout.env_file}" && exec "$@"'
    command = ["bash", "-c", script, "-", tool("airflow"), "onnx-release", "check", "--json", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.stdout, done.stderr[-3000:]
    secrets = stack.context.credentials
    for secret in (secrets.release_secret_key, secrets.minio_secret_key, secrets.airflow_password):
        assert secret not in done.stdout + done.stderr
    return done.returncode, json.loads(done.stdout)


def failed(report: dict[str, Any]) -> set[tuple[str, str]]:
    return {(one["subject"], one["id"]) for one in report["checks"] if one["state"] == "failed"}


def test_the_local_stack_has_no_problem(stack: RunningStack) -> None:
    status, report = check(stack, "--dag-id", "release_onnx", "--dag-id", "watch_training")
    assert failed(report) == set()
    assert status == 0
    passed = {one["id"] for one in report["checks"] if one["state"] == "ok"}
    assert {"airflow.triggerer", "pool.exists", "mlflow.artifacts", "store.copy", "worker.packages"} <= passed
    bucket = stack.s3.list_objects_v2(Bucket="heimdall-models", Prefix="onnx-release-check")
    assert bucket["KeyCount"] == 0


def test_the_status_has_one_line_of_the_check(stack: RunningStack) -> None:
    shown = stack.command("status").stdout
    assert re.search(r"^check: \d+ of \d+ ok", shown, re.MULTILINE), shown


def test_a_paused_dag_and_a_missing_bucket_are_named_in_one_call(stack: RunningStack) -> None:
    stack.api.patch(f"/dags/{OTHER_DAG}", {"is_paused": True})
    status, report = check(stack, "--dag-id", OTHER_DAG)
    assert status == 1
    assert {(f"DAG {OTHER_DAG}", "dag.unpaused"), ("Store s3://acme-models/churn (minio_default)", "store.bucket")} <= (
        failed(report)
    )
    stored = stack.api.get("/variables/onnx_release_check_command")["value"]
    assert json.loads(stored)["checked_at"] == report["checked_at"]


def test_a_dag_that_airflow_does_not_have_is_a_call_that_cannot_be_made(stack: RunningStack) -> None:
    script = f'source "{stack.context.layout.env_file}" && exec "$@"'
    command = ["bash", "-c", script, "-", tool("airflow"), "onnx-release", "check", "--dag-id", "no_such_dag"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 2
    assert "no_such_dag" in done.stderr
