"""ONNX Runtime on pieces of a graph that are in no file, with weights that stay in theirs."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from onnx_release.errors import Refused
from onnx_release.latency.host import usable_cpus
from onnx_release.trained.arrays import Arrays

_SILENT = 4
_ACTION = "Look at the node that the message names."


class Piece:
    """A session on a serialised graph, on the CPU; relative paths of external data are below `folder`."""

    def __init__(self, model: bytes, folder: Path, *, optimize: bool = False) -> None:
        """Open the session, without graph optimisations unless told; raises `Refused` when it is not accepted."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _SILENT
        options.intra_op_num_threads = usable_cpus()
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder.resolve()))
        levels = onnxruntime.GraphOptimizationLevel
        options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimize else levels.ORT_DISABLE_ALL
        try:
            self._session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise Refused("a piece of the graph", f"is not accepted: {_words(error)}", _ACTION) from error
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Return every output by name; inputs that the piece does not take are left out.

        :raises Refused: when it cannot be run on them.
        """
        try:
            found = self._session.run(None, {name: array for name, array in inputs.items() if name in self._inputs})
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise Refused("a piece of the graph", f"does not run: {_words(error)}", _ACTION) from error
        return dict(zip(self._outputs, found, strict=True))


def _words(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
