"""The run's own code in a process of its own: what it cannot see, and what becomes of it when it crashes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from onnx_release import run_step
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.errors import Refused, Transient
from onnx_release.export.export_model import ExportStepOptions
from onnx_release.run_step import compare_artifact, export_trained, runs_code
from tests.core.models import TwoHeads, save

PICKLED: dict[str, Any] = {"serialization_format": "pickle"}
ALLOWED = ExportStepOptions(device="cpu", allow_pickle=True)


class Looks(TwoHeads):
    """Writes down what its process can see, when it is loaded."""

    def __init__(self, seen: Path) -> None:
        super().__init__()
        self.seen = seen

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        files = " ".join(sorted(str(path.readlink()) for path in Path("/proc/self/fd").iterdir() if path.is_symlink()))
        self.seen.write_text(f"{os.getpid()}\n{' '.join(sorted(os.environ))}\n{os.environ['HOME']}\n{files}")


class Dies(TwoHeads):
    """Ends its process by a signal, when it is loaded."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def __setstate__(self, state: dict[str, Any]) -> None:
        os.kill(os.getpid(), state["number"])


def test_a_pickle_is_exported_and_compared_where_no_secret_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW__DATABASE__SQL_ALCHEMY_CONN", "postgresql://user:secret@db/airflow")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    trained = save(Looks(tmp_path / "seen"), tmp_path / "trained", **PICKLED)
    with (tmp_path / "a connection of the parent").open("w") as opened:
        artifact = export_trained(trained, tmp_path / "out", ALLOWED)
        pid, names, home, files = (tmp_path / "seen").read_text().split("\n")
        assert opened.name not in files
    assert int(pid) != os.getpid()
    assert not [name for name in names.split() if name.startswith(("AIRFLOW", "AWS", "MLFLOW"))]
    assert home != os.environ["HOME"]
    assert not Path(home).exists(), "it was the child's, and is gone with it"
    assert artifact.trained_format == "pickle"
    options = BenchmarkOptions(batch_sizes=(1, 4), allow_pickle=True)
    assert compare_artifact(trained, tmp_path / "out", artifact, options).passed


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (signal.SIGKILL, Transient, r"was ended by SIGKILL \(out of memory\?\)"),
        (signal.SIGSEGV, Refused, "was ended by SIGSEGV"),
    ],
)
def test_a_child_that_dies_is_a_failure_and_says_by_what(
    tmp_path: Path, number: int, kind: type[Exception], words: str
) -> None:
    trained = save(Dies(number), tmp_path / "trained", **PICKLED)
    with pytest.raises(kind, match=words):
        export_trained(trained, tmp_path / "out", ALLOWED)
    assert not (tmp_path / "out").exists()


def test_a_refusal_in_the_child_is_the_same_refusal_here(tmp_path: Path) -> None:
    model = TwoHeads()
    with torch.no_grad():
        model.linear.weight[0, 0] = torch.nan
    trained = save(model, tmp_path / "trained", **PICKLED)
    with pytest.raises(Refused, match=r"weights: hold NaN or infinity: linear\.weight has 1 of 32"):
        export_trained(trained, tmp_path / "out", ALLOWED)


def test_only_what_may_run_code_needs_a_process_of_its_own(trained_pt2: Path, trained_pickle: Path) -> None:
    assert not runs_code(trained_pt2, allow_pickle=True)
    assert runs_code(trained_pickle, allow_pickle=True)
    assert not runs_code(trained_pickle, allow_pickle=False), "it will be refused unopened"


def test_a_file_alone_is_looked_at_too(tmp_path: Path) -> None:
    torch.save(nn.Linear(2, 2), tmp_path / "model.ckpt")
    assert runs_code(tmp_path / "model.ckpt", allow_pickle=True)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel ends a child with its parent")
def test_the_child_ends_when_the_task_is_killed() -> None:
    code = (
        "import os, signal, time\n"
        "from onnx_release.processes import end_with_parent\n"
        "if os.fork() == 0:\n"
        "    end_with_parent()\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "time.sleep(1)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    env = os.environ | {"PYTHONPATH": str(Path(run_step.__file__).parents[1])}
    # Reading to the end waits for the child as well, which holds the pipe open as long as it lives.
    done = subprocess.run(
        [sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=30, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert done.stdout.strip().isdigit()
