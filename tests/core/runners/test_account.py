"""The account of a pickle's process, where the worker is root: its rights, its files, and the ways back that fail."""

from __future__ import annotations

import json
import logging
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from onnx_release import run_step
from onnx_release.errors import ArtifactRefused
from onnx_release.export.export_model import ExportStepOptions
from onnx_release.limits import PICKLE_USER
from onnx_release.scratch import PREFIX, remove_abandoned
from onnx_release.step_files import copy_untrusted
from tests.core.models import TwoHeads, save
from tests.refusals import refused

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="only root on Linux can change its account"
)

ROOT = Path(__file__).parents[3]
SEEN = "seen: "
PICKLED: dict[str, Any] = {"serialization_format": "pickle"}
MOUNTED = 'mount --bind "$0" "$1" && mount --bind "$2" "$3" && shift 3 && exec "$@"'


def attempts(folder: Path, parent: int) -> dict[str, Any]:
    """Return the account of this process, and the outcome of each try to leave it."""
    secret = folder / "secret"
    tries: dict[str, Callable[[], object]] = {
        "root": lambda: os.setuid(0),
        "group of root": lambda: os.setgid(0),
        "groups": lambda: os.setgroups([0]),
        "read": secret.read_bytes,
        "list": lambda: list(folder.iterdir()),
        "change": lambda: secret.write_text("x"),
        "environment": lambda: Path(f"/proc/{parent}/environ").read_bytes(),
        "memory": lambda: Path(f"/proc/{parent}/mem").open("rb").close(),
        "signal": lambda: os.kill(parent, 0),
        "create": lambda: (folder / "created").touch(),
        "outside": lambda: Path("/etc", "onnx-release-created").touch(),
        "su": lambda: subprocess.run(["su", "-c", "id"], check=True, capture_output=True, stdin=subprocess.DEVNULL),
    }
    outcomes = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except (OSError, subprocess.CalledProcessError):
            outcomes[name] = "failed"
        else:
            outcomes[name] = "done"
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "ids": [*os.getresuid(), *os.getresgid()],
        "groups": os.getgroups(),
        "capabilities": sorted({int(status[name], 16) for name in ("CapPrm", "CapEff", "CapInh", "CapAmb")}),
        "no_new_privs": status["NoNewPrivs"].strip(),
        "outcomes": outcomes,
    }


