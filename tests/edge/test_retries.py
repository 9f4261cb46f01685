"""Retries of tasks: delays, jitter and time limits from the options."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from airflow.sdk import RetryAction
from airflow.sdk.exceptions import AirflowTaskTimeout

from airflow_onnx import retries
from airflow_onnx.dag import release_dag, watch_dag
from airflow_onnx.task_outcome import XCOM_KEY, airflow_outcome
from onnx_release.errors import Transient
from tests.refusals import refused

OUTAGE = Transient("The store", "is down", "Wait.")


def context(try_number: int, max_tries: int = 3) -> Any:
    return {"ti": SimpleNamespace(try_number=try_number, max_tries=max_tries, task=SimpleNamespace(retries=3))}


def test_delays_double_up_to_a_limit_and_no_two_tasks_return_in_the_same_second() -> None:
    policy = retries.Backoff(first_s=10.0, longest_s=60.0)
    found = [[policy.delay_s(number) for _ in range(200)] for number in (1, 2, 3, 4, 2000)]
    for delays, longest_s in zip(found, (10.0, 20.0, 40.0, 60.0, 60.0), strict=True):
        assert longest_s / 2 <= min(delays) < 0.6 * longest_s
        assert 0.9 * longest_s < max(delays) <= longest_s
        assert len(set(delays)) == len(delays)


def test_the_log_names_the_error_the_next_try_and_its_delay() -> None:
    policy = retries.Backoff(first_s=10.0, longest_s=10.0)
    # The third try after a clear: Airflow counts on.
    decision = policy.evaluate(OUTAGE, 7, 7, context(7, max_tries=7))
    assert decision.action is RetryAction.RETRY
    assert "Transient may heal. Try 4 of 4 follows in " in (decision.reason or "")
    assert policy.evaluate(OUTAGE, 4, 3, context(4)).action is RetryAction.DEFAULT, "the last try"
    copy = retries.Backoff.deserialize(policy.serialize())
    assert vars(copy) == vars(policy)


def test_the_options_are_those_of_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in {"RETRIES": "5", "RETRY_DELAY_S": "2", "END_RETRIES": "9", "TASK_TIMEOUT_S": "77"}.items():
        monkeypatch.setenv(f"AIRFLOW__ONNX_RELEASE__{name}", text)
    tasks = {**release_dag("a").task_dict, **watch_dag("b", release_dag_id="a").task_dict}
    assert {task.retries for name, task in tasks.items() if name not in ("clean_work", "approve")} == {5}
    assert {tasks[name].retries for name in ("clean_work", "approve")} == {9}
    for task in tasks.values():
        assert task.execution_timeout is not None
        assert task.execution_timeout.total_seconds() == 77
        assert isinstance(task.retry_policy, retries.Backoff)
        assert task.retry_policy.first_s == 2.0
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__RETRIES", "many")
    with refused("wrong_option", "retries"):
        release_dag("a")


def test_a_task_at_its_time_limit_leaves_the_reason_for_the_teardown() -> None:
    left: dict[str, Any] = {}
    found = context(1)
    found["ti"].xcom_push = lambda key, value: left.update({key: value})
    with pytest.raises(AirflowTaskTimeout), airflow_outcome(found):
        raise AirflowTaskTimeout
    assert left[XCOM_KEY]["status"] == "failed"
    assert "task_timeout_s" in left[XCOM_KEY]["reason"]
