"""Translation of the core's errors into Airflow's."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowFailException

from airflow_onnx.errors import airflow_outcome
from onnx_release.errors import Refused, Transient


def test_a_refusal_fails_without_a_retry_and_is_recorded_first() -> None:
    recorded: list[Refused] = []
    with (
        pytest.raises(AirflowFailException, match=r"Model m has NaN\. Train again\."),
        airflow_outcome(recorded.append),
    ):
        raise Refused("Model m", "has NaN", "Train again.", code="nan_weights")
    assert [error.subject for error in recorded] == ["Model m"]


def test_a_transient_failure_passes_to_airflow_which_retries() -> None:
    recorded: list[Refused] = []
    with pytest.raises(Transient, match="is down"), airflow_outcome(recorded.append):
        raise Transient("The store", "is down", "Wait.")
    assert recorded == []


def test_other_errors_pass_unchanged() -> None:
    with pytest.raises(ZeroDivisionError), airflow_outcome():
        _ = 1 / 0
