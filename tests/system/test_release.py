"""A trained model through the real scheduler: released once, however often it is asked for, and served as tested."""

from __future__ import annotations

import json
import re
import time
from dataclasses import dataclass
from typing import Any

import pytest
import requests

from stack.layout import REPO
from stack.release import DAG_ID

from .embedded import QUICK, RunningStack

pytestmark = pytest.mark.system

MODEL_NAME = "heimdall-localization-onnx"
RELEASE_TIMEOUT_S = 420

# Loads the version as a consumer would, in a process that knows nothing else, and compares it with the trained model.
CONSUMER = """
import json, sys
import mlflow, numpy as np, torch
name, run_uri = sys.argv[1:]
model = mlflow.pyfunc.load_model(f"models:/{name}@candidate")
program = torch.export.load(mlflow.artifacts.download_artifacts(run_uri) + "/data/model.pt2")
worst = {}
for batch in (1, 5, 17):
    inputs = np.random.default_rng(batch).standard_normal((batch, 3, 128, 32)).astype(np.float32)
    got = model.predict({"mel_spectrogram": inputs})
    with torch.no_grad():
        expected = program.module()(torch.from_numpy(inputs))
    for output, tensor in zip(("positions", "uncertainties"), expected, strict=True):
        assert got[output].shape == (batch, 2), got[output].shape
        worst[output] = max(worst.get(output, 0.0), float(np.abs(got[output] - tensor.numpy()).mean()))
print(json.dumps(worst))
"""


def run_python(stack: RunningStack, *arguments: str) -> str:
    """Run Python in a fresh process with the stack's exports; return its last line."""
    return stack.python(*arguments).strip().splitlines()[-1]


class Dag:
    """One DAG run with parameters of its own."""

    def __init__(self, stack: RunningStack, dag_run_id: str, dag_id: str = DAG_ID) -> None:
        self.api, self.dag_run_id, self.dag_id = stack.api, dag_run_id, dag_id
        self.path = f"/dags/{dag_id}/dagRuns/{dag_run_id}"

    def trigger(self, **conf: Any) -> Dag:
        body = {"dag_run_id": self.dag_run_id, "logical_date": None, "conf": conf}
        self.api.post(f"/dags/{self.dag_id}/dagRuns", body)
        return self

    def end(self) -> str:
        """Wait for the end of the DAG run and return its state."""
        deadline = time.monotonic() + RELEASE_TIMEOUT_S
        while (state := self.api.get(self.path)["state"]) not in ("success", "failed"):
            assert time.monotonic() < deadline, self.states()
            time.sleep(1.0)
        return str(state)

    def states(self) -> dict[str, str]:
        tasks = self.api.get(f"{self.path}/taskInstances")["task_instances"]
        return {task["task_id"]: task["state"] for task in tasks}

    def tries(self, task_id: str) -> int:
        return int(self.api.get(f"{self.path}/taskInstances/{task_id}")["try_number"])

    def xcom(self, task_id: str, key: str = "return_value") -> Any:
        return self.api.xcom(self.dag_id, self.dag_run_id, task_id, key)


@pytest.fixture(scope="module")
def trained(stack: RunningStack) -> str:
    """Train the smallest reference model for a moment and return the run's id."""
    arguments = ["-m", "examples.train", "--experiment", "system", "--size", "nano", "--seconds", "1"]
    arguments += ["--model-name", MODEL_NAME, "--seed", "1"]
    return run_python(stack, *arguments).removeprefix("run_id=")


@dataclass(frozen=True)
class Started:
    """Releases at the same time: of a trained model, with a limit that it misses, and of a running training."""

    released: Dag
    refused: Dag
    waiting: Dag


@pytest.fixture(scope="module")
def started(stack: RunningStack, client: Any, trained: str, small_runs: dict[str, str]) -> Started:
    refused, waiting = small_runs["refused/1"], client.create_run(client.get_run(trained).info.experiment_id)
    client.set_terminated(refused)
    return Started(
        released=Dag(stack, f"release__{trained}").trigger(training_run_id=trained, **QUICK),
        refused=Dag(stack, "strict").trigger(training_run_id=refused, mae_max=1e-12, **QUICK),
        waiting=Dag(stack, "waiting").trigger(training_run_id=waiting.info.run_id, **QUICK),
    )


@pytest.fixture(scope="module")
def released(started: Started) -> Dag:
    assert started.released.end() == "success", started.released.states()
    return started.released


def versions(client: Any, run_id: str) -> list[Any]:
    return list(client.search_model_versions(f"run_id='{run_id}'"))


def keys_of(stack: RunningStack, run_id: str) -> list[str]:
    found = stack.s3.list_objects_v2(Bucket="heimdall-models").get("Contents", [])
    return [item["Key"] for item in found if run_id in item["Key"]]


