"""Assertion helper for refusals: by code, not by text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from onnx_release.errors import Refused


@contextmanager
def refused(code: str, *parts: str) -> Iterator[pytest.ExceptionInfo[Refused]]:
    """Expect a refusal with this code whose message contains all parts.

    :param parts: names and values that the message must show.
    """
    with pytest.raises(Refused) as caught:
        yield caught
    assert caught.value.code == code, str(caught.value)
    missing = [part for part in parts if part not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"


@contextmanager
def failed(code: str, *parts: str) -> Iterator[None]:
    """Expect a task that Airflow fails without a retry, because of a refusal with this code.

    :param parts: names and values that the message must show.
    """
    from airflow_onnx.outcome_log import TaskFailed

    with pytest.raises(TaskFailed) as caught:
        yield
    with refused(code, *parts):
        raise caught.value.failure