class Leaves(TwoHeads):
    """Tries to leave its account when it is loaded."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        # The parent of the guard of this process is the process of the step.
        guard = Path(f"/proc/{os.getppid()}/stat").read_text()
        found = attempts(self.folder, int(guard.rpartition(")")[2].split()[1]))
        (Path.home() / "own").write_text("own")
        print(SEEN + json.dumps(found | {"home": str(Path.home())}), flush=True)


class Forges(TwoHeads):
    """Replaces the answer of its process by a link when the process ends."""

    def __init__(self, target: Path) -> None:
        super().__init__()
        self.target = target

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        import atexit

        def forge() -> None:
            answer = Path(sys.argv[2])
            answer.unlink(missing_ok=True)
            answer.symlink_to(state["target"])

        atexit.register(forge)


class Sleeps(TwoHeads):
    """Prints its home folder when it is loaded, and goes on until it is killed."""

    def __setstate__(self, state: dict[str, Any]) -> None:
        print(SEEN + json.dumps(str(Path.home())), flush=True)
        time.sleep(600)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder whose path every account can enter. Those of pytest belong to the account that runs it."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def _closed_to_others(path: Path) -> bool:
    return any(not folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def step_command(folder: Path, code: str) -> list[str]:
    """Return a command that runs code in a Python that all accounts can run. Skip the test if there is none.

    Mounts in a namespace of the command alone replace an environment in a closed folder.
    """
    if _closed_to_others(ROOT):
        pytest.skip("this repository is in a folder that is closed to other accounts")
    run = ["env", f"PYTHONPATH={ROOT / 'include'}{os.pathsep}{ROOT}"]
    if not any(_closed_to_others(Path(prefix)) for prefix in (sys.base_prefix, sys.prefix)):
        return [*run, sys.executable, "-c", code]
    python, packages = folder / "python", Path(sysconfig.get_path("purelib"))
    environment = folder / "environment"
    installed = environment / packages.relative_to(sys.prefix)
    for made in (python, environment / "bin", installed):
        made.mkdir(parents=True)
    (environment / "pyvenv.cfg").write_text(f"home = {python / 'bin'}\n")
    (environment / "bin" / "python").symlink_to(python / "bin" / f"python3.{sys.version_info.minor}")
    mounts = [sys.base_prefix, str(python), str(packages.resolve()), str(installed)]
    mounted = ["unshare", "-m", "sh", "-c", MOUNTED, *mounts]
    if subprocess.run([*mounted, "true"], check=False, capture_output=True).returncode:
        pytest.skip("the Python of this environment is closed to other accounts, and this container cannot mount it")
    return [*mounted, *run, str(environment / "bin" / "python"), "-c", code]


def step(call: str) -> str:
    """Return code that runs a step as a task does. `TRAINED` and `OUT` are its first two arguments."""
    return (
        "import logging, sys\nfrom pathlib import Path\nfrom onnx_release import run_step\n"
        "from onnx_release.export.export_model import ExportStepOptions\n"
        "from onnx_release.benchmark.setup import BenchmarkOptions\n"
        "logging.basicConfig(level=logging.INFO)\n"
        "TRAINED, OUT = Path(sys.argv[1]), Path(sys.argv[2])\n"
        "allowed = {'allow_pickle': True}\n"
        f"{call}\n"
    )


EXPORT = "exported = run_step.export(TRAINED, OUT, ExportStepOptions(device='cpu', **allowed))"
COMPARE = "print(run_step.compare(TRAINED, OUT, exported, BenchmarkOptions(batch_sizes=(1, 4), **allowed)).passed)"


def test_a_pickle_of_a_worker_of_root_runs_with_an_account_that_cannot_leave(tmp_path: Path, open_folder: Path) -> None:
    """The trained model and the output are in folders that only root can enter, as those of a worker are."""
    (tmp_path / "secret").write_text("canary")
    (tmp_path / "secret").chmod(0o600)
    tmp_path.chmod(0o700)
    trained = save(Leaves(tmp_path), tmp_path / "trained", **PICKLED)
    before = sorted(path.name for path in tmp_path.iterdir())
    command = step_command(open_folder, step(f"{EXPORT}\n{COMPARE}"))
    done = subprocess.run(
        [*command, str(trained), str(tmp_path / "out")], capture_output=True, text=True, check=False, cwd=open_folder
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["True"]
    reports = [json.loads(line.split(SEEN)[1]) for line in done.stderr.splitlines() if SEEN in line]
    assert len(reports) >= 2
    for found in reports:
        assert found["ids"] == [PICKLE_USER] * 6
        assert found["groups"] == []
        assert found["capabilities"] == [0]
        assert found["no_new_privs"] == "1"
        assert set(found["outcomes"].values()) == {"failed"}, found["outcomes"]
        assert not Path(found["home"]).exists(), "the home folder is removed with the process"
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([*before, "out"])
    assert (tmp_path / "secret").read_text() == "canary"
    made = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {path.stat().st_uid for path in made} == {0}
    assert "runs as root" not in done.stderr


def test_the_account_alone_protects_the_worker(open_folder: Path) -> None:
    """Without Landlock, without namespaces and without a filter of system calls."""
    secret = open_folder / "closed" / "secret"
    secret.parent.mkdir(mode=0o700)
    secret.write_text("canary")
    code = (
        "import json, os, sys\nfrom pathlib import Path\n"
        "from onnx_release.runners.account import become\n"
        "from onnx_release.runners.isolation import _drop_capabilities\n"
        "from tests.core.runners.test_account import attempts\n"
        "become(int(sys.argv[2]))\n_drop_capabilities()\n"
        "print(json.dumps(attempts(Path(sys.argv[1]), os.getppid())))\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (ROOT / "include", ROOT)))}
    done = subprocess.run(
        [sys.executable, "-c", code, str(secret.parent), str(PICKLE_USER)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["ids"], found["groups"], found["capabilities"]) == ([PICKLE_USER] * 6, [], [0])
    assert set(found["outcomes"].values()) == {"failed"}, found["outcomes"]
    assert secret.read_text() == "canary"


def test_a_step_gets_copies_that_it_cannot_change_and_gives_back_its_outputs(tmp_path: Path, open_folder: Path) -> None:
    """Each file that the options name, and nothing else."""
    names = ("model.ckpt", "inputs.npz", "evaluation.npz", "tuning.npz", "champion/model.onnx")
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(0o600)
    tmp_path.chmod(0o700)
    code = step(
        """
