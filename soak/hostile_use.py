"""Hostile use of the running stack: inputs, requests to its servers, and a training run that tries to run code."""

from __future__ import annotations

import json
import os
import pickle
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import requests

from onnx_release.training_runs import tags
from soak.airflow_state import ALIVE
from soak.case import Case
from soak.folders import Folders
from soak.hostile_files import MARKER, Payload
from soak.rig import EXPERIMENT, IMPORTS, Rig
from soak.scenario import Outcome, Scenario
from soak.statements import violations
from stack.http import TIMEOUT_S, session
from stack.layout import REPO
from stack.minio import MLFLOW_ACCOUNT, RELEASE_ACCOUNT, RELEASE_BUCKET, s3_client
from stack.release import DAG_ID

_PAGES = ("releases", "releases/0", "models/x", "models/x/compare", "run", "trigger", "trigger.js", "check")
_POLL_S = 1.0
_TEXT = "{{ conf }}"
_CONFS: dict[str, Any] = {
    "model_uri": ("file:///etc/passwd", "http://169.254.169.254/latest", "s3://other/model", "/etc", "models:/../../x"),
    "inputs_uri": ("file:///etc/x.npz", "http://169.254.169.254/x.npz", "models:/http://evil.test/x.npz", "/etc/x.npz"),
    "evaluation_uri": ("file:///etc/x.npz", "http://127.0.0.1/x.npz"),
    "training_run_id": ("../../etc/passwd", "<script>alert(1)</script>", "x' OR 1=1 --"),
    "model_name": ("../x", _TEXT, "a/b", "<b>"),
    "bucket": ("../x", _TEXT, "mlflow/../x"),
    "prefix": ("../x", _TEXT),
    "alias": ("../x", _TEXT, "v1"),
    "a_name_that_no_parameter_has": ("x",),
}
_HOSTILE_NAME = '<img src=x onerror=alert(1)>{{ 7 * 7 }}\n[x](javascript:alert(1))"; rm -rf /'
_MLMODEL = """flavors:
  pytorch:
    model_data: data
    pytorch_version: 2.0.0
signature:
  inputs: '[{"name": "x", "type": "tensor", "tensor-spec": {"dtype": "float32", "shape": [-1, 2]}}]'
"""

Try = Callable[[], bool]
"""Tries something forbidden and returns True if it was refused."""


