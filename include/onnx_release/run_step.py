"""The export and the judging in a process of their own, for models whose loading or running is the run's own code.

The code has the account of the worker and could read what that account can, so it is a deployment's choice to allow it
at all. But it finds no connection, no variable and no secret of Airflow's in its memory, its environment or its open
files, what it leaves in its home is gone with it, and when it crashes, the task says so.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from onnx_release.errors import Refused, ReleaseError, Transient
from onnx_release.limits import MODEL_SUFFIXES
from onnx_release.records import BenchmarkReport, OnnxArtifact, ParityReport
from onnx_release.records.base import Record
from onnx_release.runners.child_process import clean_environment, end_with_parent, how_it_ended

if TYPE_CHECKING:
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.export.export_model import ExportStepOptions
    from onnx_release.tuning.options import TuneOptions

R = TypeVar("R", bound=Record)

_log = logging.getLogger(__name__)
_TAIL_CHARACTERS = 600


def export_trained(trained: Path, out: Path, options: ExportStepOptions) -> OnnxArtifact:
    """Export as `export_model.export_trained` does, in a child process when the run's own code is to run."""
    if runs_code(trained, allow_pickle=options.allow_pickle):
        return _in_child(
            OnnxArtifact, "export", trained=str(trained.resolve()), out=str(out.resolve()), options=options.to_dict()
        )
    from onnx_release.export import export_model

    return export_model.export_trained(trained, out, options)


def benchmark_artifact(
    trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions
) -> BenchmarkReport:
    """Judge as `benchmark_model.benchmark_artifact` does, in a child process when the run's own code is to run."""
    if runs_code(trained, allow_pickle=options.allow_pickle):
        return _in_child(BenchmarkReport, "judge", **_case(trained, folder, artifact, options))
    from onnx_release.benchmark import benchmark_model

    return benchmark_model.benchmark_artifact(trained, folder, artifact, options)


def compare_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions) -> ParityReport:
    """Compare as `benchmark_model.compare_artifact` does, in a child process when the run's own code is to run."""
    if runs_code(trained, allow_pickle=options.allow_pickle):
        return _in_child(ParityReport, "compare", **_case(trained, folder, artifact, options))
    from onnx_release.benchmark import benchmark_model

    return benchmark_model.compare_artifact(trained, folder, artifact, options)


def tune_artifact(trained: Path, folder: Path, artifact: OnnxArtifact, out: Path, options: TuneOptions) -> OnnxArtifact:
    """Tune as `tuning.tune_artifact` does, in a child process when the run's own code is to run."""
    if runs_code(trained, allow_pickle=options.judge.allow_pickle):
        case = _case(trained, folder, artifact, options)
        return _in_child(OnnxArtifact, "tune", out=str(out.resolve()), **case)
    from onnx_release.tuning.tune_model import tune_artifact as tune

    return tune(trained, folder, artifact, out, options)


def _case(trained: Path, folder: Path, artifact: OnnxArtifact, options: Record) -> dict[str, Any]:
    return {
        "trained": str(trained.resolve()),
        "folder": str(folder.resolve()),
        "artifact": artifact.to_dict(),
        "options": options.to_dict(),
    }


def runs_code(trained: Path, *, allow_pickle: bool) -> bool:
    """Say whether loading what the training run left may run its code: a pickle's, where pickles are allowed."""
    files = trained.rglob("*") if trained.is_dir() else [trained]
    safe = (".pt2", ".safetensors")
    return allow_pickle and any(file.suffix in MODEL_SUFFIXES and file.suffix not in safe for file in files)


def _in_child(cls: type[R], step: str, **request: Any) -> R:
    """Run a step in a child and return its record; what the child raises is raised here.

    :raises Transient: when the child was killed, which a worker with more memory may not have to do.
    :raises Refused: when it crashed or ended without an answer.
    """
    with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        asked, answered = Path(scratch, "request.json"), Path(scratch, "answer.json")
        asked.write_text(json.dumps({"step": step, **request}))
        home = Path(scratch, "home")
        home.mkdir()
        code, said = _run([sys.executable, "-m", __name__, str(asked), str(answered)], home)
        answer = json.loads(answered.read_text()) if answered.exists() else {}
    if "record" in answer:
        return cls.from_dict(answer["record"])
    if "error" in answer:
        kind = Transient if answer["error"].pop("transient") else Refused
        raise kind(**answer["error"])
    how = how_it_ended(code)
    if code == -signal.SIGKILL:
        raise Transient(f"the process of the {step}", how, "Give the worker more memory, or release a smaller model.")
    raise Refused(
        f"the process of the {step}",
        f"{how}: {said[-_TAIL_CHARACTERS:]}",
        "The model's own code or a library crashed; try it in a shell with the same versions.",
    )


def _run(command: list[str], home: Path) -> tuple[int, str]:
    """Run to the end, each line of its output a line of this task's log; the child ends when this process does."""
    child = subprocess.Popen(
        command,
        cwd=home,
        env=clean_environment(str(home)),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    said = ""
    try:
        assert child.stdout is not None  # noqa: S101 - it was asked for
        for line in child.stdout:
            _log.info("%s", line.rstrip())
            said = (said + line)[-4 * _TAIL_CHARACTERS :]
        return child.wait(), " ".join(said.split())
    finally:
        child.kill()
        child.wait()


def _export(request: dict[str, Any]) -> Record:
    from onnx_release.export import export_model

    options = export_model.ExportStepOptions.from_dict(request["options"])
    return export_model.export_trained(Path(request["trained"]), Path(request["out"]), options)


def _judge(request: dict[str, Any]) -> Record:
    from onnx_release.benchmark import benchmark_model

    return benchmark_model.benchmark_artifact(*_read_case(request))


def _compare(request: dict[str, Any]) -> Record:
    from onnx_release.benchmark import benchmark_model

    return benchmark_model.compare_artifact(*_read_case(request))


def _tune(request: dict[str, Any]) -> Record:
    from onnx_release.tuning.options import TuneOptions
    from onnx_release.tuning.tune_model import tune_artifact as tune

    artifact, options = OnnxArtifact.from_dict(request["artifact"]), TuneOptions.from_dict(request["options"])
    return tune(Path(request["trained"]), Path(request["folder"]), artifact, Path(request["out"]), options)


def _read_case(request: dict[str, Any]) -> tuple[Path, Path, OnnxArtifact, BenchmarkOptions]:
    from onnx_release.benchmark.setup import BenchmarkOptions

    artifact = OnnxArtifact.from_dict(request["artifact"])
    options = BenchmarkOptions.from_dict(request["options"])
    return Path(request["trained"]), Path(request["folder"]), artifact, options


_STEPS: dict[str, Callable[[dict[str, Any]], Record]] = {
    "export": _export, "judge": _judge, "compare": _compare, "tune": _tune,
}  # fmt: skip


def _main(asked: str, answered: str) -> int:
    end_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    request = json.loads(Path(asked).read_text())
    try:
        answer: dict[str, Any] = {"record": _STEPS[request["step"]](request).to_dict()}
    except ReleaseError as error:
        told = {"subject": error.subject, "problem": error.problem, "action": error.action}
        answer = {"error": {**told, "transient": isinstance(error, Transient)}}
    # The model's code may have written to the folder: the answer is a whole file or none.
    half = Path(f"{answered}.part")
    half.write_text(json.dumps(answer))
    half.replace(answered)
    return 0


if __name__ == "__main__":
    raise SystemExit(_main(*sys.argv[1:]))
