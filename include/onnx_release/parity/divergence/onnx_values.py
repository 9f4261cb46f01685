"""Sessions of ONNX Runtime on a part of a graph, which is only in memory; its weights stay in their file."""

from __future__ import annotations

from pathlib import Path

import onnxruntime

from onnx_release.errors import ParityRefused
from onnx_release.latency.host import usable_cpus
from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays

_SILENT = 4
_ACTION = "Compare the node of the message with the model."


class Piece:
    """Session on a serialised part of a graph, on the CPU.

    Args:
        model: The bytes of the ONNX model.
        folder: The folder of its external data.
        optimize: True for ONNX Runtime's graph optimisations.

    Raises:
        ParityRefused: when ONNX Runtime does not load the part.
    """

    def __init__(self, model: bytes, folder: Path, *, optimize: bool = False) -> None:
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
            problem = f"is not loaded by ONNX Runtime: {shorten(error)}"
            raise ParityRefused("A part of the graph", problem, _ACTION, code="part_rejected") from error
        self._inputs = {value.name for value in self._session.get_inputs()}
        self._outputs = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Return every output by name. Arrays that are not inputs of the part are ignored.

        Raises:
            ParityRefused: when ONNX Runtime does not run the part.
        """
        try:
            found = self._session.run(None, {name: array for name, array in inputs.items() if name in self._inputs})
        except Exception as error:  # ONNX Runtime's errors share no base class
            problem = f"does not run: {shorten(error)}"
            raise ParityRefused("A part of the graph", problem, _ACTION, code="part_failed") from error
        return dict(zip(self._outputs, found, strict=True))
