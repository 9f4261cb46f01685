"""Steps in a child process: isolation from secrets, transported errors, crashes."""

from __future__ import annotations

import functools
import json
import os
import platform
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnx_release import run_step
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.errors import Refused, ReleaseError, RunnerRefused, TrainedModelRefused, Transient
from onnx_release.export.export_model import ExportStepOptions
from tests.core.models import TwoHeads, save
from tests.refusals import refused

PICKLED: dict[str, Any] = {"serialization_format": "pickle"}
ALLOWED = ExportStepOptions(device="cpu", allow_pickle=True)


SEEN = "seen: "
FILTERED = ("x86_64", "aarch64")


def seen(text: str) -> Any:
    """Return the last value that the code of a pickle printed, from the log of the step."""
    return json.loads(text.rpartition(SEEN)[2].splitlines()[0])


class RecordsItsProcess(TwoHeads):
    """Prints the environment and the open files of its process when it is loaded."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        files = [str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()]
        seen = {"pid": os.getpid(), "names": sorted(os.environ), "home": os.environ["HOME"], "files": files}
        print(SEEN + json.dumps(seen), flush=True)


class Spies(TwoHeads):
    """Tries to leave its process when it is loaded: to others, to files, to sockets."""

    def __init__(self, folder: Path, sibling: int, port: int) -> None:
        super().__init__()
        self.folder, self.sibling, self.port = folder, sibling, port

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        secret = self.folder / "airflow.cfg"
        unix = socket.socket(socket.AF_UNIX) if platform.machine() not in FILTERED else None
        tries: dict[str, Callable[[], object]] = {
            "read": secret.read_text,
            "list": lambda: list(self.folder.iterdir()),
            "change": lambda: secret.write_text("x"),
            "create": (self.folder / "created").touch,
            "link": lambda: (self.folder / "link").symlink_to("/etc/shadow"),
            "remove": secret.unlink,
            "move": lambda: secret.rename(Path.home() / "moved"),
            "out": lambda: Path("/tmp", f"created-{os.getpid()}").touch(),
            "shadow": lambda: Path("/etc/shadow").read_text(),
            "crash handler": lambda: Path("/proc/sys/kernel/core_pattern").open("r+").close(),
            "unix socket": lambda: unix or socket.socket(socket.AF_UNIX),
            "packets": lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW),
            "parent": lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes(),
            "sibling": lambda: Path(f"/proc/{self.sibling}/environ").read_bytes(),
            "memory": lambda: Path(f"/proc/{os.getppid()}/mem").open("rb").close(),
            "signal": lambda: os.kill(self.sibling, signal.SIGTERM),
            "network": lambda: socket.create_connection(("127.0.0.1", self.port), timeout=2).close(),
            "own": lambda: Path("/proc/self/environ").read_bytes(),
        }
        found = {}
        for name, attempt in tries.items():
            try:
                attempt()
            except OSError as error:
                found[name] = type(error).__name__
            else:
                found[name] = "done"
        # Both succeed: libraries copy modes of files.
        secret.chmod(0o666)
        (Path.home() / "own").write_text("own")
        print(SEEN + json.dumps(found), flush=True)
        raise RuntimeError("seen")


class Forgets(TwoHeads):
    """Leaves a process behind when it is loaded, in a session of its own and without a parent."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                print(SEEN + json.dumps(os.getpid()), flush=True)
                time.sleep(600)
            os._exit(0)
        os.wait()
        raise RuntimeError("seen")


class Grows(TwoHeads):
    """Starts a process that takes memory when it is loaded."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        if os.fork() == 0:
            os.setsid()
            self.taken = b"x" * 2**30
            time.sleep(600)
        time.sleep(600)


class ReadsElsewhere(TwoHeads):
    """Reads a file outside of its process when it is loaded."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    def __setstate__(self, state: dict[str, Any]) -> None:
        state["path"].read_text()


