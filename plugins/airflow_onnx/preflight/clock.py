"""Differences between the clocks of the hosts of a deployment.

A server's header `Date` has whole seconds, and some servers make it once a second. So a difference has an error of one
second and half the call's time.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

from airflow_onnx.preflight.checks import Noticed, failure, skipped, warning

# A store refuses a signature that is older than 15 minutes. Half of it leaves time for the drift until someone reads
# the warning.
STORE_WARN_S, STORE_MAX_S = 450.0, 900.0
# The watch compares the end of a run with this host's clock, and searches a day back by default. Waiting times and
# ages in reports are wrong by the difference.
MLFLOW_WARN_S, MLFLOW_MAX_S = 60.0, 3600.0
# Airflow takes a component for dead whose heartbeat is older than 30 s.
DATABASE_WARN_S, DATABASE_MAX_S = 5.0, 30.0
_ACTION = "Synchronize the clocks of both hosts, for example with chrony."


@dataclass(frozen=True, slots=True)
class Clock:
    """A server's clock minus this host's clock, with the error of the comparison, in seconds."""

    difference_s: float
    error_s: float

    def text(self, warn_s: float, max_s: float) -> str:
        """Return the difference in words.

        :raises Noticed: if it is above a limit by more than its error.
        """
        least_s = max(0.0, abs(self.difference_s) - self.error_s)
        if least_s == 0:
            return f"the same within {self.error_s:.1f} s"
        found = f"{abs(self.difference_s):.0f} s {'ahead of' if self.difference_s > 0 else 'behind'} this host"
        if least_s > max_s:
            raise failure(f"{found}, more than {max_s:g} s", _ACTION)
        if least_s > warn_s:
            raise warning(f"{found}, more than {warn_s:g} s", _ACTION)
        return found


def parse_date(header: str, began: float) -> Clock:
    """Return the difference to the header `Date` of an answer.

    :param began: the time of this host at the begin of the call, in seconds since 1970.
    :raises Noticed: if the answer has no usable header.
    """
    now = time.time()
    try:
        date = parsedate_to_datetime(header)
    except ValueError:
        raise _no_date() from None
    moment = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp()
    # It is up to two seconds before the answer.
    return Clock(moment + 1.0 - (began + now) / 2, 1.0 + (now - began) / 2)


def database_clock() -> str:
    """Compare the clock of Airflow's database."""
    from airflow.utils.session import create_session
    from sqlalchemy import func, select

    with create_session() as session:
        # MySQL's other functions return the time in the zone of the session.
        clock = func.utc_timestamp() if session.get_bind().dialect.name == "mysql" else func.current_timestamp()
        began = time.time()
        found = session.scalar(select(clock))
        now = time.time()
    if isinstance(found, str):
        found = datetime.fromisoformat(found)
    if not isinstance(found, datetime):
        raise skipped("the database returns no time")
    moment = (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()
    # SQLite and MySQL return whole seconds.
    rounding_s = 0.0 if found.microsecond else 0.5
    difference = Clock(moment + rounding_s - (began + now) / 2, max(0.1, rounding_s + (now - began) / 2))
    return difference.text(DATABASE_WARN_S, DATABASE_MAX_S)


def _no_date() -> Noticed:
    return skipped("its answers have no header Date")
