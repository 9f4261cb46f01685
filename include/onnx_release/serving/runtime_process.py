"""Process of another environment that runs models in its version of ONNX Runtime."""

from __future__ import annotations

import json
import os
import re
import secrets
import selectors
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO, Any, Self, cast

import numpy as np

from onnx_release.errors import RunnerRefused
from onnx_release.latency.host import CpuWait
from onnx_release.latency.rounds import Block, TimeUp
from onnx_release.runners.child_process import clean_environment, describe_exit, start_guarded
from onnx_release.scratch import scratch_folder
from onnx_release.serving import run_in_runtime
from onnx_release.serving.runtime_environment import RuntimeEnvironment
from onnx_release.text import shorten, without_folders
from onnx_release.trained.arrays import Arrays, describe_arrays

# A place in the source code of ONNX Runtime, with the signature of the function.
_SOURCE_PLACE = re.compile(r"\s?/\S*onnxruntime_src/.*?\)\s+(?=[A-Z])", re.DOTALL)
_OUTPUT_MAX_BYTES = 2**20
_TIMED = "inputs-timed.npz"


class RuntimeEnded(Exception):
    """End of a process without an answer. `returncode` is None for one that did not answer in time."""

    def __init__(self, returncode: int | None, problem: str, output: str = "") -> None:
        super().__init__(problem)
        self.returncode = returncode
        self.problem = problem
        self.output = output


class RuntimeProcess:
    """Process with one version of ONNX Runtime. It starts at ``with``, and all its files are removed at the end.

    A crash, an endless run and a model that needs too much memory end this process alone.

    Args:
        environment: The environment.
        deadline_s: The time for all its work. The process ends afterwards.
        memory_bytes: The limit of its memory; None: no limit.
    """

    def __init__(self, environment: RuntimeEnvironment, deadline_s: float, memory_bytes: int | None = None) -> None:
        self.environment = environment
        self.version = ""
        self.outputs: tuple[str, ...] = ()
        self._deadline_s = deadline_s
        self._until = 0.0
        self._memory_bytes = memory_bytes
        self._stack = ExitStack()
        self._mark = f"{secrets.token_hex(16)} "
        self._read = b""
        self._pid: int | None = None

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self.scratch = stack.enter_context(scratch_folder())
            script = Path(run_in_runtime.__file__).resolve()
            # The environment of the worker itself needs its import path; another one must not get it.
            isolated = [] if self.environment.is_own else ["-I"]
            command = [self.environment.python, *isolated, str(script), self._mark]
            variables = clean_environment(str(self.scratch))
            self._child = start_guarded(command, variables, self.scratch, stdin=subprocess.PIPE)
            stack.callback(self._end)
            self.restart_clock()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def restart_clock(self) -> None:
        """Give the process all its time again."""
        self._until = time.monotonic() + self._deadline_s

    def open(self, model: Path, threads: int, config: Mapping[str, str], *, optimize: bool = True) -> str | None:
        """Open a model in place of the one before. Return ONNX Runtime's error, or None.

        Raises:
            RuntimeEnded: The process crashed, or did not answer in time.
        """
        answer = self._call(
            {
                "do": "open",
                "model": str(model.resolve()),
                "threads": threads,
                "config": dict(config),
                "optimize": optimize,
                "memory_bytes": self._memory_bytes,
            }
        )
        self.version, self._pid = answer["version"], answer["pid"]
        if answer["error"] is not None:
            return readable(answer["error"])
        self.outputs = tuple(answer["outputs"])
        return None

    def run(self, inputs: Arrays) -> Arrays | str:
        """Run the open model. Return its outputs, or ONNX Runtime's error.

        Raises:
            RuntimeEnded: As in `open`.
        """
        outputs = self.scratch / "outputs.npz"
        answer = self._call({"do": "run", "outputs": str(outputs), **self._written(inputs, "inputs.npz")})
        if answer["error"] is not None:
            return readable(answer["error"])
        with np.load(outputs, allow_pickle=False) as archive:
            return {name: archive[f"arr_{position}"] for position, name in enumerate(self.outputs)}

    def time(self, inputs: Arrays, calls: int, max_s: float) -> Block:
        """Time calls of the open model in its process.

        Raises:
            RuntimeEnded: As in `open`.
            TimeUp: Not all calls began within `max_s`.
        """
        max_s = min(max_s, self._deadline_s)
        request = {"do": "time", "calls": calls, "max_s": max_s, **self._written(inputs, _TIMED)}
        wait = CpuWait(self._pid)
        answer = self._call(request)
        share = wait.share()
        if answer["error"] is not None:
            raise _failed(self.environment.version, inputs, readable(answer["error"]))
        if len(answer["wall_s"]) < calls:
            raise TimeUp
        return Block(wall_s=tuple(answer["wall_s"]), cpu_s=answer["cpu_s"], cpu_wait_share=share)

    def _written(self, inputs: Arrays, name: str) -> dict[str, Any]:
        path = self.scratch / name
        np.savez(path, *inputs.values())
        return {"inputs": str(path), "names": list(inputs)}

    def _call(self, request: Mapping[str, Any]) -> dict[str, Any]:
        stdin, stdout = cast("IO[str]", self._child.stdin), cast("IO[str]", self._child.stdout)
        # The process may have ended; the end of its output follows.
        with suppress(BrokenPipeError):
            stdin.write(f"{json.dumps(request)}\n")
            stdin.flush()
        mark = self._mark.encode()
        with selectors.DefaultSelector() as selector:
            selector.register(stdout, selectors.EVENT_READ)
            while True:
                before, found, after = self._read.partition(mark)
                if found and b"\n" in after:
                    line, _, self._read = after.partition(b"\n")
                    answer: dict[str, Any] = json.loads(line)
                    return answer
                if not found:
                    # A library may print without an end.
                    self._read = before[-_OUTPUT_MAX_BYTES:]
                left = self._until - time.monotonic()
                if left <= 0 or not selector.select(left):
                    self._end()
                    raise RuntimeEnded(None, f"does not end within {self._deadline_s:g} s")
                read = os.read(stdout.fileno(), 2**16)
                if not read:
                    raise self._ended()
                self._read += read

    def _ended(self) -> RuntimeEnded:
        # The end of its output may come before its own.
        with suppress(subprocess.TimeoutExpired):
            self._child.wait(10)
        code = self._child.poll()
        output = " ".join(self._read.decode(errors="replace").split())
        if code is None:
            return RuntimeEnded(None, "closed its output", output)
        return RuntimeEnded(code, f"crashes: its process {describe_exit(code)}", output)

    def _end(self) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        for pipe in (self._child.stdin, self._child.stdout):
            with suppress(BrokenPipeError):
                if pipe:
                    pipe.close()