import json, os
from onnx_release.benchmark.setup import ChampionOptions
from onnx_release.runners.account import become
from onnx_release.scratch import scratch_folder
from onnx_release.step_files import step_files
from onnx_release.tuning.options import TuneOptions
champion = ChampionOptions(alias="champion", version=1, folder=str(TRAINED / "champion"))
measuring = BenchmarkOptions(
    inputs_path=str(TRAINED / "inputs.npz"), evaluation_path=str(TRAINED / "evaluation.npz"), champion=champion,
    reproduction_folder=str(OUT / "reproduction"), **allowed,
)
options = TuneOptions(benchmark=measuring, evaluation=str(TRAINED / "tuning.npz"))
with scratch_folder() as scratch:
    arguments = {"trained": TRAINED / "model.ckpt", "out": OUT / "tuned", "options": options}
    with step_files(arguments, scratch) as files:
        changed = files.arguments["options"]
        read = [
            files.arguments["trained"], changed.evaluation, changed.benchmark.inputs_path,
            changed.benchmark.evaluation_path, os.path.join(changed.benchmark.champion.folder, "model.onnx"),
        ]
        if os.fork() == 0:
            become(files.user)
            found = {os.path.basename(path): Path(path).read_text() for path in map(str, read)}
            places = [*map(str, read), *(os.path.dirname(path) for path in read)]
            writable = [place for place in places if os.access(place, os.W_OK)]
            print(json.dumps([found, writable]), flush=True)
            for folder in (files.arguments["out"], Path(changed.benchmark.reproduction_folder)):
                folder.mkdir()
                (folder / "made").write_text(folder.name)
            os._exit(0)
        os.wait()
