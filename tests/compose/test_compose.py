"""docker-compose.yaml, really run: two workers that share no disk, one of them killed, and two versions that are right.

The tests build on each other, in the order of the file.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from airflow_onnx import defaults
from deploy.compose import REPO, Container, docker
from deploy.env import SECRETS
from onnx_release import limits
from onnx_release.artifact.digests import describe_folder, folder_sha256
from stack.minio import RELEASE_BUCKET, s3_client
from stack.training import MODEL_NAME
from tests.system.embedded import QUICK

from .conftest import WORKERS
from .deployment import DagRun, Deployment, inside, sha256, wait_for

pytestmark = [pytest.mark.compose, pytest.mark.timeout(1500)]

RELEASE_TIMEOUT_S = 420.0
ONCE = {"minio-setup", "airflow-init"}
# MinIO's own image runs as root, here without any of root's capabilities.
ROOT = {"minio", *ONCE}
BUCKETS = {
    "onnx-release": {RELEASE_BUCKET, "onnx-staging"},
    "mlflow": {"mlflow"},
    "airflow-logs": {"airflow-logs"},
}


@pytest.fixture(scope="module")
def client(deployment: Deployment) -> Any:
    import mlflow

    url = deployment.context().mlflow_url
    return mlflow.MlflowClient(url, url)


def only(deployment: Deployment, service: str) -> Container:
    (found,) = deployment.project.containers(service)
    return found


def require_right(deployment: Deployment, client: Any, run: DagRun, training_run_id: str, folder: Path) -> None:
    """Check that the run has one version, that the alias leads to it, and that its bytes are those that were tested."""
    (version,) = client.search_model_versions(f"name='{MODEL_NAME}' and run_id='{training_run_id}'")
    assert client.get_model_version_by_alias(MODEL_NAME, defaults.ALIAS).version == version.version
    exported = run.xcom("export")
    assert version.tags["onnx.sha256"] == exported["sha256"]
    bucket, _, prefix = version.source.removeprefix("s3://").partition("/")
    for key in deployment.keys(bucket):
        if key.startswith(f"{prefix}/"):
            target = folder / key.removeprefix(f"{prefix}/")
            target.parent.mkdir(parents=True, exist_ok=True)
            deployment.s3.download_file(bucket, key, str(target))
    files = [file for file in describe_folder(folder) if file.path not in limits.REPORTS]
    assert folder_sha256(files) == exported["sha256"]


def test_every_port_is_on_loopback(deployment: Deployment) -> None:
    bindings = [
        binding
        for container in deployment.project.containers()
        for bound in (container.facts["NetworkSettings"]["Ports"] or {}).values()
        for binding in bound or []
    ]
    assert len(bindings) == 4
    assert {binding["HostIp"] for binding in bindings} == {"127.0.0.1"}


def test_nobody_runs_as_root_or_without_a_limit(deployment: Deployment) -> None:
    containers = deployment.project.containers()
    for container in containers:
        assert container.facts["HostConfig"]["Memory"] > 0, container
        assert container.facts["HostConfig"]["CapDrop"] == ["ALL"], container
        if container.service not in ROOT:
            command = [docker(), "top", container.id, "-eo", "pid,uid"]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            assert all(line.split()[1] != "0" for line in done.stdout.splitlines()), container


def test_workers_share_no_disk(deployment: Deployment) -> None:
    workers = deployment.workers()
    assert len(workers) == WORKERS
    for worker in workers.values():
        assert worker.facts["Mounts"] == []
        assert worker.facts["HostConfig"]["NetworkMode"] != "host"
    first, second = workers.values()
    assert inside(first, "touch", "/opt/airflow/logs/mine").returncode == 0
    assert inside(second, "test", "-e", "/opt/airflow/logs/mine").returncode == 1


def test_the_dags_are_those_of_the_repository(deployment: Deployment) -> None:
    expected = {path.name: sha256(path) for path in (REPO / "dags").glob("*.py")}
    for container in [*deployment.workers().values(), only(deployment, "airflow-dag-processor")]:
        lines = inside(container, "sh", "-c", "cd dags && sha256sum *.py").stdout.splitlines()
        assert {line.split()[1]: line.split()[0] for line in lines} == expected


def test_a_worker_holds_only_the_secrets_that_it_needs(deployment: Deployment) -> None:
    for worker in deployment.workers().values():
        environment = "\n".join(worker.facts["Config"]["Env"])
        held = {name for name in SECRETS if deployment.secrets[name] in environment}
        assert held == {"REDIS_PASSWORD", "CELERY_DB_PASSWORD", "AIRFLOW_API_SECRET_KEY"}


@pytest.mark.parametrize("account", BUCKETS)
def test_an_account_reaches_its_own_buckets_alone(deployment: Deployment, account: str) -> None:
    s3 = s3_client(deployment.context(account))
    for bucket in set().union(*BUCKETS.values()):
        if bucket in BUCKETS[account]:
            s3.put_object(Bucket=bucket, Key="probe/object", Body=b"x")
            assert s3.get_object(Bucket=bucket, Key="probe/object")["Body"].read() == b"x"
            continue
        for call in (s3.list_objects_v2, s3.put_object, s3.get_object, s3.delete_object):
            what = {} if call == s3.list_objects_v2 else {"Key": "probe/object"}
            with pytest.raises(ClientError, match="AccessDenied"):
                call(Bucket=bucket, **what)
    for bucket in BUCKETS[account] - {"airflow-logs"}:
        s3.delete_object(Bucket=bucket, Key="probe/object")


@pytest.mark.parametrize(("role", "database"), [("celery", "airflow"), ("mlflow", "airflow"), ("celery", "mlflow")])
def test_a_database_role_reaches_its_own_database_alone(deployment: Deployment, role: str, database: str) -> None:
    postgres = only(deployment, "postgres")
    query = ("psql", "--host=127.0.0.1", f"--username={role}", "--command=SELECT 1", "--no-password")
    password = deployment.secrets[f"{role.upper()}_DB_PASSWORD"]
    asked = {name: inside(postgres, "env", f"PGPASSWORD={password}", *query, name) for name in (role, database)}
    assert asked[role].returncode == 0, asked[role].stderr
    assert "permission denied for database" in asked[database].stderr


def test_a_training_run_is_released_by_itself_and_on_both_workers(
    deployment: Deployment, client: Any, tmp_path: Path
) -> None:
    workers = set(deployment.workers())
    # A task goes to the worker that has waited longest, so one seldom takes all of a release; of three it never does.
    for seed in (1, 2, 3):
        training_run_id = deployment.train("demo", seed)
        run = DagRun(deployment.api, f"release__{training_run_id}")
        wait_for("the watch", run.exists, 120)
        run.succeed(RELEASE_TIMEOUT_S)
        require_right(deployment, client, run, training_run_id, tmp_path / str(seed))
        assert run.hosts() <= workers
        if run.hosts() == workers:
            break
    assert run.hosts() == workers
    assert "s3://airflow-logs/" in run.log("export"), "the log has gone to MinIO"


def test_a_release_outlives_the_worker_that_is_killed_under_it(
    deployment: Deployment, client: Any, tmp_path: Path
) -> None:
    training_run_id = deployment.train("by-hand", 11)
    run = DagRun(deployment.api, f"release__{training_run_id}").trigger(training_run_id=training_run_id, **QUICK)
    host = wait_for("the measurement", lambda: run.running_on("parity_latency"), RELEASE_TIMEOUT_S)
    (survivor,) = set(deployment.workers()) - {host}
    subprocess.run([docker(), "kill", "--signal", "KILL", host], check=True, capture_output=True)
    run.succeed(RELEASE_TIMEOUT_S)
    first, *_, last = run.tries("parity_latency")
    assert (first["hostname"], first["state"]) == (host, "failed")
    assert (last["hostname"], last["state"]) == (survivor, "success")
    assert set(deployment.workers()) == {survivor}, "nobody has started it again meanwhile"
    require_right(deployment, client, run, training_run_id, tmp_path)
    for name, task in run.tasks().items():
        if task["hostname"] == host and task["state"] == "success":
            assert "s3://airflow-logs/" in run.log(name, task["try_number"]), "logs outlive their worker"


def test_the_log_of_a_running_task_comes_from_its_worker(deployment: Deployment, client: Any) -> None:
    training_run_id = client.get_model_version_by_alias(MODEL_NAME, defaults.ALIAS).run_id
    run = DagRun(deployment.api, "again").trigger(training_run_id=training_run_id, **QUICK)
    host = wait_for("the export", lambda: run.running_on("export"), RELEASE_TIMEOUT_S)
    wait_for("its log", lambda: f"http://{host}:8793/" in run.log("export"), 30)
    run.succeed(RELEASE_TIMEOUT_S)
    wanted = f"name='{MODEL_NAME}' and run_id='{training_run_id}'"
    assert len(client.search_model_versions(wanted)) == 1, "the same bytes, the same version"


def test_nothing_is_left_staged(deployment: Deployment) -> None:
    assert deployment.keys("onnx-staging") == []


def test_a_third_worker_joins_and_the_killed_one_is_replaced(deployment: Deployment) -> None:
    deployment.project.scale("airflow-worker", 3)
    assert len(deployment.workers()) == 3


def test_nothing_is_left_when_it_is_torn_down(deployment: Deployment) -> None:
    mounts = [mount for container in deployment.project.containers() for mount in container.facts["Mounts"]]
    deployment.project.run("down", "--volumes", "--remove-orphans")
    label = f"label=com.docker.compose.project={deployment.project.name}"
    for kind in (["ps", "--all"], ["volume", "ls"], ["network", "ls"]):
        command = [docker(), *kind, "--quiet", "--filter", label]
        assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "", kind
    command = [docker(), "volume", "ls", "--quiet"]
    there = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert not {mount["Name"] for mount in mounts if mount["Type"] == "volume"} & set(there)
