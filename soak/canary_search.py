"""Search of the whole stack for its own secrets and for planted ones, after all releases and faults."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import re
import secrets
import subprocess
import threading
from collections.abc import Iterator
from urllib.parse import quote

import psutil  # type: ignore[import-untyped]

from onnx_release.training_runs import tags
from soak.canaries import Canaries
from soak.rig import EXPERIMENT, Rig
from soak.scenario import Outcome, Scenario
from stack import postgres, processes, services, signing
from stack.environment import clean_environment
from stack.minio import BUCKETS, NAME, s3_client
from stack.mlflow_server import NAME as MLFLOW
from stack.release import DAG_ID

# The servers whose environment has a secret by design.
_WITH_SECRETS = {NAME: {"minio_secret_key"}, MLFLOW: {"mlflow_secret_key"}}
_SAMPLE_S = 1.0
_BLOCK_BYTES = 2**22
_RUNS_MAX = 20


def planted(rig: Rig) -> dict[str, str]:
    """Return the secrets of a stack by name."""
    found = {name: str(text) for name, text in dataclasses.asdict(rig.context.credentials).items()}
    for name in ("airflow_username", "minio_access_key"):
        del found[name]
    # The second line of the file is in no other key.
    found["signing key"] = (rig.context.layout.home / signing.PRIVATE).read_text().splitlines()[1]
    return found | rig.planted


def plant(rig: Rig) -> None:
    """Store a secret in a variable and in a connection of Airflow that no release uses."""
    rig.planted.update({name: f"canary-{secrets.token_hex(16)}" for name in ("variable", "connection")})
    rig.api.post("/variables", {"key": "soak_canary", "value": rig.planted["variable"]})
    rig.api.put_connection(
        {"connection_id": "soak_canary", "conn_type": "generic", "password": rig.planted["connection"]}
    )


@contextlib.contextmanager
def watched_children(rig: Rig) -> Iterator[None]:
    """Search the environments of the processes that tasks start, while the block runs."""
    canaries, ended = Canaries(planted(rig)), threading.Event()

    def sample() -> None:
        while not ended.wait(_SAMPLE_S):
            pids = list(_children_of_tasks())
            rig.children.update(pids)
            rig.leaks.update(canaries.in_environments(pids))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


def _children_of_tasks() -> Iterator[int]:
    """Yield the processes below tasks that run a program of their own. A fork still has the text of its parent."""
    for process in psutil.process_iter(["cmdline"]):
        line = process.info["cmdline"]
        if re.match("airflow worker -- [0-9a-f-]{36}", " ".join(line or ())):
            with contextlib.suppress(psutil.Error):
                for child in process.children(recursive=True):
                    if child.cmdline() not in (line, []):
                        yield child.pid


def _search(rig: Rig, _random: random.Random) -> Outcome:
    """Search everything that the soak has written, the pages, and the environments of the services."""
    names = planted(rig)
    canaries, layout = Canaries(names), rig.context.layout
    store = s3_client(rig.context)
    found = [
        *canaries.in_folders(layout.logs, layout.airflow_home / "logs", rig.disk),
        *(place for name in (postgres.AIRFLOW, postgres.MLFLOW) for place in _in_database(rig, canaries, name)),
        *(place for bucket in BUCKETS for place in canaries.in_objects(store, bucket)),
        *_in_pages(rig, canaries),
        *_in_services(rig, canaries),
        *sorted(rig.leaks),
    ]
    problem = f"found: {'; '.join(found[:20])}" if found else ""
    hit = {place.rpartition(": ")[2] for place in found}
    return Outcome(
        injected={"secret": len(names)}, survived=len(names) - len(hit), canaries=len(found), problem=problem,
        figures={"children of tasks looked at": len(rig.children)},
    )  # fmt: skip


def _in_database(rig: Rig, canaries: Canaries, name: str) -> Iterator[str]:
    argv = [postgres.program("pg_dump"), "--host", str(postgres.socket_folder(rig.context.layout))]
    argv += ["--username", "postgres", name]
    with subprocess.Popen(argv, env=clean_environment(), stdout=subprocess.PIPE) as dump:
        stream = dump.stdout
        if stream is not None:
            yield from dict.fromkeys(
                canaries.in_blocks(f"database {name}", iter(lambda: stream.read(_BLOCK_BYTES), b""))
            )
    if dump.returncode:
        raise ChildProcessError(f"pg_dump of the database {name} ended with status {dump.returncode}")


def _in_pages(rig: Rig, canaries: Canaries) -> Iterator[str]:
    """Yield the secrets in the pages of releases and in Airflow's answers about them."""
    api, client = rig.api, rig.client
    experiment = client.get_experiment_by_name(EXPERIMENT).experiment_id
    runs = client.search_runs([experiment], f"tags.`{tags.STATUS}` != ''", max_results=_RUNS_MAX)
    models = {run.data.tags.get(tags.REGISTERED_MODEL, "") for run in runs} - {""}
    paths = ["/onnx-release/releases", "/onnx-release/check", "/onnx-release/trigger"]
    paths += [f"/onnx-release/releases/{run.info.run_id}" for run in runs]
    paths += [f"/onnx-release/models/{quote(model)}" for model in sorted(models)]
    paths += ["/api/v2/connections", "/api/v2/variables", "/api/v2/eventLogs", "/api/v2/config"]
    paths += [f"/api/v2/dags/{DAG_ID}/dagRuns", f"/api/v2/dags/{DAG_ID}/dagRuns/~/taskInstances"]
    for path in paths:
        own = {"variable"} if path.endswith("/variables") else set()
        for place in canaries.in_text(f"page {path}", api.call_page("GET", path).content):
            # Airflow shows a variable to those who may read it, unless its name is that of a secret.
            if place.rpartition(": ")[2] not in own:
                yield place


def _in_services(rig: Rig, canaries: Canaries) -> Iterator[str]:
    for name in services.NAMES:
        record = processes.find(rig.context.layout, name)
        if record is None:
            continue
        allowed = _WITH_SECRETS.get(name, set()) | {"environment"}
        for place in canaries.in_environments([record.pid]):
            if place.rpartition(": ")[2] not in allowed:
                yield f"{name}, {place}"


SCENARIOS = [Scenario(name="canaries", kind="secret", run=_search, last=True)]
