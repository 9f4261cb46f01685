"""The measuring lock between real processes: exclusive, freed by a kill, with a time-out, and safe."""

from __future__ import annotations

import itertools
import json
import logging
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from onnx_release import run_step
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.errors import Transient
from onnx_release.latency.host_lock import HostLock, LockOptions
from onnx_release.limits import LatencyBudget, MeasurePlan
from onnx_release.records import Precision
from onnx_release.tuning.options import TuneOptions
from onnx_release.tuning.search import TimeLimit
from tests.core.conftest import Exported
from tests.refusals import refused

# Takes the lock `times` times and logs the times of holding it. With 0 it keeps the lock.
HOLDER = """
import sys, time
from onnx_release.latency.host_lock import HostLock, LockOptions
path, name, log, times = sys.argv[1:]
for _ in range(int(times) or 1):
    with HostLock(LockOptions(path=path, holder=name)).held():
        began = time.monotonic()
        print("held", flush=True)
        time.sleep(0.05 if int(times) else 600)
        with open(log, "a") as file:
            file.write(f"{began} {time.monotonic()}\\n")
"""


@pytest.fixture
def lock(tmp_path: Path) -> Path:
    return tmp_path / "measure.lock"


def _start(lock: Path, name: str, log: Path, times: int = 0) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(lock), name, str(log), str(times)],
        env=os.environ | {"PYTHONPATH": "include"},
        stdout=subprocess.PIPE,
        text=True,
    )


@contextmanager
def _holder(lock: Path, name: str = "somebody") -> Iterator[subprocess.Popen[str]]:
    """Run a process that keeps the lock."""
    process = _start(lock, name, lock.parent / "log")
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.wait()


def _held(lock: Path, timeout_s: float = 30.0) -> HostLock:
    return HostLock(LockOptions(path=str(lock), timeout_s=timeout_s, holder="this test"))


