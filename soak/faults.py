"""Faults between the workers and the servers, in every step of a release that talks to them."""

from __future__ import annotations

import dataclasses
import random
from collections import Counter
from collections.abc import Callable
from functools import partial

from onnx_release.training_runs import tags
from soak.case import Case
from soak.fault_proxy import Fault
from soak.rig import Rig
from soak.scenario import Outcome, Scenario
from stack.minio import RELEASE_BUCKET

# Requests of the steps: objects and listings in MinIO, calls and files in MLflow.
_LIST = r"\?.*list-type=2"
_RUNS = r"/mlflow/runs/"
_CREATE = r"/model-versions/create"
_ALIAS = r"/registered-models/alias"
_LOG = r"/runs/log-batch"
_OUTAGE = "outage longer than the retries"
# The width of a model with more than one part of an upload.
_WIDE = 600_000

MINIO = {
    "upload refused, download flipped": lambda: [
        Fault(kind="refused", method="PUT", times=6),
        Fault(kind="flipped download", method="GET", path=r"model\.onnx"),
    ],
    "upload 503, download cut": lambda: [
        Fault(kind="status", method="PUT", status=503, times=5),
        Fault(kind="cut download", method="GET", path=r"model\.onnx", size=100, times=2),
    ],
    "upload cut, download slow": lambda: [
        Fault(kind="cut upload", method="PUT", size=300, times=2),
        Fault(kind="slow", method="GET", path=r"model\.onnx", seconds=5, times=2),
    ],
    "upload flipped, listing 503": lambda: [
        Fault(kind="flipped upload", method="PUT"),
        Fault(kind="status", method="GET", path=_LIST, status=503, times=4),
    ],
    "model cut and flipped": lambda: [
        Fault(kind="cut download", method="GET", path=r"model\.pt2", size=500),
        Fault(kind="flipped download", method="GET", path=r"model\.pt2"),
    ],
    "upload's answers lost, download without an answer": lambda: [
        Fault(kind="lost", method="PUT", times=2),
        Fault(kind="timeout", method="GET", path=r"model\.onnx", seconds=20, times=2),
    ],
}
MLFLOW = {
    "refused from the start on": lambda: [Fault(kind="refused", path=_RUNS, times=6)],
    "500 when the version is created": lambda: [Fault(kind="status", path=_CREATE, status=500, times=4)],
    "answer lost after the version was created": lambda: [Fault(kind="lost", path=_CREATE)],
    "no answer to the log": lambda: [Fault(kind="timeout", path=_LOG, seconds=20, times=2)],
    "answer lost after the alias moved, then 500": lambda: [
        Fault(kind="lost", method="POST", path=_ALIAS),
        Fault(kind="status", path=_LOG, status=500, times=6, after=2),
    ],
    "slow everywhere": lambda: [Fault(kind="slow", seconds=2, times=15)],
}


def _faults(server: str, make: Callable[[], list[Fault]], width: int, rig: Rig, _random: random.Random) -> Outcome:
    """Release one training run while its requests meet the faults.

    :param width: the width of its model, 0 for that of the spare training runs.
    """
    case = Case(rig, *rig.train(1, width)) if width else Case(rig, rig.take())
    plan = rig.minio if server == "MinIO" else rig.mlflow
    faults = make()
    for fault in faults:
        fault.about = case.about
        plan.add(fault)
    try:
        case.trigger().await_end()
    finally:
        for fault in faults:
            plan.remove(fault)
    injected: Counter[str] = Counter()
    for fault in faults:
        name = str(fault.status) if fault.kind == "status" else fault.kind
        injected[f"{server}: {name}"] += fault.injected
    problem = "" if all(fault.injected for fault in faults) else "a fault met no request"
    return case.outcome(dict(+injected), problem)


def _multipart() -> list[Fault]:
    return [
        Fault(kind="status", method="PUT", path="partNumber=2", status=503, times=3),
        Fault(kind="lost", method="POST", path="uploadId="),
    ]


