"""Releases of the pictures, started over Airflow's API: some have ended, one runs, one waits, one asks a person."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from rich.console import Console

from stack import children
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO
from stack.release import DAG_ID, ENDED, Release
from stack.setup import client_environment

MODEL = "radio-locator"
ALIAS = "candidate"
RELEASED, WARNED, REFUSED = "keywords-3", "embedder-5", "quality-9"
# The live releases are photographed while they run. The others end before.
RUNNING, QUEUED, ASKING = "streets-1", "tagger-2", "keywords-4"
_DEADLINE_S = 600.0
# A release takes seconds. The limits leave room for a busy host.
_QUICK: dict[str, Any] = {"threads": 1, "measure_max_s": 8.0, "speedup_goal": 1.0, "speedup_min": 0.7}
_APPROVED = {"model_name": "keyword-spotter", "promotion": "approve", "champion_margin": 0.5}
_CONF: dict[str, dict[str, Any]] = {
    RELEASED: _APPROVED,
    "denoiser-7": {"model_name": "speech-denoiser"},
    REFUSED: {"model_name": "image-quality", "mae_max": 1e-10},
    WARNED: {"model_name": "image-embedder", "speedup_min": 20.0, "on_miss": "warn"},
    **{f"locator-{number}": {"model_name": MODEL} for number in range(11, 16)},
    ASKING: _APPROVED,
    RUNNING: {"model_name": "street-segmenter", "batch_sizes": [1, 2, 4, 8, 16, 32, 64]},
    QUEUED: {"model_name": "audio-tagger"},
}
# The verdicts of releases that have ended. Another one means that the host was too busy for a fair picture.
_EXPECTED = dict.fromkeys(_CONF, "success") | {"denoiser-7": "failed", REFUSED: "failed"}


class Releases:
    """The releases of one stack. `runs` has the id of each training run by its name."""

    def __init__(self, context: Context, console: Console) -> None:
        self._context, self._console = context, console
        self._api = AirflowApi(context)
        self.runs: dict[str, str] = {}

    def train(self) -> None:
        """Log the training runs, unless an earlier call did so in this stack."""
        file = self._context.layout.home / "screenshots.json"
        if not file.exists():
            self._console.print("Logging the training runs.")
            environment = clean_environment(**client_environment(self._context))
            argv = [sys.executable, "-m", "docs.screenshots.training"]
            status, output = children.run(argv, environment, REPO)
            if status != 0:
                raise StackError(f"The training runs cannot be logged:\n{output[-1500:]}")
            file.write_text(output.splitlines()[-1])
        self.runs = json.loads(file.read_text())
        Release(self._api, "none").await_dags()

    def end(self) -> None:
        """Release every training run whose release ends, one after the other, and roll the alias back."""
        for name in _CONF:
            release = Release(self._api, self.runs[name])
            if name in (RUNNING, QUEUED, ASKING):
                continue
            if not release.exists():
                self._console.print(f"Releasing {name}.")
                self._trigger(name)
            _await(f"the release of {name} has not ended", partial(self._ended, release))
            if release.state() != _EXPECTED[name]:
                raise StackError(f"The release of {name} ended as {release.state()}. {release.failure()}")
        self._roll_back()

    def begin(self) -> None:
        """Start the releases that run, wait and ask, and return when they do."""
        self._console.print("Starting the releases that are photographed while they run.")
        waits = [(ASKING, "approve", "awaiting_input"), (RUNNING, "parity_latency", "running")]
        for name, task, state in (*waits, (QUEUED, "parity_latency", "scheduled")):
            if not self._is(name, task, state):
                self._trigger(name)
            _await(f"{name} does not reach {task}", partial(self._is, name, task, state))

    def conf(self, name: str) -> dict[str, Any]:
        """Return the parameters of the release of a training run."""
        return {**_QUICK, "training_run_id": self.runs[name], **_CONF[name]}

    def still_run(self) -> bool:
        """Return True if the live releases are in the states of their pictures."""
        return self._is(RUNNING, "parity_latency", "running") and self._is(QUEUED, "parity_latency", "scheduled")

    def _trigger(self, name: str) -> None:
        release = Release(self._api, self.runs[name])
        if release.exists():
            release.again()
            return
        body = {"dag_run_id": release.dag_run_id, "logical_date": None, "conf": self.conf(name)}
        self._api.post(f"/dags/{DAG_ID}/dagRuns", body)

    def _is(self, name: str, task: str, state: str) -> bool:
        release = Release(self._api, self.runs[name])
        if not release.exists():
            return False
        if release.state() in ENDED:
            return False
        return any(one.name == task and one.state == state for one in release.tasks())

    def _ended(self, release: Release) -> bool:
        """Return True at the end. A question to a person is answered."""
        if any(task.name == "approve" and task.state == "awaiting_input" for task in release.tasks()):
            path = f"/dags/{DAG_ID}/dagRuns/{release.dag_run_id}/taskInstances/approve/-1/hitlDetails"
            if not self._api.get(path)["response_received"]:
                body = {"chosen_options": ["Approve"], "params_input": {"comment": "Agreed with the field team."}}
                self._api.patch(path, body)
        return release.state() in ENDED

    def _roll_back(self) -> None:
        path = "/dags/move_alias/dagRuns"
        if self._api.call("GET", f"{path}/roll_back").ok:
            return
        conf = {
            "model_name": MODEL, "alias": ALIAS, "version": 4, "expected_version": 5,
            "reason": "Version 5 is slower in the field.",
        }  # fmt: skip
        self._api.post(path, {"dag_run_id": "roll_back", "logical_date": None, "conf": conf})
        _await("the alias has not moved", lambda: self._api.get(f"{path}/roll_back")["state"] in ENDED)
        if self._api.get(f"{path}/roll_back")["state"] != "success":
            raise StackError("The roll back failed: see the DAG run roll_back of move_alias in Airflow.")


def _await(failure: str, condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _DEADLINE_S
    while not condition():
        if time.monotonic() > deadline:
            raise StackError(f"After {_DEADLINE_S:.0f} s {failure}.")
        time.sleep(1.0)
