"""Steps in a child process: isolation from secrets, transported errors, crashes."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
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


class RecordsItsProcess(TwoHeads):
    """Writes the environment and the open files of its process to a file when it is loaded."""

    def __init__(self, seen: Path) -> None:
        super().__init__()
        self.seen = seen

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        files = " ".join(sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()))
        self.seen.write_text(f"{os.getpid()}\n{' '.join(sorted(os.environ))}\n{os.environ['HOME']}\n{files}")


class Spies(TwoHeads):
    """Reads the environment of other processes, signals one, opens a connection and writes a file when it is loaded."""

    def __init__(self, seen: Path, sibling: int, port: int) -> None:
        super().__init__()
        self.seen, self.sibling, self.port = seen, sibling, port

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        tries = {
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
        self.seen.write_text(json.dumps(found))
        raise ValueError("seen")


class SignalsItself(TwoHeads):
    """Ends its process by a signal when it is loaded."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.kill(os.getpid(), state["number"])


def test_a_pickle_is_exported_and_compared_in_a_process_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://user:secret@db/airflow")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    trained = save(RecordsItsProcess(tmp_path / "seen"), tmp_path / "trained", **PICKLED)
    with (tmp_path / "a connection of the parent").open("w") as opened:
        artifact = run_step.export(trained, tmp_path / "out", ALLOWED)
        pid, names, home, files = (tmp_path / "seen").read_text().split("\n")
        assert opened.name not in files
    assert int(pid) != os.getpid()
    assert not [name for name in names.split() if name.startswith(("AIRFLOW", "AWS", "MLFLOW"))]
    assert home != os.environ["HOME"]
    assert not Path(home).exists(), "the child's home is removed with the child"
    assert artifact.trained_format == "pickle"
    options = BenchmarkOptions(batch_sizes=(1, 4), allow_pickle=True)
    assert run_step.compare(trained, tmp_path / "out", artifact, options).passed


@pytest.mark.skipif(sys.platform != "linux", reason="namespaces and Landlock are Linux's")
def test_a_pickle_reads_no_other_process_and_has_no_network(tmp_path: Path) -> None:
    missing = subprocess.run(
        [sys.executable, "-c", "from onnx_release.runners.isolation import isolate; print(*isolate())"],
        env=os.environ | {"PYTHONPATH": str(Path(run_step.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    if missing:
        pytest.skip(f"this kernel does not isolate: {missing}")
    sibling = subprocess.Popen(["sleep", "600"], env={"SECRET": "canary"})
    with sibling, socket.create_server(("127.0.0.1", 0)) as server:
        model = Spies(tmp_path / "seen", sibling.pid, server.getsockname()[1])
        trained = save(model, tmp_path / "trained", **PICKLED)
        # The parent is the process of a task.
        code = (
            "import sys\nfrom pathlib import Path\nfrom onnx_release import run_step\n"
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
        assert "ValueError: seen" in done.stderr
        assert sibling.poll() is None
        sibling.kill()
    found = json.loads((tmp_path / "seen").read_text())
    assert found.pop("own") == "done"
    assert set(found.values()) <= {"PermissionError", "ConnectionRefusedError"}, found


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