def test_two_processes_never_hold_the_lock_at_the_same_time(lock: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    both = [_start(lock, name, log, times=10) for name in ("one", "two")]
    assert [process.wait(60) for process in both] == [0, 0]
    spans = sorted(tuple(map(float, line.split())) for line in log.read_text().splitlines())
    assert len(spans) == 20
    assert all(ended <= began for (_, ended), (began, _) in itertools.pairwise(spans))


def test_the_lock_of_a_killed_process_is_free(lock: Path) -> None:
    with _holder(lock) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
        with _held(lock).held():
            assert json.loads(lock.read_text())["pid"] == os.getpid()


def test_waiting_is_logged_once_and_counted_and_ends_with_the_holder(
    lock: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = _held(lock)
    with caplog.at_level(logging.WARNING), _holder(lock, "release of run 7") as process:
        subprocess.Popen(["sh", "-c", f"sleep 1; kill -9 {process.pid}"])
        with waiting.held():
            pass
    messages = [record.getMessage() for record in caplog.records if "Waiting to measure" in record.getMessage()]
    assert len(messages) == 1
    assert f"process {process.pid} (release of run 7)" in messages[0]
    assert waiting.waited_s > 0.5


def test_waiting_too_long_is_transient_and_names_the_holder(lock: Path) -> None:
    with _holder(lock, "release of run 7") as process:
        with pytest.raises(Transient, match=rf"more than 0.2 s.*process {process.pid} \(release of run 7\)"):
            _take(lock, timeout_s=0.2)
        process.send_signal(0)


def test_the_waiting_time_does_not_count_as_tuning_time(lock: Path) -> None:
    waiting = _held(lock, timeout_s=1.0)
    time_limit = TimeLimit(60.0, waiting)
    with _holder(lock), pytest.raises(Transient), waiting.held():
        pass
    assert waiting.waited_s >= 1.0
    assert time_limit.elapsed_s < time.perf_counter() - time_limit.began - 0.9


def test_without_a_path_there_is_no_lock(lock: Path) -> None:
    with HostLock().held(), HostLock().held():
        pass
    assert BenchmarkOptions().lock.path is None
    assert not lock.exists()


def test_every_account_may_open_the_file_and_it_stays(lock: Path) -> None:
    before = os.umask(0o077)
    try:
        _take(lock)
    finally:
        os.umask(before)
    assert stat.S_IMODE(lock.stat().st_mode) == 0o666


def test_a_removed_file_is_created_again_and_is_the_only_lock(lock: Path) -> None:
    with _holder(lock):
        lock.unlink()
        _take(lock)
        with _holder(lock) as second, pytest.raises(Transient, match=f"process {second.pid}"):
            _take(lock, timeout_s=0.1)


def test_another_account_of_the_host_can_take_it(tmp_path: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("needs the rights to become another account")
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(0o1777)
    lock = folder / "measure.lock"
    _take(lock)
    code = (
        # The account may not read the interpreter's folder later.
        "import encodings.ascii, os, sys; sys.path.insert(0, 'include')\n"
        "from onnx_release.latency.host_lock import HostLock, LockOptions\n"
        f"os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"with HostLock(LockOptions(path={str(lock)!r})).held(): print('taken')\n"
    )
    for parent in lock.parents[1:-1]:
        if parent.stat().st_uid == os.getuid() and not parent.stat().st_mode & stat.S_IXOTH:
            parent.chmod(parent.stat().st_mode | stat.S_IXOTH)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout == "taken\n", done.stderr[-2000:]


def _take(lock: Path, timeout_s: float = 5.0) -> None:
    with _held(lock, timeout_s).held():
        pass


def _link(lock: Path) -> None:
    lock.with_name("precious").write_text("precious")
    lock.symlink_to(lock.with_name("precious"))


def _hard_link(lock: Path) -> None:
    lock.with_name("precious").write_text("precious")
    lock.hardlink_to(lock.with_name("precious"))


def _open_folder(lock: Path) -> None:
    lock.parent.chmod(0o777)


def _no_folder(lock: Path) -> None:
    lock.parent.rmdir()


@pytest.mark.parametrize(
    ("prepare", "problem"),
    [
        (_link, "is a symbolic link"),
        (_hard_link, "has 2 names"),
        (lambda lock: os.mkfifo(lock), "not a regular file"),
        (lambda lock: lock.mkdir(), "not a regular file"),
        (_open_folder, "where every account can replace it"),
        (_no_folder, "No such file or directory"),
    ],
)
def test_an_unsafe_lock_file_is_refused_and_unchanged(
    tmp_path: Path, prepare: Callable[[Path], object], problem: str
) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    prepare(folder / "measure.lock")
    with refused("unusable_lock", problem, "measure_lock"):
        _take(folder / "measure.lock")
    precious = folder / "precious"
    assert not precious.exists() or precious.read_text() == "precious"


def test_a_link_to_a_locked_file_is_refused_without_waiting(tmp_path: Path) -> None:
    with _holder(tmp_path / "other.lock"):
        (tmp_path / "measure.lock").hardlink_to(tmp_path / "other.lock")
        began = time.monotonic()
        with refused("unusable_lock"):
            _take(tmp_path / "measure.lock", timeout_s=30.0)
        assert time.monotonic() - began < 5.0


def test_a_file_without_permission_is_refused(lock: Path) -> None:
    if os.getuid() == 0:
        pytest.skip("the superuser may open every file")
    lock.touch(0o000)
    with refused("unusable_lock", "Permission denied"):
        _take(lock)


@pytest.mark.parametrize("note", ["", "no JSON", '{"pid": "x"}', "[1]", '{"pid": 1e999, "holder": 1, "since": 0}'])
def test_an_invalid_note_does_not_end_the_waiting(lock: Path, note: str) -> None:
    with _holder(lock):
        lock.write_text(note)
        with pytest.raises(Transient, match="an unknown process holds the lock"):
            _take(lock, timeout_s=0.1)


def test_a_holders_name_is_printable_and_short_in_the_message(lock: Path) -> None:
    with _holder(lock):
        lock.write_text(json.dumps({"pid": 5, "holder": "\x1b[31mred\nERROR fake" + "x" * 500, "since": 0}))
        with pytest.raises(Transient, match=r"process 5 \(\[31mredERROR fakex+\) holds the lock") as raised:
            _take(lock, timeout_s=0.1)
    assert "\n" not in str(raised.value)
    assert len(str(raised.value)) < 700


def _options(lock: Path, timeout_s: float) -> BenchmarkOptions:
    return BenchmarkOptions(
        batch_sizes=(1,),
        latency_budget=LatencyBudget(speedup_min=1e-6, on_miss="warn"),
        measure_plan=MeasurePlan(rounds_min=10, measure_min_s=0.0, measure_max_s=0.5),
        allow_pickle=True,
        lock=LockOptions(path=str(lock), timeout_s=timeout_s, holder="release of run 8"),
    )


def test_the_child_process_of_a_pickle_takes_the_lock(lock: Path, trained_pickle: Path, released: Exported) -> None:
    # The pickle and the pt2 model have the same weights.
    report = run_step.benchmark(trained_pickle, released.folder, released.artifact, _options(lock, 30.0))
    assert report.latency is not None
    note = json.loads(lock.read_text())
    assert note["holder"] == "release of run 8"
    assert note["pid"] != os.getpid(), "the child process measured, so it held the lock"
    _take(lock, timeout_s=0.1)


def test_only_measurements_wait_for_the_lock(lock: Path, trained_pt2: Path, released: Exported) -> None:
    case = trained_pt2, released.folder, released.artifact
    with _holder(lock, "release of run 7") as process:
        assert run_step.compare(*case, _options(lock, 0.2)).passed
        with pytest.raises(Transient, match=rf"process {process.pid} \(release of run 7\) holds the lock"):
            run_step.benchmark(*case, _options(lock, 0.2))
        tuning = TuneOptions(benchmark=_options(lock, 0.2), precisions=(Precision.EXACT, Precision.INT8))
        with pytest.raises(Transient, match=f"process {process.pid}"):
            run_step.tune(*case, lock.parent / "tuned", tuning)
