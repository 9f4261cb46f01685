"""Counts of what tasks moved, as they come back from XCom."""

from __future__ import annotations

from typing import Any

import pytest

from airflow_onnx.moved import Moved, total
from onnx_release.errors import Refused


def test_counts_of_tasks_add_up_and_a_skipped_task_left_none() -> None:
    parts = [{"store_up_bytes": 1}, '{"store_up_bytes": 2, "cache_hits": 1}', "null", None, Moved(cache_hits=1)]
    assert total(parts) == {"store_up_bytes": 3, "cache_hits": 2}


@pytest.mark.parametrize("part", ["[1]", '{"a": "b"}', {"a": True}, 3, {"a": 1.5}])
def test_what_is_no_count_is_refused(part: Any) -> None:
    with pytest.raises(Refused, match="XCom 'moved'"):
        total([part])


def test_the_log_names_what_is_not_zero() -> None:
    assert str(Moved(store_up_bytes=3, cache_hits=1, mlflow_up_bytes=0)) == "store_up_bytes 3, cache_hits 1"
    assert str(Moved()) == "nothing"
