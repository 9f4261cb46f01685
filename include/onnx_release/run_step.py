"""Public calls of the core: `export`, `benchmark`, `compare` and `tune`.

Each call runs in this process, or in a child process when it may run the training run's own code (a pickle). The child
has the worker's account, or another one where the worker is root (`runners.account`). Its memory, environment and open
files contain no connection, variable or secret of Airflow, and `runners.isolation` keeps it from other processes, other
files and the network. Its home folder is removed when it ends, and the processes that it started end with it. A child
that crashes is a failed step.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from onnx_release import limits
from onnx_release.errors import ReleaseError, RunnerRefused
from onnx_release.limits import MODEL_SUFFIXES, NO_CODE_SUFFIXES
from onnx_release.machine_faults import causes, machine_failure
from onnx_release.records import BenchmarkReport, OnnxArtifact, ParityReport
from onnx_release.records.base import Record
from onnx_release.runners.child_process import (
    clean_environment,
    describe_exit,
    end_with_parent,
    raise_if_ended_from_outside,
    start_guarded,
)
from onnx_release.runners.descendants import ended_afterwards, machine_bytes, memory_bytes
from onnx_release.runners.isolation import hide_from_children, isolate
from onnx_release.scratch import scratch_folder
from onnx_release.step_files import step_files
from onnx_release.text import shorten

if TYPE_CHECKING:
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.export.export_model import ExportStepOptions
    from onnx_release.tuning.options import TuneOptions

P = ParamSpec("P")
R = TypeVar("R", bound=Record)

_log = logging.getLogger(__name__)
_TAIL_CHARACTERS = 600
_MEMORY_POLL_S = 0.5
# The last lines of a child that has ended arrive within this time.
_OUTPUT_END_S = 5.0
_STEPS: dict[str, Callable[..., Record]] = {}


def _step(returns: type[R]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function as a step, which runs in a child process when the training run's code may run.

    The function has a parameter `trained` (a path) and a parameter `options` (a record with `allow_pickle`,
    `pickle_memory_bytes` and `pickle_user`). Its arguments are paths and records, because they travel as JSON. It
    writes into the folder of its parameter `out`, and into the files that its options name (see `step_files`).
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__
        _STEPS[name] = function

        @functools.wraps(function)
        def run(*args: P.args, **kwargs: P.kwargs) -> R:
            arguments = inspect.signature(function).bind(*args, **kwargs).arguments
            if runs_code(arguments["trained"], allow_pickle=arguments["options"].allow_pickle):
                return returns.from_dict(_run_in_child(name, arguments))
            return function(*args, **kwargs)

        return run

    return register


@_step(OnnxArtifact)
def export(trained: Path, out: Path, options: ExportStepOptions) -> OnnxArtifact:
    """Export a trained model to an artifact folder.

    Args:
        trained: The trained model: an MLflow model folder, or a file of a model or of weights.
        out: The artifact folder to write. An existing folder is replaced.
        options: The options of the export.

    Returns:
        The record of the artifact in `out`.

    Raises:
        Refused: The model cannot be read, loaded or exported, or the child process crashed.
        Transient: The child process was killed.
    """
    from onnx_release.export.export_model import export_trained

    return export_trained(trained, out, options)


@_step(BenchmarkReport)
def benchmark(trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions) -> BenchmarkReport:
    """Compare an artifact with its trained model, and measure the latency of both.

    Args:
        trained: The trained model, as for `export`.
        folder: The artifact folder.
        artifact: The record of the artifact.
        options: The options of comparison and measurement.

    Returns:
        The report with the verdict. A missed limit is part of the report and raises nothing.

    Raises:
        Refused: The model or the folder cannot be used, or the child process crashed.
        Transient: The child process was killed.
    """
    from onnx_release.benchmark.benchmark_model import benchmark_artifact

    return benchmark_artifact(trained, folder, artifact, options)


@_step(ParityReport)
def compare(trained: Path, folder: Path, artifact: OnnxArtifact, options: BenchmarkOptions) -> ParityReport:
    """Compare an artifact with its trained model without measuring latency.

    Args:
        trained: The trained model, as for `export`.
        folder: The artifact folder.
        artifact: The record of the artifact.
        options: The options of the comparison.

    Returns:
        The report with the verdict. A missed limit is part of the report and raises nothing.

    Raises:
        Refused: The model or the folder cannot be used, or the child process crashed.
        Transient: The child process was killed.
    """
    from onnx_release.benchmark.benchmark_model import compare_artifact

    return compare_artifact(trained, folder, artifact, options)


@_step(OnnxArtifact)
def tune(trained: Path, folder: Path, artifact: OnnxArtifact, out: Path, options: TuneOptions) -> OnnxArtifact:
    """Search a faster artifact for a trained model.

    Args:
        trained: The trained model, as for `export`.
        folder: The artifact folder of the plain export.
        artifact: The record of the plain export.
        out: The folder for the chosen artifact.
        options: The options of the search.

    Returns:
        The record of the chosen artifact in `out`, or `artifact` when no candidate is faster; either has the report of
        the search in `tuning`.

    Raises:
        Refused: The model or the folder cannot be used, or the child process crashed.
        Transient: The child process was killed.
    """
    from onnx_release.tuning.tune_model import tune_artifact

    return tune_artifact(trained, folder, artifact, out, options)


def runs_code(trained: Path, *, allow_pickle: bool) -> bool:
    """Return True when loading the trained model may run its own code.

    Args:
        trained: The trained model: a folder, or a file of a model or of weights.
        allow_pickle: True where the deployment allows pickles. Elsewhere a pickle is refused unopened.
    """
    files = trained.rglob("*") if trained.is_dir() else [trained]
    names = [file.name.lower() for file in files]
    return allow_pickle and any(name.endswith(MODEL_SUFFIXES) and not name.endswith(NO_CODE_SUFFIXES) for name in names)


def _run_in_child(step: str, arguments: Mapping[str, Any]) -> Any:
    """Run a step in a child process and return its record as a dict.

    Raises:
        ReleaseError: The error that the step raised in the child.
        Transient: The child was killed, or has too little memory or disk.
        ImportError: A package is missing in the child.
        RuntimeError: The step raised an unexpected error.
        RunnerRefused: The child crashed or ended without an answer.
    """
    with scratch_folder() as scratch, step_files(arguments, scratch) as files:
        request = scratch / "request.json"
        encoded = {name: _encode(value) for name, value in files.arguments.items()}
        paths = {"read": [*map(str, files.read)], "written": [*map(str, files.written)]}
        request.write_text(json.dumps({"step": step, "arguments": encoded, "files": paths, "user": files.user}))
        command = [sys.executable, "-m", __name__, str(request), str(files.answer)]
        exit_code, output = _run(command, files.home, arguments["options"].pickle_memory_bytes)
        result = files.read_answer()
        # An error leaves the block before the outputs move to their places.
        if "record" in result:
            return result["record"]
        if "error" in result:
            raise ReleaseError.from_dict(result["error"])
        if "missing" in result:
            raise ImportError(result["text"], name=result["missing"])
        if "unexpected" in result:
            raise RuntimeError(f"{result['unexpected']}: {result['text']}")
        subject, end = f"The process of the step '{step}'", describe_exit(exit_code)
        raise_if_ended_from_outside(subject, exit_code, output)
        raise RunnerRefused(
            subject,
            f"{end}: {output[-_TAIL_CHARACTERS:]}",
            "The model's own code or a library crashed. Try it in a shell with the same versions.",
            code="step_crashed",
        )


def _encode(value: Path | Record) -> Any:
    if isinstance(value, Path):
        return str(value.resolve())
    cls = type(value)
    return {"module": cls.__module__, "class": cls.__name__, "fields": value.to_dict()}


def _decode(value: Any) -> Path | Record:
    if isinstance(value, str):
        return Path(value)
    cls: type[Record] = getattr(importlib.import_module(value["module"]), value["class"])
    return cls.from_dict(value["fields"])


def _run(command: list[str], home: Path, memory: int | None) -> tuple[int, str]:
    """Run a command to its end and log each line of its output; return the exit code and the end of the output."""
    hide_from_children()
    with ended_afterwards():
        return _run_within(command, home, memory or int(limits.PICKLE_MEMORY_SHARE * machine_bytes()))


def _run_within(command: list[str], home: Path, memory: int) -> tuple[int, str]:
    child = start_guarded(command, clean_environment(str(home)), home)
    output = _Output(child)
    until = time.monotonic() + limits.PICKLE_MAX_S
    try:
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return child.wait(_MEMORY_POLL_S), output.end()
            if time.monotonic() > until:
                raise RunnerRefused(
                    "The process of the step",
                    f"ran for more than {limits.PICKLE_MAX_S:g} s, the limit of a pickle",
                    "Log the model with serialization_format='pt2', or find the loop in its code.",
                    code="step_too_long",
                )
            if memory_bytes(child.pid) > memory:
                raise RunnerRefused(
                    "The process of the step",
                    f"used more than {memory / 2**30:.3g} GiB of memory, the limit of a pickle",
                    "Log the model with serialization_format='pt2', or raise [onnx_release] pickle_memory_bytes.",
                    code="step_memory",
                )
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()


class _Output:
    """Output of a child process, which a thread logs line by line.

    A process that the child leaves behind can keep the pipe open, so the end of the child ends the wait for the thread.
    """

    def __init__(self, child: subprocess.Popen[str]) -> None:
        self._pipe = child.stdout
        self._text = ""
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        for line in self._pipe or ():
            _log.info("%s", line.rstrip())
            self._text = (self._text + line)[-4 * _TAIL_CHARACTERS :]

    def end(self) -> str:
        """Return the last lines."""
        self._thread.join(_OUTPUT_END_S)
        return " ".join(self._text.split())


def _main(request_path: str, answer_path: str) -> int:
    request = json.loads(Path(request_path).read_text())
    # Before torch starts threads: a namespace is for processes with one thread.
    read, written = ([Path(path) for path in request["files"][kind]] for kind in ("read", "written"))
    missing = list(isolate(read, written, request["user"]))
    end_with_parent()
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    # Progress lines, which the parent logs. A library may replace the handlers of the root logger.
    own, handler = logging.getLogger("onnx_release"), logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(message)s"))
    own.addHandler(handler)
    own.setLevel(logging.INFO)
    own.propagate = False
    if missing:
        _log.warning("The kernel does not isolate the process of this pickle: %s.", ", and ".join(missing))
    arguments = {name: _decode(value) for name, value in request["arguments"].items()}
    try:
        answer: dict[str, Any] = {"record": _STEPS[request["step"]](**arguments).to_dict()}
    except Exception as error:  # noqa: BLE001 - a model's own code can raise anything
        failure = _forbidden(error) or machine_failure(error) or error
        if isinstance(failure, ReleaseError):
            answer = {"error": failure.to_dict()}
        else:
            # The log gets the frames.
            traceback.print_exc()
            kind = "missing" if isinstance(error, ImportError) else "unexpected"
            name = getattr(error, "name", None) if kind == "missing" else type(error).__name__
            answer = {kind: str(name or "of a library"), "text": shorten(error)}
    # The rename is atomic, so the parent never reads a part of an answer.
    part = Path(f"{answer_path}.part")
    part.write_text(json.dumps(answer))
    part.replace(answer_path)
    return 0


def _forbidden(error: Exception) -> RunnerRefused | None:
    """Return the refusal of code that needs more than its process may use, or None."""
    denied = next((cause for cause in causes(error) if isinstance(cause, PermissionError)), None)
    if denied is None:
        return None
    return RunnerRefused(
        "The code of the training run",
        f"uses {denied.filename or 'a socket'!r:.200}, which its process may not: {denied.strerror}",
        "Log the files with the model. Packages are readable where PYTHONPATH names their folder.",
        code="step_forbidden",
    )


if __name__ == "__main__":
    raise SystemExit(_main(*sys.argv[1:]))
