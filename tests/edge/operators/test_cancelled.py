"""A task that a person cancels in Airflow while it works, under Airflow's own supervisor."""

from __future__ import annotations

import json
from pathlib import Path

import psutil  # type: ignore[import-untyped]
import pytest

from onnx_release.latency.host_lock import HostLock, LockOptions
from onnx_release.records import TrainedModel
from tests.edge.airflow_task import run_task

CODE = """
import os, sys, tempfile
from pathlib import Path
from airflow.sdk import DAG
from airflow_onnx.operators.release_step import ReleaseStepOperator
from onnx_release.latency.host_lock import HostLock, LockOptions
from onnx_release.runners.child_process import run_guarded
from onnx_release.scratch import scratch_folder

FOLDER = Path({folder!r})
WORK = "import os, subprocess, sys, time; other = subprocess.Popen(['sleep', '600']);"
WORK += "open(sys.argv[1], 'w').write(str(os.getpid()) + ' ' + str(other.pid)); time.sleep(600)"

class Works(ReleaseStepOperator):
    packages = ()

    def release(self, run):
        with HostLock(LockOptions(path=str(FOLDER / "lock"))).held(), scratch_folder() as scratch:
            run_guarded([sys.executable, "-c", WORK, str(FOLDER / "pids")], {{}}, scratch, 600)

with DAG("d"):
    Works(task_id="t", trained_model={trained!r})
"""


def test_a_cancelled_task_ends_its_processes_and_removes_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_MLFLOW_DEFAULT", json.dumps({"conn_type": "mlflow", "host": "http://m.test"}))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr("tempfile.tempdir", None)
    pids = tmp_path / "pids"
    trained = TrainedModel(training_run_id="a" * 32, model_uri="runs:/x/model", model_name="m").to_dict()
    log = run_task(monkeypatch, tmp_path, CODE.format(folder=str(tmp_path), trained=trained), {}, pids.exists)
    events = " ".join(str(entry["event"]) for entry in log)
    assert "a person cancelled it" in events
    assert "Task killed" in events
    assert not [pid for pid in pids.read_text().split() if _is_alive(int(pid))]
    assert not list((tmp_path / "tmp").glob("onnx-release-*"))
    with HostLock(LockOptions(path=str(tmp_path / "lock"), timeout_s=0.0)).held():
        pass  # It is free.


def _is_alive(pid: int) -> bool:
    """Return True for a process that is not ended. A zombie is ended, and waits for its parent."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