def test_a_training_run_becomes_a_version_that_a_stranger_can_serve(
    stack: RunningStack, client: Any, trained: str, released: Dag
) -> None:
    states = released.states()
    assert {states.pop("tune"), states.pop("approve")} == {"skipped"}, "nobody asked for them"
    assert set(states.values()) == {"success"}
    version = client.get_model_version_by_alias(MODEL_NAME, "candidate")
    assert version.run_id == trained
    assert version.source == released.xcom("upload")["uri"]
    worst = json.loads(run_python(stack, "-c", CONSUMER, MODEL_NAME, released.xcom("wait_for_training")["model_uri"]))
    assert set(worst) == {"positions", "uncertainties"}
    assert max(worst.values()) < 1e-5
    run = client.get_run(trained)
    tags = run.data.tags
    assert tags["onnx_release.status"] == "released"
    assert tags["onnx_release.dag_run_url"].startswith(stack.context.airflow_url)


def test_the_client_of_the_demo_page_loads_the_model(stack: RunningStack, released: Dag) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (REPO / "docs" / "demo.md").read_text(), re.DOTALL)
    (block,) = [block for block in blocks if "load_model" in block]
    assert run_python(stack, "-c", block) == "(4, 2) (4, 2)"


def test_the_buttons_lead_to_what_was_made(stack: RunningStack, trained: str, released: Dag) -> None:
    links = {
        task: released.api.get(f"{released.path}/taskInstances/{task}/links")["extra_links"]
        for task in ("wait_for_training", "upload", "promote")
    }
    assert links["wait_for_training"]["Training run"].endswith(f"/runs/{trained}")
    assert links["upload"]["Objects"].endswith(f"/{trained}/{released.xcom('export')['sha256'][:16]}/")
    assert links["promote"]["Model version"].startswith(f"{stack.context.mlflow_url}/#/models/{MODEL_NAME}/versions/")


def test_the_run_leads_to_the_page_that_repeats_its_release(stack: RunningStack, client: Any, trained: str) -> None:
    url = client.get_run(trained).data.tags["onnx_release.rerun_url"]
    assert url.startswith(stack.context.airflow_url)
    login = {"username": stack.context.credentials.airflow_username}
    login["password"] = stack.context.credentials.airflow_password
    token = requests.post(f"{stack.context.airflow_url}/auth/token", json=login, timeout=120).json()["access_token"]
    assert "Start the release" in requests.get(url, cookies={"_token": token}, timeout=120).text
    script = requests.get(url.split("?")[0] + ".js", cookies={"_token": token}, timeout=120)
    assert script.ok
    assert requests.get(url, timeout=120).status_code == 401
    assert requests.get(url, cookies={"_token": token[:-3] + "abc"}, timeout=120).status_code in (401, 403)
    page = requests.get(url, headers={"Accept": "text/html"}, allow_redirects=False, timeout=120)
    assert "/auth/login?next=" in page.headers["location"]


def test_clearing_and_triggering_again_make_nothing_new(
    stack: RunningStack, client: Any, trained: str, released: Dag
) -> None:
    before = keys_of(stack, trained)
    assert before
    released.api.post(f"{released.path}/clear", {"dry_run": False, "only_failed": False})
    again = Dag(stack, "by-hand").trigger(training_run_id=trained, **QUICK)
    assert (released.end(), again.end()) == ("success", "success")
    assert len(versions(client, trained)) == 1
    assert keys_of(stack, trained) == before


def test_a_refused_model_leaves_nothing_and_is_not_retried(
    stack: RunningStack, client: Any, started: Started, small_runs: dict[str, str]
) -> None:
    run_id, dag = small_runs["refused/1"], started.refused
    assert dag.end() == "failed"
    states = dag.states()
    assert (states["parity_latency"], states["upload"], states["clean_work"]) == (
        "failed",
        "upstream_failed",
        "success",
    )
    assert dag.tries("parity_latency") == 1
    assert versions(client, run_id) == []
    assert keys_of(stack, run_id) == []
    tags = client.get_run(run_id).data.tags
    assert tags["onnx_release.status"] == "refused"
    assert "1e-12" in tags["onnx_release.reason"]


def test_a_running_training_is_waited_for_without_a_worker(client: Any, started: Started) -> None:
    dag = started.waiting
    run_id = dag.api.get(dag.path)["conf"]["training_run_id"]
    deadline = time.monotonic() + 60
    while dag.states().get("wait_for_training") != "deferred":
        assert time.monotonic() < deadline, dag.states()
        time.sleep(0.5)
    client.set_terminated(run_id, status="KILLED")
    assert dag.end() == "failed"
    assert "ended as KILLED" in client.get_run(run_id).data.tags["onnx_release.reason"]


def test_parameters_are_validated_before_anything_runs(stack: RunningStack) -> None:
    for conf, words in (({"training_run_id": "notanid"}, "32 hex digits"), ({"opset": 99}, "opset")):
        body = {"dag_run_id": "bad", "logical_date": None, "conf": conf}
        answer = stack.api.call("POST", f"/dags/{DAG_ID}/dagRuns", body)
        assert answer.status_code == 400
        assert words in answer.text
