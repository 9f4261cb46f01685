"""One DAG run of `release_onnx`: its start, its progress, its outcome or its failure."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from stack.airflow_api import AirflowApi
from stack.errors import StackError

DAG_ID = "release_onnx"
WATCH_DAG_ID = "watch_training"
TASKS = (
    "wait_for_training", "prepare_work", "export", "tune", "check", "parity_latency", "upload", "register",
    "promote", "clean_work",
)  # fmt: skip
ENDED = ("success", "failed")
# A task that did not succeed logs its reason and the next step here.
OUTCOME_LOGGER = "airflow_onnx.outcome_log"
_OWN_LOGGERS = ("airflow_onnx.", "onnx_release.")
POLL_S = 1.0
PARSE_TIMEOUT_S = 120.0
RELEASE_TIMEOUT_S = 1800.0
# The schedule of the watch starts a release within ten minutes when the trigger misses it.
WATCH_TIMEOUT_S = 660.0


@dataclass(frozen=True, slots=True)
class TaskState:
    """State of a task. `seconds` is None before its start."""

    name: str
    state: str
    attempt: int
    seconds: float | None


@dataclass(frozen=True, slots=True)
class Outcome:
    """Records of a successful release, as dicts; see `onnx_release.records`."""

    training_run_id: str
    artifact: dict[str, Any]  # OnnxArtifact
    benchmark: dict[str, Any]  # BenchmarkReport
    uploaded: dict[str, Any]  # S3Object
    version: dict[str, Any]  # ModelVersion


class Release:
    """The DAG run that releases one training run. Its id is derived from the training run's id."""

    def __init__(self, api: AirflowApi, training_run_id: str) -> None:
        self._api = api
        self.training_run_id = training_run_id
        self.dag_run_id = f"release__{training_run_id}"
        self._path = f"/dags/{DAG_ID}/dagRuns/{quote(self.dag_run_id, safe='')}"

    def await_dags(self) -> None:
        """Wait until Airflow has parsed both DAGs, and unpause them. Raise `StackError` as `AirflowApi.await_dags`."""
        self._api.await_dags((DAG_ID, WATCH_DAG_ID), PARSE_TIMEOUT_S)
        for dag_id in (DAG_ID, WATCH_DAG_ID):
            self._api.patch(f"/dags/{dag_id}", {"is_paused": False})

    def await_begin(self, check: Callable[[], None]) -> None:
        """Wait until the watch has started the release after the end of the training run."""
        deadline = time.monotonic() + WATCH_TIMEOUT_S
        while not self.exists():
            check()
            if time.monotonic() > deadline:
                raise StackError(
                    f"{WATCH_DAG_ID} has not started {self.dag_run_id} within {WATCH_TIMEOUT_S:.0f} s: "
                    f"see its DAG runs in Airflow."
                )
            time.sleep(POLL_S)

    def exists(self) -> bool:
        """Return True when a DAG run for the training run exists, in any state."""
        return self._api.call("GET", self._path).ok

    def again(self) -> None:
        """Run all tasks of an ended DAG run again."""
        self._api.post(f"{self._path}/clear", {"dry_run": False, "only_failed": False})

    def state(self) -> str:
        """Return Airflow's state of the DAG run."""
        return str(self._api.get(self._path)["state"])

    def tasks(self) -> list[TaskState]:
        """Return the tasks in the order in which they run."""
        found = {task["task_id"]: task for task in self._api.get(f"{self._path}/taskInstances")["task_instances"]}
        names = [name for name in TASKS if name in found] + sorted(set(found) - set(TASKS))
        return [
            TaskState(name, found[name]["state"] or "waiting", found[name]["try_number"], found[name]["duration"])
            for name in names
        ]

    def lines(self, task: TaskState) -> list[str]:
        """Return the lines that the release has logged in the task's newest attempt, empty before its first line."""
        path = f"{self._path}/taskInstances/{task.name}/logs/{task.attempt}"
        response = self._api.call("GET", path, full_content="true")
        return own_lines(response.json()["content"]) if response.ok else []

    def follow(
        self,
        show: Callable[[list[TaskState]], None],
        check: Callable[[], None],
        log: Callable[[TaskState, list[str]], None] | None = None,
    ) -> bool:
        """Show the tasks until the DAG run ends; return True on success.

        :param check: raises when a service has ended.
        :param log: gets the log lines of each task that runs or has just ended.
        """
        deadline = time.monotonic() + RELEASE_TIMEOUT_S
        begun: set[str] = set()
        while True:
            state, tasks = self.state(), self.tasks()
            ended = [task for task in tasks if task.name in begun and task.state != "running"]
            begun = {task.name for task in tasks if task.state == "running"} if log else set()
            for task in ended if log else ():
                log(task, self.lines(task))  # type: ignore[misc]
            show(tasks)
            for task in tasks if log else ():
                if task.name in begun:
                    log(task, self.lines(task))  # type: ignore[misc]
            if state in ENDED:
                return state == "success"
            check()
            if time.monotonic() > deadline:
                raise StackError(f"The release {self.dag_run_id} is still {state} after {RELEASE_TIMEOUT_S:.0f} s.")
            time.sleep(POLL_S)

    def outcome(self) -> Outcome | None:
        """Return the records of the tasks, or None when one is missing."""
        tasks = ("tune", "export", "parity_latency", "upload", "promote")
        tuned, exported, *others = (self._api.xcom(DAG_ID, self.dag_run_id, task_id) for task_id in tasks)
        # Tuning is skipped unless requested.
        records = [tuned or exported, *others]
        return None if None in records else Outcome(self.training_run_id, *records)

    def failure(self) -> str:
        """Return the failed task and the last line of its error."""
        failed = [task for task in self.tasks() if task.state == "failed"]
        if not failed:
            return f"The DAG run {self.dag_run_id} failed without a failed task."
        path = f"{self._path}/taskInstances/{failed[0].name}/logs/{failed[0].attempt}"
        content = self._api.get(path, full_content="true")["content"]
        return f"Task {failed[0].name} failed: {last_error(content)}"


def own_lines(content: list[dict[str, Any]]) -> list[str]:
    """Return the lines of a task's log that the release has written."""
    return [
        str(entry["event"])
        for entry in content
        if any(package in str(entry.get("logger")) for package in _OWN_LOGGERS) and entry.get("level") != "debug"
    ]


def last_error(content: list[dict[str, Any]]) -> str:
    """Return the reason in a task's log: its block, else the exception, else the last line logged as an error."""
    if block := [str(entry["event"]).strip() for entry in content if entry.get("logger") == OUTCOME_LOGGER]:
        return " ".join(line for line in block if not line.startswith("Release again:"))
    last = "no error in its log"
    for entry in content:
        if details := entry.get("error_detail"):
            last = f"{details[0]['exc_type']}: {details[0]['exc_value']}"
        elif entry.get("level") in ("error", "critical"):
            last = str(entry.get("event"))
    return last.strip().splitlines()[-1] if last.strip() else last
