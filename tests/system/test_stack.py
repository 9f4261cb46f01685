"""The embedded stack keeps its promises: clear refusals, loopback only, private secrets, nothing left behind."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import psutil  # type: ignore[import-untyped]
import pytest
import requests
import sqlalchemy
from botocore.exceptions import ClientError

from airflow_onnx import defaults
from stack import airflow, minio, postgres, processes, services, supervisor
from stack.airflow_api import AirflowApi
from stack.context import Context
from stack.credentials import Credentials
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO, Layout, check_machine
from stack.minio import RELEASE_BUCKET
from stack.ports import Ports, free_ports
from stack.processes import Command, Record
from stack.release import Release

from .embedded import RunningStack, run_stack, stack_environment

pytestmark = pytest.mark.system
SLEEPER = (sys.executable, "-c", "import time; time.sleep(60)")
# A leader that starts a child in its session and says so; the child ignores SIGTERM, as a hung worker would.
STUBBORN = (
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "ignore = 'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); '\n"
    "child = ignore + 'print(1, flush=True); time.sleep(60)'\n"
    "process = subprocess.Popen([sys.executable, '-c', child], stdout=subprocess.PIPE)\n"
    "process.stdout.readline()\n"
    "open('child', 'w').write(str(process.pid))\n"
    "time.sleep(60)\n",
)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "state")
    made.create()
    return made


def sleeper(layout: Layout, name: str = "minio", argv: tuple[str, ...] = SLEEPER) -> Record:
    return processes.start(layout, Command(name, argv, clean_environment(), layout.home))


def processes_of(home: Path) -> list[psutil.Process]:
    """Every live process that works inside the state folder, which is where all of the stack's do."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.status() != psutil.STATUS_ZOMBIE and Path(process.cwd()).is_relative_to(home):
                found.append(process)
    return found


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)
    return path.read_text()


# Without services


@pytest.mark.parametrize("name", ["airflow", "mlflow", "minio"])
def test_a_taken_port_is_named_with_its_variable_and_nothing_is_left_running(tmp_path: Path, name: str) -> None:
    ports = free_ports(3)
    taken = ports[("airflow", "mlflow", "minio").index(name)]
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", taken))
        stranger.listen()
        done = run_stack("up", stack_environment(tmp_path / "state", ports))
    assert done.returncode == 1
    assert f"Port {taken} ({name}) is taken" in done.stderr
    assert f"{name.upper()}_PORT=" in done.stderr
    assert "Traceback" not in done.stderr
    assert processes_of(tmp_path / "state") == []
    assert not list((tmp_path / "state" / "run").iterdir())


@pytest.mark.parametrize("value", ["abc", "80", "70000"])
def test_a_port_that_is_none_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("MLFLOW_PORT", value)
    with pytest.raises(StackError, match=f"MLFLOW_PORT={value}"):
        Ports.choose(tmp_path)