def _deleted(rig: Rig, _random: random.Random) -> Outcome:
    """Delete an object between its registration and the promotion. Clear the upload as the message says."""
    case = Case(rig, rig.take())
    held = rig.mlflow.add(Fault(kind="slow", path=_CREATE, seconds=15, about=case.about))
    case.trigger()
    uploaded = case.await_task("upload", "success")
    deleted = 0
    if uploaded and case.await_task("register", "running"):
        while not held.injected and case.await_task("register", "running", "success"):
            pass
        pages = rig.store.get_paginator("list_objects_v2").paginate(Bucket=RELEASE_BUCKET, Prefix=f"{case.model_name}/")
        for key in (item["Key"] for page in pages for item in page["Contents"] if item["Key"].endswith("model.onnx")):
            rig.store.delete_object(Bucket=RELEASE_BUCKET, Key=key)
            deleted += 1
    rig.mlflow.remove(held)
    case.await_end()
    answer = case.answer()
    problem = "" if answer.get(tags.REASON_CODE) == "objects_changed" else f"not refused: {answer.get(tags.STATUS)}"
    case.clear("upload")
    case.await_end()
    return case.outcome({"MinIO: object deleted": deleted}, problem)


def _two_at_once(rig: Rig, _random: random.Random) -> Outcome:
    """Start two DAG runs of one training run. Both create their version in the same seconds."""
    case = Case(rig, rig.take())
    slow = rig.mlflow.add(Fault(kind="slow", path=_CREATE, seconds=20, times=2, about=case.about))
    case.trigger().trigger()
    states = case.await_end()
    rig.mlflow.remove(slow)
    problem = "" if states == ["success", "success"] else f"the DAG runs ended as {states}"
    return case.outcome({"two releases of one run": 1}, problem)


def _outage(kind: str, begins: str, fault: Fault, word: str, rig: Rig, _random: random.Random) -> Outcome:
    """Let an outage begin while a task runs and outlast every retry. After its end and a clear, the release goes on.

    :param kind: the row of the table, which begins with the server.
    :param word: a word of the reason on the training run. Empty for an outage after the last tag could be written.
    """
    case = Case(rig, rig.take())
    plan = rig.minio if kind.startswith("MinIO") else rig.mlflow
    outage = dataclasses.replace(fault, about=case.about, times=10**6)
    case.trigger().await_task(begins, "running")
    plan.add(outage)
    # The clean-up of the release goes on until the server answers.
    case.await_task("promote", "failed", "upstream_failed", "success")
    plan.remove(outage)
    before = case.await_end()
    reason = case.answer().get(tags.REASON, "")
    problem = "" if word in reason else f"the reason is not the fault: {reason}"
    untrue = case.outcome({}, "the training run has the outcome of the outage").violations
    if "failed" in before:
        case.clear(only_failed=False)
        case.await_end()
    outcome = case.outcome({kind: 1}, problem)
    outcome.violations = [*untrue, *outcome.violations]
    return outcome


def _of(server: str, faults: dict[str, Callable[[], list[Fault]]]) -> list[Scenario]:
    return [
        Scenario(name=f"{server}: {name}", kind=server, run=partial(_faults, server, make, 0))
        for name, make in faults.items()
    ]


SCENARIOS = [
    Scenario(
        name="MLflow: outage from the promotion on",
        kind="outage",
        run=partial(_outage, f"MLflow: {_OUTAGE}", "upload", Fault(kind="status", path=_LOG, status=500), ""),
    ),
    Scenario(
        name="MinIO: outage of the upload",
        kind="outage",
        run=partial(_outage, f"MinIO: {_OUTAGE}", "parity_latency", Fault(kind="refused"), "reached"),
    ),
    Scenario(
        name="MinIO: worker's clock a day wrong",
        kind="outage",
        run=partial(
            _outage,
            "MinIO: worker's clock a day wrong",
            "parity_latency",
            Fault(kind="clock", seconds=86_400.0),
            "clock",
        ),
    ),
    *_of("MinIO", MINIO),
    *_of("MLflow", MLFLOW),
    Scenario(name="MinIO: multipart", kind="MinIO", run=partial(_faults, "MinIO", _multipart, _WIDE)),
    Scenario(name="MinIO: object deleted", kind="MinIO", run=_deleted),
    Scenario(name="two DAG runs of one training run", kind="two releases of one run", run=_two_at_once),
]
