"""The demo: a model is trained into MLflow and Airflow releases it, while a person watches."""

from __future__ import annotations

import time

from rich.console import Console

from stack import processes
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.errors import StackError
from stack.layout import Layout
from stack.lifecycle import NAMES, down, is_up, up
from stack.progress import TaskProgress
from stack.release import ENDED, Release
from stack.result import print_addresses, print_outcome
from stack.training import trained_run, version_exists

WATCH_S = 2.0


class Demo:
    """One call of ``make demo``. A stack that was up before is used and left up; its own it stops."""

    def __init__(self, layout: Layout, console: Console) -> None:
        self._layout = layout
        self._console = console

    def run(self, *, once: bool) -> int:
        """Return 0 when the model is released; `once` stops the services at once, else they wait for Ctrl-C."""
        borrowed = is_up(self._layout)
        try:
            context = up(self._layout, self._console)
            released = self._release(context)
            if released and not once and not borrowed:
                self._stay(context)
        finally:
            if not borrowed and any(processes.find(self._layout, name) for name in NAMES):
                self._console.print("Stopping the services.")
                down(self._layout, self._console)
        return 0 if released else 1

    def _release(self, context: Context) -> bool:
        api = AirflowApi(context)
        Release(api, "none").await_dags()
        release = Release(api, trained_run(context, self._console))
        if self._begins(context, release):
            self._console.print(f"Airflow releases it (DAG run {release.dag_run_id}):")
            with TaskProgress(self._console) as progress:
                succeeded = release.follow(progress.show, lambda: self._check_services(context))
            if not succeeded:
                self._console.print(f"Not released. {release.failure()}", markup=False)
                self._console.print("`make up` and Airflow's page of the DAG run show the whole log.")
                return False
        else:
            self._console.print("It is released already.")
        outcome = release.outcome()
        if outcome is None:
            raise StackError(
                f"{release.dag_run_id} succeeded, but a task handed on nothing: see {context.airflow_url}."
            )
        print_outcome(self._console, outcome)
        print_addresses(self._console, context)
        return True

    def _begins(self, context: Context, release: Release) -> bool:
        """Wait for the release to begin; False when it was made before and all of it is still there."""
        if not release.exists():
            self._console.print("The training run has ended; waiting for watch_training to notice.")
            began = time.monotonic()
            release.await_begin(lambda: self._check_services(context))
            self._console.print(f"Noticed after {time.monotonic() - began:.1f} s.")
            return True
        state = release.state()
        if state not in ENDED:
            return True
        outcome = release.outcome() if state == "success" else None
        if outcome and version_exists(context, outcome.version["name"], outcome.version["version"]):
            return False
        # It failed, or its model version or records were deleted since.
        release.again()
        return True

    def _stay(self, context: Context) -> None:
        self._console.print("The services stay up until Ctrl-C.")
        try:
            while any(processes.find(context.layout, name) for name in NAMES):
                self._check_services(context)
                time.sleep(WATCH_S)
        except KeyboardInterrupt:
            return
        self._console.print("The services were stopped by another command.")

    def _check_services(self, context: Context) -> None:
        for name in NAMES:
            if processes.find(context.layout, name) is None:
                tail = processes.log_tail(context.layout, name)
                raise StackError(f"{name} has ended. The end of {context.layout.logs / f'{name}.log'}:\n{tail}")