def test_two_services_do_not_get_one_port(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_PORT", "9100")
    monkeypatch.setenv("MINIO_PORT", "9100")
    with pytest.raises(StackError, match="cannot share"):
        Ports.choose(tmp_path)


def test_a_missing_tool_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("airflow", "mlflow"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python"))
    with pytest.raises(StackError, match=f"juicefs not found in {folder}"):
        check_machine(tmp_path)


def test_a_full_disk_is_said_before_anything_is_written(tmp_path: Path) -> None:
    home = tmp_path / "not" / "yet"
    with pytest.raises(StackError, match="MB free and the stack needs"):
        check_machine(home, free_bytes_min=10**18)
    assert not home.parent.exists()


def test_a_foreign_folder_is_neither_used_nor_removed(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for command in ("up", "clean"):
        done = run_stack(command, stack_environment(tmp_path))
        assert done.returncode == 1
        assert str(tmp_path) in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_status_and_down_of_a_stack_that_never_was(tmp_path: Path) -> None:
    environment = stack_environment(tmp_path / "state")
    assert run_stack("status", environment).returncode == 3
    assert run_stack("down", environment).returncode == 0
    assert run_stack("clean", environment).returncode == 0
    assert not (tmp_path / "state").exists()


def test_a_service_that_dies_while_it_starts_shows_its_log_and_takes_the_others_down(layout: Layout) -> None:
    (layout.minio / "formatted").touch()  # a lie: the gateway finds no store
    other = sleeper(layout, "mlflow")
    ports = free_ports(3)
    Ports(*ports).remember(layout.home)
    done = run_stack("up", stack_environment(layout.home, ports))
    assert done.returncode == 1
    assert "minio ended during its start" in done.stderr
    assert "not formatted" in done.stderr
    assert not other.is_alive()
    assert processes_of(layout.home) == []


def test_a_service_that_is_never_ready_is_given_up(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "START_TIMEOUT_S", 0.0)
    sleeper(layout)
    try:
        with pytest.raises(StackError, match=r"minio was not ready after 0 s\. Last lines of .*minio\.log"):
            processes.await_ready(layout, "minio", lambda: False)
    finally:
        processes.stop(layout, ["minio"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_an_interrupted_start_leaves_nothing_running(layout: Layout, number: signal.Signals) -> None:
    argv = [sys.executable, "-m", "stack", "up"]
    environment = stack_environment(layout.home, free_ports(3))
    with subprocess.Popen(argv, cwd=REPO, env=environment, stderr=subprocess.PIPE, text=True) as process:
        wait_for_file(layout.pids / "mlflow.json")
        process.send_signal(number)
        _, said = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "interrupted" in said
    assert processes_of(layout.home) == []


def test_a_second_command_at_the_same_time_is_refused(layout: Layout) -> None:
    with layout.locked():
        done = run_stack("up", stack_environment(layout.home, free_ports(3)))
    assert done.returncode == 1
    assert "Another command" in done.stderr


def test_a_stale_pid_file_never_stops_a_stranger(layout: Layout) -> None:
    record = sleeper(layout)
    path = layout.pids / "minio.json"
    # The pid is now somebody else's, as after a reboot: same number, another start.
    path.write_text(json.dumps({"name": "minio", "pid": record.pid, "identity": "another-boot:123"}))
    try:
        assert processes.find(layout, "minio") is None
        assert processes.stop(layout, ["minio"]) == []
        assert record.is_alive()
    finally:
        os.kill(record.pid, signal.SIGKILL)


def test_stop_ends_the_children_too_and_those_that_ignore_the_signal(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 1.0)
    sleeper(layout, argv=STUBBORN)
    child = int(wait_for_file(layout.home / "child"))
    assert processes.stop(layout, ["minio"]) == ["minio"]
    assert processes.identity(child) is None


def test_stop_finds_the_children_of_a_leader_that_was_killed(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 1.0)
    record = sleeper(layout, argv=STUBBORN)
    child = int(wait_for_file(layout.home / "child"))
    os.kill(record.pid, signal.SIGKILL)
    os.waitpid(record.pid, 0)
    assert processes.find(layout, "minio") is None
    assert processes.stop(layout, ["minio"]) == ["minio"]
    assert processes.identity(child) is None


def test_secrets_are_generated_once_and_private(layout: Layout) -> None:
    first = Credentials.load_or_generate(layout.home)
    assert Credentials.load_or_generate(layout.home) == first
    assert Credentials.generate().minio_secret_key != first.minio_secret_key
    assert stat.S_IMODE((layout.home / "credentials.json").stat().st_mode) == 0o600


def test_settings_of_the_user_do_not_reach_the_services(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AIRFLOW__CORE__EXECUTOR", "AWS_PROFILE", "MLFLOW_TRACKING_URI", "PYTHONPATH", "MINIO_ROOT_USER"):
        monkeypatch.setenv(name, "somebody else's")
    assert "somebody else's" not in clean_environment().values()


def test_the_state_of_an_earlier_version_is_refused(layout: Layout) -> None:
    (layout.airflow_home / "airflow.db").touch()
    done = run_stack("up", stack_environment(layout.home))
    assert done.returncode == 1
    assert "make clean-demo" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_service_that_ends_is_started_again_a_limited_number_of_times(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "PAUSE_S", 0.01)
    command = Command("minio", (sys.executable, "-c", ""), clean_environment(), layout.home)
    watching = supervisor.Supervisor(layout, [command])
    watching.check()
    assert processes.find(layout, "minio") is None, "a service without a pid file was stopped by a command"
    processes.start(layout, command)
    deadline = time.monotonic() + 20
    while not supervisor.restarts(layout).get("minio", supervisor.Restarts()).given_up:
        assert time.monotonic() < deadline
        watching.check()
        time.sleep(0.02)
    assert supervisor.restarts(layout)["minio"].count == supervisor.RESTARTS_MAX
    assert (layout.logs / "minio.log").read_text().count("=== ") == 1 + supervisor.RESTARTS_MAX


def test_a_service_outlives_the_supervisor_that_started_it(layout: Layout) -> None:
    code = "import subprocess, sys, time; subprocess.Popen([*sys.argv[1:]], start_new_session=True); time.sleep(60)"
    argv = (sys.executable, "-c", code, *SLEEPER)
    command = Command(supervisor.NAME, argv, clean_environment(), layout.home, stop_signal=signal.SIGTERM)
    record = processes.start(layout, command)
    deadline = time.monotonic() + 20
    while not (children := psutil.Process(record.pid).children()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert processes.stop(layout, [supervisor.NAME]) == [supervisor.NAME]
    assert children[0].is_running()
    children[0].kill()


@pytest.mark.parametrize("folder", ["state", "a folder, with a comma/" + "/".join(["deep" * 10] * 3)])
def test_the_database_has_a_socket_only_and_survives_a_kill(tmp_path: Path, folder: str) -> None:
    layout = Layout(tmp_path / folder)
    layout.create()
    ready = partial(postgres.is_healthy, layout)
    try:
        postgres.prepare(layout)
        record = processes.start(layout, postgres.command(layout))
        processes.await_ready(layout, postgres.NAME, ready)
        assert psutil.Process(record.pid).net_connections("inet") == []
        assert stat.S_IMODE(postgres.socket_folder(layout).stat().st_mode) == 0o700
        postgres.create_database(layout, "kept")
        os.kill(record.pid, signal.SIGKILL)
        os.waitpid(record.pid, 0)
        postgres.prepare(layout)
        processes.start(layout, postgres.command(layout))
        processes.await_ready(layout, postgres.NAME, ready)
        connection = sqlalchemy.create_engine(postgres.uri(layout, "kept")).raw_connection()
        connection.cursor().execute("select 1")
        began = time.monotonic()
        assert processes.stop(layout, [postgres.NAME]) == [postgres.NAME]
        assert time.monotonic() - began < processes.STOP_TIMEOUT_S, "an open connection does not delay it"
    finally:
        processes.stop(layout, [postgres.NAME])
        postgres.remove_socket_folder(layout)
    assert processes_of(layout.home) == []
    assert postgres.socket_folder(layout).exists() == (folder == "state")


@pytest.mark.parametrize(("age_s", "healthy"), [(-3.0, False), (3.0, True)])
def test_the_last_heartbeat_of_a_dead_component_does_not_count(layout: Layout, age_s: float, healthy: bool) -> None:
    start = 1_700_000_000.0
    heartbeat = datetime.fromtimestamp(start + age_s, UTC).isoformat()
    health = {"triggerer": {"status": "healthy", "latest_triggerer_heartbeat": heartbeat}}

    class Server(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps(health).encode())

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        context = Context(layout, Ports(airflow=server.server_port, mlflow=0, minio=0), Credentials.generate())
        assert airflow.has_heartbeat(context, "airflow-triggerer", since=start) is healthy
        server.shutdown()


# With services


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
    # Four slots of the executor: one is left for all other tasks.
    assert [running_stack.api.get(f"/pools/{name}")["slots"] for name in names] == [2, 1, defaults.WATCH_SLOTS]


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
        assert AirflowApi(running_stack.context).get("/pools")["total_entries"] == 2
    finally:
        running_stack.s3.delete_object(Bucket=RELEASE_BUCKET, Key="kept")
