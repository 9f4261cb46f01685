"""One release under faults: its DAG run, its tasks and their processes, and its end."""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]

from onnx_release.training_runs import tags
from soak.airflow_state import ALIVE
from soak.folders import Folders
from soak.rig import Rig
from soak.scenario import Outcome
from soak.statements import violations
from stack.errors import StackError
from stack.release import DAG_ID

# Speed does not matter here.
_PARAMS = {"batch_sizes": [1, 3], "on_miss": "warn", "measure_max_s": 0.5}
_POLL_S = 1.0
END_TIMEOUT_S = 1500.0


class Case:
    """The releases of one training run into a registered model of its own."""

    def __init__(self, rig: Rig, run_id: str, model_name: str = "") -> None:
        self.rig, self.run_id, self._api = rig, run_id, rig.api
        self.model_name = model_name or f"soak-{uuid.uuid4().hex[:8]}"
        self.dag_runs: list[str] = []

    @property
    def about(self) -> tuple[str, ...]:
        """The texts of which each request of the release contains one."""
        models = self.rig.client.get_run(self.run_id).outputs.model_outputs
        return self.run_id, self.model_name, *(model.model_id for model in models)

    def trigger(self, **params: Any) -> Case:
        """Start a DAG run."""
        dag_run_id = f"soak__{self.model_name}__{len(self.dag_runs)}"
        conf = {"training_run_id": self.run_id, "model_name": self.model_name, **_PARAMS, **params}
        self._api.post(f"/dags/{DAG_ID}/dagRuns", {"dag_run_id": dag_run_id, "logical_date": None, "conf": conf})
        self.dag_runs.append(dag_run_id)
        return self

    def path(self, number: int = -1) -> str:
        """Return the path of a DAG run in Airflow's API."""
        return f"/dags/{DAG_ID}/dagRuns/{quote(self.dag_runs[number], safe='')}"

    def states(self) -> list[str]:
        """Return the states of the DAG runs."""
        return [str(self._api.get(self.path(n))["state"]) for n in range(len(self.dag_runs))]

    def tasks(self) -> list[dict[str, Any]]:
        """Return the tasks of the last DAG run as Airflow's API does."""
        return list(self._api.get(f"{self.path()}/taskInstances")["task_instances"])

    def await_end(self, meanwhile: Callable[[], None] = lambda: None) -> list[str]:
        """Wait for the end of the DAG runs and return their states. A killed API server is waited for."""
        deadline = time.monotonic() + END_TIMEOUT_S
        while time.monotonic() < deadline:
            try:
                states = self.states()
                if not ALIVE.intersection(states):
                    return states
                meanwhile()
            except StackError:
                self._api = self.rig.api
            time.sleep(_POLL_S)
        raise StackError(f"The releases of {self.model_name} did not end within {END_TIMEOUT_S:.0f} s.")

    def await_task(self, task_id: str, *states: str) -> dict[str, Any] | None:
        """Wait until a task has one of the states and return it; None if the DAG run ends without it."""
        while True:
            alive = ALIVE.intersection(self.states())
            for task in self.tasks():
                if task["task_id"] == task_id and task["state"] in states:
                    return task
            if not alive:
                return None
            time.sleep(0.3)

    def clear(self, task_id: str = "", *, only_failed: bool = True) -> None:
        """Clear the failed tasks of the last DAG run, or one task with its downstream tasks."""
        if not task_id:
            self._api.post(f"{self.path()}/clear", {"dry_run": False, "only_failed": only_failed})
            return
        body = {
            "dag_run_id": self.dag_runs[-1], "task_ids": [task_id], "include_downstream": True, "dry_run": False,
            "only_failed": False, "reset_dag_runs": True,
        }  # fmt: skip
        self._api.post(f"/dags/{DAG_ID}/clearTaskInstances", body)

    def answer(self) -> dict[str, str]:
        """Return the tags of the training run."""
        return dict(self.rig.client.get_run(self.run_id).data.tags)

    def outcome(self, injected: dict[str, int], problem: str = "") -> Outcome:
        """Return the outcome of a release that must end as released, with the statements about it.

        Folders are checked at the end of the soak: another release may have been killed just now.
        """
        answer = self.answer()
        if not problem and answer.get(tags.STATUS) != "released":
            problem = f"{answer.get(tags.STATUS)}: {answer.get(tags.REASON, '')}"
        found = violations(self.rig.places(Folders()), [self.run_id], [self.model_name])
        return Outcome(injected=injected, problem=problem, violations=found)


def process_of(task: dict[str, Any]) -> psutil.Process | None:
    """Return the process that runs a task instance, None if it has not begun or has ended."""
    title = f"airflow worker -- {task['id']}"
    for process in psutil.process_iter(["cmdline"]):
        if title in " ".join(process.info["cmdline"] or ()):
            return process
    return None
