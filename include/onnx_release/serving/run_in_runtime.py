"""Script that runs models in the ONNX Runtime of another environment. It needs only onnxruntime and numpy.

``python run_in_runtime.py MARK`` reads requests from standard input, each a line of JSON, and answers each with a line
of MARK and JSON. Libraries may print other lines. The requests are:

- ``open``: `model`, `threads`, `config`, `optimize` and `memory_bytes`. It replaces the model before.
- ``run``: `inputs` is an ``.npz`` file whose arrays have the names in `names`. The outputs go to the file `outputs`.
- ``time``: `inputs` and `names` as above, `calls` timed calls, none of which begins after `max_s`.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from typing import Any

import numpy as np
import onnxruntime

_ERROR_CHARACTERS = 600


class _Models:
    """The open model of this process."""

    def __init__(self) -> None:
        self._session: Any = None

    def open(self, request: dict[str, Any]) -> dict[str, Any]:
        self._session = None
        if limit := request["memory_bytes"]:
            # A larger allocation then fails with an error, and the process that needs it is known.
            with contextlib.suppress(OSError, ValueError):
                resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = request["threads"]
        for key, text in request["config"].items():
            options.add_session_config_entry(key, text)
        if not request["optimize"]:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        self._session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
        return {"outputs": [output.name for output in self._session.get_outputs()]}

    def run(self, request: dict[str, Any]) -> dict[str, Any]:
        outputs = self._session.run(None, _inputs(request))
        if not all(isinstance(array, np.ndarray) and array.dtype != object for array in outputs):
            raise TypeError("an output is not a tensor of numbers")
        np.savez(request["outputs"], *outputs)
        return {}

    def time(self, request: dict[str, Any]) -> dict[str, Any]:
        inputs, until = _inputs(request), time.perf_counter() + request["max_s"]
        # Not timed: it refills the caches after another process.
        self._session.run(None, inputs)
        walls: list[float] = []
        cpu_begin = time.process_time()
        for _ in range(request["calls"]):
            begin = time.perf_counter()
            if begin > until:
                break
            self._session.run(None, inputs)
            walls.append(time.perf_counter() - begin)
        return {"wall_s": walls, "cpu_s": (time.process_time() - cpu_begin) / max(1, len(walls))}


def _inputs(request: dict[str, Any]) -> dict[str, Any]:
    with np.load(request["inputs"], allow_pickle=False) as archive:
        return {name: archive[f"arr_{position}"] for position, name in enumerate(request["names"])}


def _main(mark: str) -> None:
    models = _Models()
    about = {"version": onnxruntime.__version__, "pid": os.getpid(), "error": None}
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(models, request["do"])(request)
        except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
            answer = {"error": f"{error or type(error).__name__}"[:_ERROR_CHARACTERS]}
        # A library may have left its line open.
        sys.stdout.write(f"\n{mark}{json.dumps({**about, **answer})}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    _main(sys.argv[1])