"""
    )
    done = subprocess.run(
        [*step_command(open_folder, code), str(tmp_path), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=open_folder,
    )
    assert done.returncode == 0, done.stderr
    found, writable = json.loads(done.stdout)
    assert found == {Path(name).name: name for name in names}
    assert writable == []
    assert {path.name: (path / "made").read_text() for path in (tmp_path / "out").iterdir()} == {
        "tuned": "tuned",
        "reproduction": "reproduction",
    }


def test_an_answer_that_is_a_link_is_not_read(tmp_path: Path, open_folder: Path) -> None:
    forged = tmp_path / "forged.json"
    forged.write_text(json.dumps({"unexpected": "canary", "text": "canary"}))
    trained = save(Forges(forged), tmp_path / "trained", **PICKLED)
    done = subprocess.run(
        [*step_command(open_folder, step(EXPORT)), str(trained), str(tmp_path / "out")],
        capture_output=True,
        text=True,
        check=False,
        cwd=open_folder,
    )
    assert "ended with exit status 0" in done.stderr
    assert "canary" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_the_files_of_a_killed_task_are_removed_by_the_next_one(tmp_path: Path, open_folder: Path) -> None:
    trained = save(Sleeps(), tmp_path / "trained", **PICKLED)
    command = [*step_command(open_folder, step(EXPORT)), str(trained), str(tmp_path / "out")]
    task = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=open_folder)
    with task:
        line = next(line for line in task.stderr or () if SEEN in line)
        folder = next(path for path in Path(json.loads(line.split(SEEN)[1])).parents if path.name.startswith(PREFIX))
        assert folder.is_dir()
        task.kill()
        task.communicate()
    assert remove_abandoned() >= 1
    assert not folder.exists()


def test_a_python_that_is_closed_to_the_account_gives_one_warning_and_no_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = tmp_path / "home of root"
    (closed / "packages" / "our_models").mkdir(parents=True)
    closed.chmod(0o700)
    tmp_path.chmod(0o755)
    monkeypatch.syspath_prepend(str(closed / "packages"))
    trained = save(TwoHeads(), tmp_path / "trained", **PICKLED)
    options = ExportStepOptions(device="cpu", allow_pickle=True)
    assert run_step.export(trained, tmp_path / "out", options).trained_format == "pickle"
    (warning,) = (record for record in caplog.records if "runs as root" in record.message)
    assert warning.levelno == logging.WARNING
    assert f"{PICKLE_USER} has no access to /" in warning.message
    assert "chmod o+rx" in warning.message


def test_a_file_that_is_closed_to_the_account_is_named(open_folder: Path) -> None:
    """The file of the measuring lock, in a folder of its own."""
    closed = open_folder / "locks"
    closed.mkdir(mode=0o700)
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from onnx_release.runners.account import child_account\n"
        "lock = Path(sys.argv[1])\nlock.touch()\n"
        "closed = child_account(None, {lock: os.R_OK | os.W_OK})\n"
        "print(closed.user, child_account(None, {}).user, child_account(0, {}), closed.problem, sep='\\n')\n"
    )
    command = [*step_command(open_folder, code), str(closed / "measure.lock")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=open_folder)
    assert done.stdout.splitlines() == [
        "None",
        str(PICKLE_USER),
        "ChildAccount(user=None, problem='', action='')",
        f"the account {PICKLE_USER} has no access to {closed}",
    ], done.stderr


@pytest.mark.parametrize(
    ("configured", "outcome"),
    [("None", f"this worker cannot change to the account {PICKLE_USER}"), ("4000000000", "step_account")],
)
def test_an_account_that_the_container_does_not_have_is_refused_only_where_the_deployment_chose_it(
    configured: str, outcome: str
) -> None:
    code = (
        "from onnx_release.errors import Refused\nfrom onnx_release.runners.account import child_account\n"
        f"try:\n    print(child_account({configured}, {{}}).problem)\nexcept Refused as error:\n    print(error.code)\n"
    )
    # Its user namespace has root alone, as a container without further ids has.
    command = ["unshare", "--user", "--map-root-user", sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "include")}
    if subprocess.run([*command[:3], "true"], check=False, capture_output=True).returncode:
        pytest.skip("this container cannot make a user namespace")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.startswith(outcome), done.stderr


def test_an_account_that_the_worker_could_not_kill_is_not_used() -> None:
    code = "from onnx_release.runners.account import child_account\nprint(child_account(None, {}).problem)\n"
    command = ["setpriv", "--bounding-set=-kill", sys.executable, "-c", code]
    environment = os.environ | {"PYTHONPATH": str(ROOT / "include")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "it lacks CAP_KILL" in done.stdout, done.stderr


def _link(path: Path, _: Path) -> None:
    path.symlink_to("/etc/shadow")


def _link_to_a_folder(path: Path, _: Path) -> None:
    path.symlink_to("/etc")


def _hard_link(path: Path, secret: Path) -> None:
    secret.write_text("canary")
    os.link(secret, path)


def _pipe(path: Path, _: Path) -> None:
    os.mkfifo(path)
    os.lchown(path, PICKLE_USER, PICKLE_USER)


@pytest.mark.parametrize("plant", [_link, _link_to_a_folder, _hard_link, _pipe])
@pytest.mark.parametrize("below", ["", "data"])
def test_an_output_with_something_else_than_files_of_the_account_is_refused(
    tmp_path: Path, plant: Callable[[Path, Path], None], below: str
) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / below).mkdir(parents=True)
    target.mkdir()
    plant(source / below / "weights", tmp_path / "secret")
    with refused("special_file", "'weights'") as caught:
        copy_untrusted(source, target, PICKLE_USER)
    assert isinstance(caught.value, ArtifactRefused)
    assert not [path for path in target.rglob("*") if not path.is_dir()]


def test_files_of_the_account_are_copied_with_their_folders(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    (source / "data").mkdir(parents=True)
    target.mkdir()
    for name in ("model.onnx", "data/weights"):
        (source / name).write_text(name)
        os.chown(source / name, PICKLE_USER, PICKLE_USER)
    copy_untrusted(source, target, PICKLE_USER)
    assert (target / "data" / "weights").read_text() == "data/weights"
    assert {path.stat().st_uid for path in target.rglob("*")} == {0}
