"""Script that runs a model in the ONNX Runtime of another environment. It needs only onnxruntime and numpy.

``python run_in_runtime.py REQUEST``: the JSON file has the path of the model, the session's settings, and the folder
with ``0.npz``, ``1.npz`` and so on, whose arrays are the inputs in order. The outputs go to ``out-0.npz`` and so on,
the result to ``result.json``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

_ERROR_CHARACTERS = 600


def _run(request: dict[str, Any], folder: Path) -> dict[str, Any]:
    result: dict[str, Any] = {"version": onnxruntime.__version__, "loads": False, "error": None, "cases": []}
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = request["threads"]
    for key, text in request["config"].items():
        options.add_session_config_entry(key, text)
    try:
        session = onnxruntime.InferenceSession(request["model"], options, providers=["CPUExecutionProvider"])
    except Exception as error:  # noqa: BLE001 - ONNX Runtime's errors share no base class
        return {**result, "error": str(error)[:_ERROR_CHARACTERS]}
    result["loads"] = True
    result["outputs"] = [output.name for output in session.get_outputs()]
    for index, names in enumerate(request["cases"]):
        with np.load(folder / f"{index}.npz", allow_pickle=False) as archive:
            inputs = {name: archive[f"arr_{position}"] for position, name in enumerate(names)}
        try:
            outputs = session.run(None, inputs)
        except Exception as error:  # noqa: BLE001 - as above
            result["cases"].append(str(error)[:_ERROR_CHARACTERS])
            continue
        np.savez(folder / f"out-{index}.npz", *outputs)
        result["cases"].append(None)
    return result


if __name__ == "__main__":
    path = Path(sys.argv[1])
    answer = _run(json.loads(path.read_text()), path.parent)
    (path.parent / "result.json").write_text(json.dumps(answer))