def _inputs(_rig: Rig, _random: random.Random) -> Outcome:
    """Give every hostile file and name to its reader, in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        argv = [sys.executable, "-m", "soak.hostile", folder]
        done = subprocess.run(argv, cwd=REPO, env=os.environ | IMPORTS, capture_output=True, text=True, check=False)
    if done.returncode:
        return Outcome(problem=f"the process of the inputs ended: {done.stderr[-400:]}")
    found = json.loads(done.stdout.splitlines()[-1])
    return _outcome("hostile input", int(found["tried"]), list(found["accepted"]))


def _outcome(kind: str, tried: int, accepted: list[str]) -> Outcome:
    problem = f"not refused: {'; '.join(accepted)}" if accepted else ""
    return Outcome(injected={kind: tried}, survived=tried - len(accepted), problem=problem)


def _requests(rig: Rig, _random: random.Random) -> Outcome:
    """Send forbidden requests to Airflow, to the pages and to the store."""
    tries = {**dict(_triggers(rig)), **dict(_strangers(rig)), **dict(_store(rig))}
    return _outcome("hostile request", len(tries), [name for name, refused in tries.items() if not refused()])


def _triggers(rig: Rig) -> Iterator[tuple[str, Try]]:
    """Yield triggers with hostile parameters. Those that Airflow accepts are refused by their first task."""
    training_run = rig.take()
    for name, texts in _CONFS.items():
        for text in texts:
            conf = {"training_run_id": training_run} | {name: text}
            yield f"trigger with {name} {text}", partial(_no_release, rig, conf)


def _no_release(rig: Rig, conf: dict[str, Any]) -> bool:
    api = rig.api
    answer = api.call("POST", f"/dags/{DAG_ID}/dagRuns", {"logical_date": None, "conf": conf})
    if not answer.ok:
        return bool(answer.status_code < requests.codes.server_error)
    path = f"/dags/{DAG_ID}/dagRuns/{quote(answer.json()['dag_run_id'], safe='')}"
    while (state := api.get(path)["state"]) in ALIVE:
        time.sleep(_POLL_S)
    return str(state) == "failed"


def _strangers(rig: Rig) -> Iterator[tuple[str, Try]]:
    """Yield requests to the pages and the API without a login, and one from another site."""
    root = rig.context.airflow_url
    addresses = {"GET": [*(f"/onnx-release/{page}" for page in _PAGES), f"/api/v2/dags/{DAG_ID}/dagRuns"]}
    addresses["POST"] = ["/onnx-release/check", f"/api/v2/dags/{DAG_ID}/dagRuns"]
    for method, paths in addresses.items():
        for path in paths:
            yield f"{method} {path} without a login", _denied(method, f"{root}{path}", {})
    forged = {"Authorization": "Bearer forged", "Content-Type": "application/json"}
    yield "a forged token", _denied("GET", f"{root}/onnx-release/releases", forged)
    api = rig.api
    api.get("/version")
    foreign = {**api.headers, "Content-Type": "text/plain"}
    yield "a form of another site", _denied("POST", f"{root}/onnx-release/check", foreign)
    foreign = {**api.headers, "Content-Type": "application/json", "Origin": "https://evil.test"}
    yield "a script of another site", _denied("POST", f"{root}/onnx-release/check", foreign)


def _denied(method: str, url: str, headers: dict[str, str]) -> Try:
    def refused() -> bool:
        answer = session().request(method, url, headers=headers, data="{}", timeout=TIMEOUT_S, allow_redirects=False)
        return answer.status_code in (requests.codes.unauthorized, requests.codes.forbidden)

    return refused


def _store(rig: Rig) -> Iterator[tuple[str, Try]]:
    """Yield calls that the policies of the two accounts do not allow."""
    secrets = rig.context.credentials
    accounts = {
        RELEASE_ACCOUNT: (secrets.release_secret_key, "mlflow"),
        MLFLOW_ACCOUNT: (secrets.mlflow_secret_key, RELEASE_BUCKET),
    }
    for account, (key, foreign) in accounts.items():
        client = s3_client(rig.context, account, key)
        calls: dict[str, Callable[[], Any]] = {
            "list": partial(client.list_objects_v2, Bucket=foreign),
            "read": partial(client.get_object, Bucket=foreign, Key="x"),
            "write": partial(client.put_object, Bucket=foreign, Key="x", Body=b"x"),
            "delete": partial(client.delete_object, Bucket=foreign, Key="x"),
            "delete the bucket": partial(client.delete_bucket, Bucket=foreign),
            "create a bucket": partial(client.create_bucket, Bucket="soak-forbidden"),
        }
        for name, call in calls.items():
            yield f"{account}: {name} in {foreign}", _access_denied(call)


def _access_denied(call: Callable[[], Any]) -> Try:
    def refused() -> bool:
        from botocore.exceptions import ClientError

        try:
            call()
        except ClientError as error:
            return str(error.response["Error"]["Code"]) in ("AccessDenied", "403")
        return False

    return refused


def _training_run(rig: Rig, _random: random.Random) -> Outcome:
    """Release a run with a hostile name whose model is a pickle that runs code. It must be refused."""
    experiment = rig.client.get_experiment_by_name(EXPERIMENT).experiment_id
    run = rig.client.create_run(experiment, run_name=_HOSTILE_NAME, tags={tags.FACTORY: "os:system", "note": _TEXT})
    case = Case(rig, run.info.run_id)
    marker = rig.disk / MARKER
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "model")
        (model / "data").mkdir(parents=True)
        (model / "MLmodel").write_text(_MLMODEL)
        (model / "data" / "model.pth").write_bytes(pickle.dumps(Payload(rig.disk)))
        rig.client.log_artifacts(run.info.run_id, str(model), "model")
    rig.client.set_terminated(run.info.run_id)
    case.trigger().await_end()
    answer = case.answer()
    outcome = _outcome("hostile training run", 1, [])
    if answer.get(tags.STATUS) != "refused" or marker.exists():
        code = " and its code has run" if marker.exists() else ""
        outcome = _outcome("hostile training run", 1, [f"the run is {answer.get(tags.STATUS)!r}{code}"])
    outcome.violations = violations(rig.places(Folders()), [run.info.run_id], [case.model_name])
    return outcome


SCENARIOS = [
    Scenario(name="hostile inputs", kind="hostile input", run=_inputs),
    Scenario(name="hostile requests", kind="hostile request", run=_requests),
    Scenario(name="hostile training run", kind="hostile training run", run=_training_run),
]
