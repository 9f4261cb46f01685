"""Services of the embedded stack: loopback only, private secrets, the set-up, and the state after a stop."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import psutil  # type: ignore[import-untyped]
import pytest
import requests
from botocore.exceptions import ClientError

from airflow_onnx import defaults
from stack import minio, processes, services, supervisor
from stack.airflow_api import AirflowApi
from stack.minio import RELEASE_BUCKET
from stack.ports import free_ports
from stack.release import Release

from .embedded import RunningStack, processes_of, run_stack

pytestmark = pytest.mark.system


def test_everything_listens_on_loopback_only(running_stack: RunningStack) -> None:
    listening = set()
    for process in processes_of(running_stack.context.layout.home):
        with contextlib.suppress(psutil.NoSuchProcess, FileNotFoundError):  # the database's children come and go
            found = process.net_connections("inet")
            listening |= {connection.laddr for connection in found if connection.status == psutil.CONN_LISTEN}
    ports = running_stack.context.ports
    assert {ports.airflow, ports.mlflow, ports.minio} <= {address.port for address in listening}
    assert {address.ip for address in listening} == {"127.0.0.1"}


def test_the_exports_are_private_and_work_in_a_shell(running_stack: RunningStack) -> None:
    path = running_stack.context.layout.env_file
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    script = f"source {shlex.quote(str(path))} && env -0"
    shell = subprocess.run(["bash", "-c", script], env={"PATH": os.environ["PATH"]}, capture_output=True, check=True)
    seen = dict(line.split("=", 1) for line in shell.stdout.decode().split("\0") if line)
    names = "MLFLOW_TRACKING_URI MLFLOW_S3_ENDPOINT_URL AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY AWS_DEFAULT_REGION "
    names += "AIRFLOW_API_URL AIRFLOW_USERNAME AIRFLOW_PASSWORD AIRFLOW_HOME"
    assert all(seen.get(name) for name in names.split())
    assert {name: seen[name] for name in running_stack.env} == running_stack.env


def test_no_secret_is_in_a_command_line_or_a_log(running_stack: RunningStack) -> None:
    secrets = running_stack.context.credentials
    hidden = [secrets.airflow_password, secrets.minio_secret_key, secrets.jwt_secret, secrets.fernet_key]
    hidden += [secrets.release_secret_key, secrets.mlflow_secret_key]
    layout = running_stack.context.layout
    texts = {str(process.pid): " ".join(process.cmdline()) for process in processes_of(layout.home)}
    texts |= {path.name: path.read_text(errors="replace") for path in layout.logs.iterdir()}
    assert len(texts) > len(services.NAMES)
    assert [name for name, text in texts.items() for secret in hidden if secret in text] == []


def test_airflow_wants_the_password(running_stack: RunningStack) -> None:
    url = running_stack.context.airflow_url
    wrong = {"username": running_stack.context.credentials.airflow_username, "password": "guess"}
    assert requests.post(f"{url}/auth/token", json=wrong, timeout=120).status_code == 401
    assert requests.get(f"{url}/api/v2/connections", timeout=120).status_code == 401


def test_connections_and_the_pools_are_there(running_stack: RunningStack) -> None:
    found = {row["connection_id"]: row for row in running_stack.api.get("/connections")["connections"]}
    context = running_stack.context
    assert f"{found['mlflow_default']['host']}:{found['mlflow_default']['port']}" == context.mlflow_url
    assert found["minio_default"]["login"] == minio.RELEASE_ACCOUNT
    assert json.loads(found["minio_default"]["extra"])["endpoint_url"] == context.minio_url
    names = (defaults.MEASURE_POOL, defaults.EXPORT_POOL, defaults.WATCH_POOL)
    # Four slots of the executor: two are left for all other tasks.
    assert [running_stack.api.get(f"/pools/{name}")["slots"] for name in names] == [1, 1, defaults.WATCH_SLOTS]


def test_airflow_knows_the_connection_type_and_its_test_button_works(running_stack: RunningStack) -> None:
    url, secrets = running_stack.context.airflow_url, running_stack.context.credentials
    login = {"username": secrets.airflow_username, "password": secrets.airflow_password}
    token = requests.post(f"{url}/auth/token", json=login, timeout=120).json()["access_token"]
    # What the UI's connection form is made from; the public API does not tell it.
    forms = requests.get(f"{url}/ui/connections/hook_meta", headers={"Authorization": f"Bearer {token}"}, timeout=120)
    assert {"mlflow", "s3store", "aws"} <= {row["connection_type"] for row in forms.json()}
    for name in ("mlflow_default", "minio_default"):
        # The body that the button in the list of connections sends.
        stored = running_stack.api.get(f"/connections/{name}")
        body = {"connection_id": name, "conn_type": stored["conn_type"], "port": int(stored["port"] or 0)}
        body |= {key: stored[key] or "" for key in ("description", "host", "login", "password", "schema")}
        answer = running_stack.api.post("/connections/test", body | {"extra": stored["extra"] or "{}"})
        assert answer["status"] is True, answer["message"]


def test_the_scheduler_has_imported_the_libraries_of_the_tasks(running_stack: RunningStack) -> None:
    record = processes.find(running_stack.context.layout, "airflow-scheduler")
    assert record
    assert any("libtorch" in mapped.path for mapped in psutil.Process(record.pid).memory_maps())


def test_the_plugin_is_loaded_once(running_stack: RunningStack) -> None:
    names = [row["name"] for row in running_stack.api.get("/plugins")["plugins"]]
    assert names.count("airflow_onnx") == 1, names


def test_artifacts_reach_minio_through_mlflow(running_stack: RunningStack) -> None:
    code = "import mlflow\nwith mlflow.start_run():\n    mlflow.log_text('hello', 'note.txt')\n"
    environment = {name: value for name, value in running_stack.child_env().items() if not name.startswith("AWS_")}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True, capture_output=True, timeout=120)
    keys = [row["Key"] for row in running_stack.s3.list_objects_v2(Bucket="mlflow")["Contents"]]
    assert any(key.endswith("/artifacts/note.txt") for key in keys)


def test_the_account_of_airflow_reaches_its_bucket_and_nothing_else(running_stack: RunningStack) -> None:
    credentials = running_stack.context.credentials
    keys = {"minio_access_key": minio.RELEASE_ACCOUNT, "minio_secret_key": credentials.release_secret_key}
    client = minio.s3_client(replace(running_stack.context, credentials=replace(credentials, **keys)))
    client.put_object(Bucket=RELEASE_BUCKET, Key="mine", Body=b"mine")
    client.delete_object(Bucket=RELEASE_BUCKET, Key="mine")
    denied = (
        lambda: client.list_objects_v2(Bucket="mlflow"),
        lambda: client.put_object(Bucket="mlflow", Key="x", Body=b"x"),
        lambda: client.create_bucket(Bucket="another"),
        lambda: client.delete_bucket(Bucket=RELEASE_BUCKET),
    )
    for call in denied:
        with pytest.raises(ClientError, match="AccessDenied"):
            call()


def test_fifty_triggers_at_the_same_time_make_fifty_dag_runs(running_stack: RunningStack) -> None:
    api = running_stack.api
    Release(api, "none").await_dags()
    api.patch("/dags/release_onnx?update_mask=is_paused", {"is_paused": True})
    names = [f"burst-{number}" for number in range(50)]

    def trigger(name: str) -> int:
        body = {"dag_run_id": name, "conf": {"training_run_id": "0" * 32}, "logical_date": None}
        return running_stack.api.call("POST", "/dags/release_onnx/dagRuns", body).status_code

    try:
        before = {name: processes.find(running_stack.context.layout, name) for name in services.NAMES}
        with ThreadPoolExecutor(len(names)) as pool:
            assert set(pool.map(trigger, names)) == {200}
        found = api.get("/dags/release_onnx/dagRuns", limit=100, run_id_pattern="burst-")["dag_runs"]
        assert sorted(row["dag_run_id"] for row in found) == sorted(names)
        assert {name: processes.find(running_stack.context.layout, name) for name in services.NAMES} == before
    finally:
        for name in names:
            api.call("DELETE", f"/dags/release_onnx/dagRuns/{name}")
        api.patch("/dags/release_onnx?update_mask=is_paused", {"is_paused": False})


def test_a_killed_service_is_started_again_and_the_status_counts_it(running_stack: RunningStack) -> None:
    layout = running_stack.context.layout
    killed = processes.find(layout, "airflow-triggerer")
    assert killed is not None
    os.killpg(killed.pid, signal.SIGKILL)
    deadline = time.monotonic() + 120
    while killed.is_alive() or not services.is_ready(running_stack.context, "airflow-triggerer"):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    again = processes.find(layout, "airflow-triggerer")
    assert again is not None
    assert again.pid != killed.pid
    shown = running_stack.command("status").stdout
    assert re.search(r"airflow-triggerer .* 1, last at \d\d:\d\d:\d\d", shown), shown


def test_a_second_up_changes_nothing(running_stack: RunningStack) -> None:
    # The services themselves: the children that they start come and go by themselves.
    layout = running_stack.context.layout
    names = (*services.NAMES, supervisor.NAME)
    before = {name: processes.find(layout, name) for name in names}
    assert all(before.values())
    done = running_stack.command("up")
    assert done.returncode == 0, done.stderr
    assert "already up" in done.stdout
    assert {name: processes.find(layout, name) for name in names} == before
    assert running_stack.command("status").returncode == 0


def test_ports_of_a_running_stack_cannot_be_changed(running_stack: RunningStack) -> None:
    done = run_stack("up", {**running_stack.stack_env, "MINIO_PORT": str(free_ports(1)[0])})
    assert done.returncode == 1
    assert "make down" in done.stderr
    assert "MINIO_PORT" in done.stderr


def test_down_leaves_no_process_and_up_again_keeps_the_state(running_stack: RunningStack) -> None:
    home = running_stack.context.layout.home
    running_stack.s3.put_object(Bucket=RELEASE_BUCKET, Key="kept", Body=b"kept")
    for _ in range(2):
        assert running_stack.command("down").returncode == 0
        assert processes_of(home) == []
    assert running_stack.command("status").returncode == 3
    try:
        again = running_stack.command("up")
        assert again.returncode == 0, again.stderr
        assert running_stack.s3.get_object(Bucket=RELEASE_BUCKET, Key="kept")["Body"].read() == b"kept"
        assert AirflowApi(running_stack.context).get("/pools")["total_entries"] == 4  # Airflow has one of its own
    finally:
        running_stack.s3.delete_object(Bucket=RELEASE_BUCKET, Key="kept")
