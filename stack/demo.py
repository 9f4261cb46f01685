"""The demo: trains a model, waits for Airflow's release and shows its progress."""

from __future__ import annotations

import time

from rich.console import Console

from stack import processes
from stack.airflow_api import AirflowApi
from stack.check import print_check
from stack.context import Context
from stack.errors import StackError
from stack.layout import Layout
from stack.lifecycle import down, is_up, lost, up
from stack.progress import TaskProgress
from stack.release import ENDED, Release
from stack.result import print_addresses, print_outcome
from stack.services import NAMES
from stack.training import trained_run, version_exists
from stack.verification import verify

WATCH_S = 2.0


class Demo:
    """One call of ``make demo``. It stops the services at the end, unless they ran before."""

    def __init__(self, layout: Layout, console: Console) -> None:
        self._layout = layout
        self._console = console

    def run(self, *, once: bool) -> int:
        """Return 0 when the model is released. With `once` stop the services immediately, else at Ctrl-C."""
        already_up = is_up(self._layout)
        try:
            context = up(self._layout, self._console)
            released = self._release(context)
            if released and not once and not already_up:
                self._stay(context)
        finally:
            if not already_up and any(processes.find(self._layout, name) for name in NAMES):
                self._console.print("Stopping the services.")
                down(self._layout, self._console)
        return 0 if released else 1

    def _release(self, context: Context) -> bool:
        api = AirflowApi(context)
        Release(api, "none").await_dags()
        release = Release(api, trained_run(context, self._console))
        if self._wait_for_begin(context, release):
            self._console.print(f"Airflow releases it (DAG run {release.dag_run_id}):")
            with TaskProgress(self._console) as progress:
                succeeded = release.follow(progress.show, lambda: self._check_services(context), progress.log)
            if not succeeded:
                self._console.print(f"Not released. {release.failure()}", markup=False)
                self._console.print("To see the whole log, run `make up` and open the DAG run in Airflow.")
                return False
        else:
            self._console.print("The model is released already.")
        outcome = release.outcome()
        if outcome is None:
            raise StackError(
                f"{release.dag_run_id} succeeded, but a task returned no record: see {context.airflow_url}."
            )
        print_outcome(self._console, outcome)
        verified = verify(context, self._console, outcome)
        print_addresses(self._console, context)
        print_check(self._console, context)
        return verified

    def _wait_for_begin(self, context: Context, release: Release) -> bool:
        """Wait until the release begins. Return False when an earlier release is complete and still exists."""
        if not release.exists():
            self._console.print("The training run has ended. Waiting for watch_training to start its release.")
            began = time.monotonic()
            release.await_begin(lambda: self._check_services(context))
            self._console.print(f"Started after {time.monotonic() - began:.1f} s.")
            return True
        state = release.state()
        if state not in ENDED:
            return True
        outcome = release.outcome() if state == "success" else None
        if outcome and version_exists(context, outcome.version["name"], outcome.version["version"]):
            return False
        # The earlier release failed, or its model version or records were deleted.
        release.again()
        return True

    def _stay(self, context: Context) -> None:
        self._console.print("The services run until Ctrl-C.")
        try:
            while any(processes.find(context.layout, name) for name in NAMES):
                self._check_services(context)
                time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return
        self._console.print("Another command stopped the services.")

    def _check_services(self, context: Context) -> None:
        for name in lost(context.layout):
            tail = processes.log_tail(context.layout, name)
            raise StackError(f"{name} has ended. Last lines of {context.layout.logs / f'{name}.log'}:\n{tail}")
