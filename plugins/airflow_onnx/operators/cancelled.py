"""End of a task that a person cancels in Airflow, or whose worker stops."""

from __future__ import annotations

import logging
import sys

from airflow.sdk.exceptions import AirflowTaskTimeout

log = logging.getLogger(__name__)


class EndsWhenCancelled:
    """A task that ends its work at Airflow's signal: with its child processes, temporary files and locks.

    Airflow sends SIGTERM, calls `on_kill` in the main thread, and sends SIGKILL some seconds later. Without an
    exception the task goes on until then, and removes nothing.
    """

    def on_kill(self) -> None:
        """Raise `SystemExit`, which passes every handler of errors and runs every clean-up.

        Airflow ignores the end of a task that a person has marked or cleared. It retries one whose worker stops.
        """
        # Airflow also calls this after the time limit of a task, when all clean-up is done.
        if isinstance(sys.exc_info()[1], AirflowTaskTimeout):
            return
        log.warning("Airflow ends this task: a person cancelled it, or its worker stops.")
        raise SystemExit("cancelled")
