"""The one place that decides what a failure means to Airflow: fail for good, or try again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from airflow.sdk.exceptions import AirflowException, AirflowFailException

from onnx_release.errors import Refused, Transient


@contextmanager
def airflow_outcome(on_refused: Callable[[Refused], None] | None = None) -> Iterator[None]:
    """Turn the core's two errors into Airflow's.

    `Refused` becomes `AirflowFailException`, which no `retries` setting repeats, after `on_refused` has put the
    evidence where the training run's owner looks. `Transient` becomes a plain exception that Airflow retries.
    """
    try:
        yield
    except Refused as error:
        if on_refused is not None:
            on_refused(error)
        raise AirflowFailException(str(error)) from error
    except Transient as error:
        raise AirflowException(str(error)) from error
