"""Classification of the errors of a task: refused, failed for good, or retried by Airflow."""

from __future__ import annotations

import errno
import ssl
from types import SimpleNamespace
from typing import Any

import pytest
import requests
from airflow.exceptions import AirflowNotFoundException as CoreNotFoundException
from airflow.sdk.exceptions import (
    AirflowFailException,
    AirflowNotFoundException,
    AirflowSensorTimeout,
    AirflowSkipException,
)

from airflow_onnx.task_outcome import XCOM_KEY, airflow_outcome, dag_run_outcome
from onnx_release.errors import Refused, RunnerRefused, Transient
from tests.refusals import failed


class Task:
    """The part of Airflow's task instance that the outcome of a task needs."""

    def __init__(self, try_number: int = 1, max_tries: int = 3, states: dict[str, str] | None = None) -> None:
        self.left: dict[str, Any] = {}
        self.ti = SimpleNamespace(
            task_id="clean_work",
            try_number=try_number,
            max_tries=max_tries,
            task=SimpleNamespace(retries=3),
            xcom_push=lambda key, value: self.left.update({key: value}),
            xcom_pull=lambda task_ids, key: self.left.get(f"{task_ids}.{key}"),
            get_task_states=lambda dag_id, run_ids: {run_ids[0]: states or {}},
        )

    @property
    def context(self) -> Any:
        return {"ti": self.ti, "dag_run": SimpleNamespace(dag_id="release_onnx", run_id="r", conf={})}

    @property
    def outcome(self) -> tuple[str, str, str]:
        left = self.left[XCOM_KEY]
        return left["status"], left["reason"], left["code"]


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_a_refusal_fails_without_a_retry_and_is_recorded_first() -> None:
    recorded: list[Refused] = []
    task = Task()
    with (
        pytest.raises(AirflowFailException, match=r"Model m has NaN\. Train again\."),
        airflow_outcome(task.context, recorded.append),
    ):
        raise Refused("Model m", "has NaN", "Train again.", code="nan_weights")
    assert [error.subject for error in recorded] == ["Model m"]
    assert task.outcome == ("refused", "Model m has NaN. Train again.", "nan_weights")


def test_an_error_that_is_its_own_cause_is_classified() -> None:
    error = Refused("Model m", "has NaN", "Train again.", code="nan_weights")
    with failed("nan_weights"), airflow_outcome(Task().context):
        raise chained(error, error)


def test_a_transient_failure_passes_to_airflow_which_retries() -> None:
    recorded: list[Refused] = []
    task = Task()
    with pytest.raises(Transient, match="is down"), airflow_outcome(task.context, recorded.append):
        raise Transient("The store", "is down", "Wait.")
    assert recorded == []
    assert task.outcome[0] == "failed"


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/tmp/x/y"), "no space left"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "no space left"),
        (PermissionError(errno.EACCES, "Permission denied", "/srv/staging/x"), "no access to a file"),
        (OSError(errno.EROFS, "Read-only file system", "/srv/staging/x"), "no access to a file"),
        (MemoryError(), "too little memory"),
        (RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"), "memory"),
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connection refused"), "Connection refused"),
        (TimeoutError("timed out"), "timed out"),
        (ssl.SSLCertVerificationError("certificate verify failed"), "certificate verify failed"),
        (requests.ConnectionError("Max retries exceeded"), "Max retries exceeded"),
        (chained(RunnerRefused("It", "fails", "Fix.", code="model_failed"), MemoryError()), "too little memory"),
        (
            chained(RunnerRefused("It", "fails", "Fix.", code="model_failed"), OSError(errno.ENOSPC, "full")),
            "no space left",
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_a_fault_of_the_machine_is_retried_and_never_the_models(error: Exception, words: str) -> None:
    recorded: list[Refused] = []
    task = Task()
    with pytest.raises(Transient, match=words), airflow_outcome(task.context, recorded.append):
        raise error
    assert recorded == []
    status, reason, _ = task.outcome
    assert status == "failed"
    assert words in reason
    assert "/tmp" not in reason
    assert "/srv" not in reason


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (ModuleNotFoundError("No module named 'onnxscript'", name="onnxscript"), "missing_package", "onnxscript"),
        (ImportError("no name x (/usr/lib/torch/a.py)", name="torch"), "missing_package", "torch"),
        (AirflowNotFoundException("The conn_id `mlflow_x` isn't defined"), "no_connection", "mlflow_x"),
        (CoreNotFoundException("The conn_id `mlflow_x` isn't defined"), "no_connection", "mlflow_x"),
    ],
)  # fmt: skip
def test_a_fault_of_the_deployment_fails_without_a_retry_and_without_a_refusal(
    error: Exception, code: str, words: str
) -> None:
    recorded: list[Refused] = []
    task = Task()
    with failed(code, words), airflow_outcome(task.context, recorded.append):
        raise error
    assert recorded == []
    assert task.outcome[0] == "failed"
    assert "/usr" not in task.outcome[1]


@pytest.mark.parametrize(("try_number", "max_tries"), [(1, 3), (3, 5)])
def test_an_unexpected_error_is_tried_once_more(try_number: int, max_tries: int) -> None:
    task = Task(try_number, max_tries)
    with pytest.raises(ZeroDivisionError), airflow_outcome(task.context):
        _ = 1 / 0
    assert task.outcome[0] == "failed"
    task = Task(try_number + 1, max_tries)
    with pytest.raises(AirflowFailException, match="unexpected ZeroDivisionError"), airflow_outcome(task.context):
        _ = 1 / 0
    assert "traceback" in task.outcome[1]


def test_airflows_own_exceptions_pass_unchanged() -> None:
    with pytest.raises(AirflowSkipException), airflow_outcome(Task().context):
        raise AirflowSkipException
    task = Task()
    with pytest.raises(AirflowSensorTimeout), airflow_outcome(task.context):
        raise AirflowSensorTimeout("24 h")
    assert task.outcome[0] == "failed"
    with pytest.raises(AirflowSkipException), airflow_outcome():
        raise AirflowSkipException


def test_an_outcome_that_cannot_be_left_does_not_replace_the_error() -> None:
    task = Task()
    task.ti.xcom_push = None
    with failed("nan_weights"), airflow_outcome(task.context):
        raise Refused("Model m", "has NaN", "Train again.", code="nan_weights")


@pytest.mark.parametrize(
    ("states", "words"),
    [
        ({"export": "failed", "check": "upstream_failed"}, "'export' failed without a message"),
        ({"export": "skipped", "promote": "skipped"}, "ended before the promotion"),
        ({}, "ended before the promotion"),
        ({"clean_work": "failed", "upload": "failed"}, "'upload'"),
    ],
)
def test_a_task_without_a_message_is_named_by_its_state(states: dict[str, str], words: str) -> None:
    outcome = dag_run_outcome(Task(states=states).context)
    assert outcome.status == "failed"
    assert words in outcome.reason


def test_the_reason_of_the_last_try_is_used() -> None:
    task = Task(states={"register": "failed"})
    task.left[f"register.{XCOM_KEY}"] = {"status": "failed", "reason": "MLflow is down.", "headline": "Failed."}
    assert dag_run_outcome(task.context).reason == "Task 'register': MLflow is down."
