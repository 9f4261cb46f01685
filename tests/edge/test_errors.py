"""Which failures Airflow repeats."""

from __future__ import annotations

import pytest
from airflow.sdk.exceptions import AirflowException, AirflowFailException

from airflow_onnx.errors import airflow_outcome
from onnx_release.errors import Refused, Transient


def test_a_refusal_is_final_and_its_evidence_is_left_first() -> None:
    left = []
    with pytest.raises(AirflowFailException, match=r"model m: has NaN\. Train again\."), airflow_outcome(left.append):
        raise Refused("model m", "has NaN", "Train again.")
    assert [error.subject for error in left] == ["model m"]


def test_a_transient_failure_is_left_to_retries() -> None:
    left: list[Refused] = []
    with pytest.raises(AirflowException, match="is down") as raised, airflow_outcome(left.append):
        raise Transient("the store", "is down", "Wait.")
    assert not isinstance(raised.value, AirflowFailException)
    assert left == []


def test_a_fault_of_ours_is_not_dressed_up() -> None:
    with pytest.raises(ZeroDivisionError), airflow_outcome():
        _ = 1 / 0