class RuntimeRunner:
    """Open model of a `RuntimeProcess`, as a runner. The process measures its own calls.

    Args:
        process: The process, which stays open.
        like: The outputs of another side: numpy stores a dtype that it lacks, such as bfloat16, as plain bytes.
    """

    def __init__(self, process: RuntimeProcess, like: Sequence[Arrays] = ()) -> None:
        self.process = process
        self.name = f"ONNX Runtime {process.environment.version}"
        self._dtypes = {name: array.dtype for outputs in like for name, array in outputs.items()}

    def run(self, inputs: Arrays) -> Arrays:
        """Run the model; see `Runner.run`.

        Raises:
            RunnerRefused: ONNX Runtime raises an error.
            RuntimeEnded: The process crashed, or did not answer in time.
        """
        outputs = self.process.run(inputs)
        if isinstance(outputs, str):
            raise _failed(self.process.environment.version, inputs, outputs)
        for name, array in outputs.items():
            dtype = self._dtypes.get(name, array.dtype)
            if array.dtype.kind == "V" and array.dtype.itemsize == dtype.itemsize:
                outputs[name] = array.view(dtype)
        return outputs

    def time_block(self, inputs: Arrays, calls: int, until: float) -> Block:
        """Time calls in the process; see `latency.measure.SelfTiming`."""
        return self.process.time(inputs, calls, until - time.perf_counter())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        pass


def readable(error: str) -> str:
    """Return the text of ONNX Runtime's error, without the places in its source code and the folders of the worker."""
    return shorten(without_folders(_SOURCE_PLACE.sub(" ", error)), 400)


def _failed(version: str, inputs: Arrays, error: str) -> RunnerRefused:
    return RunnerRefused(
        f"The model on inputs {describe_arrays(inputs)}",
        f"does not run in ONNX Runtime {version}: {error}",
        "Export with an older opset, or keep the runtime.",
        code="onnxruntime_failed",
    )
