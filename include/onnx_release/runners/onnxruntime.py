"""ONNX Runtime's side of a comparison."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import onnxruntime

from onnx_release.errors import Refused
from onnx_release.trained.arrays import Arrays

CPU_PROVIDERS = ("CPUExecutionProvider",)
CUDA_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

_ERRORS_ONLY = 3


def cuda_available() -> bool:
    """Say whether the installed ONNX Runtime was built with CUDA."""
    return CUDA_PROVIDERS[0] in onnxruntime.get_available_providers()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntimeOptions:
    """How to run the session; `threads` of None leaves the number to ONNX Runtime.

    `session_options` are what MLflow reads from an MLmodel's ``onnx_session_options``, as far as this project writes
    them: ``intra_op_num_threads``, which wins over `threads`, and ``extra_session_config``, texts by name.
    """

    threads: int | None = None
    providers: tuple[str, ...] = CPU_PROVIDERS
    session_options: dict[str, Any] = field(default_factory=dict)


class OnnxRuntimeRunner:
    """A session on one model file. Keep one alive at a time: each holds threads and a packed copy of the weights."""

    name = "ONNX Runtime"

    def __init__(self, path: Path, options: OnnxRuntimeOptions) -> None:
        """Open the session; raises `Refused` with ONNX Runtime's own words when it does not take the model."""
        self.providers_requested = options.providers
        self._path = path
        self._session: Any = _open_session(path, options)
        self.providers_active: tuple[str, ...] = tuple(self._session.get_providers())
        self._outputs = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Return every output of the graph by name; inputs must be those of the graph, with its dtypes."""
        if self._session is None:
            raise RuntimeError("the session is closed")
        try:
            outputs = self._session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise _refused(f"{self._path.name} on inputs {_shapes(inputs)}", "does not run", error) from error
        return dict(zip(self._outputs, outputs, strict=True))

    def close(self) -> None:
        """Free the session."""
        self._session = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _open_session(path: Path, options: OnnxRuntimeOptions) -> Any:
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = _ERRORS_ONLY
    if options.threads is not None:
        session_options.intra_op_num_threads = options.threads
        session_options.inter_op_num_threads = 1
    _apply(session_options, options.session_options)
    # Last, so that no option undoes it: threads that spin after a call would take the CPU from whatever is timed next.
    session_options.add_session_config_entry("session.force_spinning_stop", "1")
    _require_providers(options.providers)
    try:
        return onnxruntime.InferenceSession(str(path), session_options, providers=list(options.providers))
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise _refused(path.name, "is not accepted", error) from error


def _apply(session_options: Any, wanted: dict[str, Any]) -> None:
    """Set the options as MLflow does; raises `Refused` naming one that it would pass over in silence."""
    for name, value in wanted.items():
        if name == "intra_op_num_threads" and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            session_options.intra_op_num_threads = value
        elif name == "extra_session_config" and isinstance(value, dict):
            for key, text in value.items():
                session_options.add_session_config_entry(str(key), str(text))
        else:
            raise Refused(
                f"session option {name!r:.80}",
                f"is {value!r:.80}",
                "Give intra_op_num_threads a whole number of 1 or more, or extra_session_config an object of texts.",
            )


def _require_providers(providers: Sequence[str]) -> None:
    available = onnxruntime.get_available_providers()
    if missing := [provider for provider in providers if provider not in available]:
        raise Refused(
            "ONNX Runtime",
            f"has no {', '.join(missing)} here, only {', '.join(available)}",
            "Install the build of onnxruntime that has it, or choose device 'cpu'.",
        )


def _refused(subject: str, problem: str, error: Exception) -> Refused:
    return Refused(
        subject,
        f"{problem} by ONNX Runtime: {' '.join(str(error).split())[:600]}",
        "Export with another opset, or change the operation it names; float64 and bfloat16 lack many kernels.",
    )


def _shapes(inputs: Arrays) -> str:
    return ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in inputs.items())
