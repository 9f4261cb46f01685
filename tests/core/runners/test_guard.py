"""Commands whose processes all end with the process that started them, at every depth."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]
import pytest

from onnx_release import run_step
from onnx_release.runners import guard
from onnx_release.runners.child_process import run_guarded
from tests.core.models import TwoHeads, save

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux's kernel ends a child with its parent")

# A program that ignores SIGTERM, starts another one, and writes both pids into the file ``pids``.
STARTS_ANOTHER = (
    "import os, signal, subprocess, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "other = subprocess.Popen(['sleep', '600'])\n"
    "open(pids + '.part', 'w').write(f'{os.getpid()} {other.pid}')\n"
    "os.rename(pids + '.part', pids)\n"
    "time.sleep(600)\n"
)
TASK = (
    "import signal, sys\n"
    "from pathlib import Path\n"
    "signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))\n"  # As the operators do in `on_kill`.
)
INSTALLS = TASK + (
    "from onnx_release.runners.child_process import run_guarded\n"
    "run_guarded([sys.executable, '-c', sys.argv[1]], {}, Path('/'), 600)\n"
)
EXPORTS = TASK + (
    "from onnx_release import run_step\n"
    "from onnx_release.export.export_model import ExportStepOptions\n"
    "options = ExportStepOptions(device='cpu', allow_pickle=True)\n"
    "run_step.export(Path(sys.argv[1]), Path(sys.argv[1] + '-out'), options)\n"
)


class Lingers(TwoHeads):
    """Starts a process and sleeps when it is loaded in the child process of a step."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        if guard.PARENT in os.environ:
            # It may write into its home folder only.
            exec(STARTS_ANOTHER, {"pids": str(Path.home() / "pids")})


def test_the_status_and_the_signal_of_a_command_are_those_of_its_guard() -> None:
    for code, status in (("print('out'); raise SystemExit(3)", 3), ("import os; os.kill(os.getpid(), 11)", -11)):
        done = run_guarded([sys.executable, "-c", code], {}, Path("/"), 60)
        assert done.returncode == status
    with pytest.raises(subprocess.TimeoutExpired):
        run_guarded([sys.executable, "-c", "import time; time.sleep(600)"], {}, Path("/"), 0.1)


@pytest.fixture(scope="module")
def lingering(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A pickled model that writes its pids into the file ``pids`` of its home folder."""
    return save(Lingers(), tmp_path_factory.mktemp("lingering") / "trained", serialization_format="pickle")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
@pytest.mark.parametrize("task", ["installs", "exports"])
def test_no_process_of_a_task_outlives_it(task: str, number: int, lingering: Path, tmp_path: Path) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    argument = str(lingering) if task == "exports" else f"pids = {str(temporary / 'pids')!r}\n{STARTS_ANOTHER}"
    folders = os.pathsep.join(map(str, (Path(run_step.__file__).parents[1], Path(__file__).parents[3])))
    process = subprocess.Popen(
        [sys.executable, "-c", EXPORTS if task == "exports" else INSTALLS, argument],
        env=os.environ | {"PYTHONPATH": folders, "TMPDIR": str(temporary)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while (pids := next(temporary.rglob("pids"), None)) is None:
        assert process.poll() is None
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    assert {int(pid) for pid in pids.read_text().split()} <= {one.pid for one in family}
    process.send_signal(number)
    process.wait()
    deadline = time.monotonic() + 60
    while alive := [one for one in family if _is_alive(one)]:
        assert time.monotonic() < deadline, alive
        time.sleep(0.05)
    # The next process removes the files of a killed one.
    assert number == signal.SIGKILL or not list(temporary.glob("onnx-release-*"))


def _is_alive(process: psutil.Process) -> bool:
    """Return True for a process that is not ended. A zombie is ended, and waits for its parent."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