@functools.cache
def isolates() -> bool:
    """Return True if the kernel supports each part of the isolation."""
    code = "from onnx_release.runners.isolation import isolate; print(*isolate())"
    environment = os.environ | {"PYTHONPATH": str(Path(run_step.__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, check=True)
    return not done.stdout.strip()


class SignalsItself(TwoHeads):
    """Ends its process by a signal when it is loaded."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.kill(os.getpid(), state["number"])


def test_a_pickle_is_exported_and_compared_in_a_process_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "onnx_release")
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://user:secret@db/airflow")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    trained = save(RecordsItsProcess(), tmp_path / "trained", **PICKLED)
    with (tmp_path / "a connection of the parent").open("w") as opened:
        artifact = run_step.export(trained, tmp_path / "out", ALLOWED)
        found = seen(caplog.text)
        assert opened.name not in found["files"]
    assert found["pid"] != os.getpid()
    assert not [name for name in found["names"] if name.startswith(("AIRFLOW", "AWS", "MLFLOW"))]
    assert found["home"] != os.environ["HOME"]
    assert not Path(found["home"]).exists(), "the child's home is removed with the child"
    assert sorted(path.name for path in tmp_path.iterdir() if path.name.startswith((".", "out"))) == ["out"]
    assert artifact.trained_format == "pickle"
    options = BenchmarkOptions(batch_sizes=(1, 4), allow_pickle=True)
    assert run_step.compare(trained, tmp_path / "out", artifact, options).passed


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces and Landlock are Linux's")
def test_a_pickle_reaches_no_other_process_no_file_and_no_network(tmp_path: Path) -> None:
    if not isolates():
        pytest.skip("this kernel does not isolate")
    secret = tmp_path / "home" / "airflow.cfg"
    secret.parent.mkdir()
    secret.write_text("canary")
    secret.chmod(0o600)
    sibling = subprocess.Popen(["sleep", "600"], env={"SECRET": "canary"})
    with sibling, socket.create_server(("127.0.0.1", 0)) as server:
        model = Spies(secret.parent, sibling.pid, server.getsockname()[1])
        trained = save(model, tmp_path / "trained", **PICKLED)
        # The parent is the process of a task.
        code = (
            "import logging, sys\nfrom pathlib import Path\nfrom onnx_release import run_step\n"
            "logging.basicConfig(level=logging.INFO)\n"
            "from onnx_release.export.export_model import ExportStepOptions\n"
            "options = ExportStepOptions(device='cpu', allow_pickle=True)\n"
            "run_step.export(Path(sys.argv[1]), Path(sys.argv[2]), options)\n"
        )
        paths = os.pathsep.join(str(folder) for folder in (Path(run_step.__file__).parents[1], Path.cwd()))
        done = subprocess.run(
            [sys.executable, "-c", code, str(trained), str(tmp_path / "out")],
            env=os.environ | {"PYTHONPATH": paths, "SECRET": "canary"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert "RuntimeError: seen" in done.stderr
        assert sibling.poll() is None
        sibling.kill()
    found = seen(done.stderr)
    assert found.pop("own") == "done"
    assert set(found.values()) <= {"PermissionError", "ConnectionRefusedError"}, found
    assert [path.name for path in secret.parent.iterdir()] == ["airflow.cfg"]
    assert (secret.read_text(), secret.stat().st_mode & 0o777) == ("canary", 0o600)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the processes of a child")
def test_a_process_that_a_pickle_leaves_behind_ends_with_the_step(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "onnx_release")
    own = subprocess.Popen(["sleep", "600"])
    with own:
        with refused("load_failed", "seen"):
            run_step.export(save(Forgets(), tmp_path / "trained", **PICKLED), tmp_path / "out", ALLOWED)
        assert own.poll() is None
        own.kill()
    assert not Path(f"/proc/{seen(caplog.text)}").exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux lists the processes of a child")
def test_a_pickle_that_takes_more_memory_than_its_limit_is_refused(tmp_path: Path) -> None:
    trained = save(Grows(), tmp_path / "trained", **PICKLED)
    with refused("step_memory", "1 GiB"):
        run_step.export(trained, tmp_path / "out", ALLOWED.replace(pickle_memory_bytes=2**30))


def test_a_pickle_that_needs_a_file_of_the_worker_is_refused_with_its_path(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    path.touch()
    trained = save(ReadsElsewhere(path), tmp_path / "trained", **PICKLED)
    if not isolates():
        pytest.skip("this kernel does not isolate")
    with refused("step_forbidden", "table.csv"):
        run_step.export(trained, tmp_path / "out", ALLOWED)


def test_a_child_that_crashes_is_a_refusal_that_names_the_signal(tmp_path: Path) -> None:
    trained = save(SignalsItself(signal.SIGSEGV), tmp_path / "trained", **PICKLED)
    with refused("step_crashed", "SIGSEGV") as caught:
        run_step.export(trained, tmp_path / "out", ALLOWED)
    assert isinstance(caught.value, RunnerRefused)
    assert not (tmp_path / "out").exists()


def test_a_child_that_is_killed_is_transient(tmp_path: Path) -> None:
    trained = save(SignalsItself(signal.SIGKILL), tmp_path / "trained", **PICKLED)
    with pytest.raises(Transient, match=r"was ended by SIGKILL \(out of memory\?\)"):
        run_step.export(trained, tmp_path / "out", ALLOWED)
    assert not (tmp_path / "out").exists()


def test_a_refusal_in_the_child_keeps_its_class_code_and_message(tmp_path: Path) -> None:
    model = TwoHeads()
    with torch.no_grad():
        model.linear.weight[0, 0] = torch.nan
    trained = save(model, tmp_path / "trained", **PICKLED)
    with refused("nan_weights", "linear.weight has 1 of 32") as caught:
        run_step.export(trained, tmp_path / "out", ALLOWED)
    assert isinstance(caught.value, TrainedModelRefused)


@pytest.mark.parametrize(
    "error",
    [
        TrainedModelRefused("The model", "is a pickle", "Log a state dict.", code="pickle"),
        Refused("The model", "is wrong", "Correct it.", code="some_code"),
        Transient("The process", "was ended", "Try again."),
    ],
)
def test_errors_survive_the_way_between_two_processes(error: ReleaseError) -> None:
    copy = ReleaseError.from_dict(error.to_dict())
    assert type(copy) is type(error)
    assert vars(copy) == vars(error)


def test_only_a_pickle_that_the_deployment_allows_runs_in_a_child(trained_pt2: Path, trained_pickle: Path) -> None:
    assert not run_step.runs_code(trained_pt2, allow_pickle=True)
    assert run_step.runs_code(trained_pickle, allow_pickle=True)
    assert not run_step.runs_code(trained_pickle, allow_pickle=False), "it is refused unopened"


def test_a_single_file_runs_in_a_child_as_well(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.ckpt")
    assert run_step.runs_code(tmp_path / "model.ckpt", allow_pickle=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel ends a child with its parent")
def test_the_child_ends_when_the_task_is_killed() -> None:
    code = (
        "import os, signal, time\n"
        "from onnx_release.runners.child_process import end_with_parent\n"
        "if os.fork() == 0:\n"
        "    end_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(600)\n"
        "time.sleep(1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(run_step.__file__).parents[1])}
    # The output ends only when the child has ended too, because the child holds the same pipe.
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.strip().isdigit()
