"""Runner of an ONNX file in ONNX Runtime: the candidate."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import onnxruntime

from onnx_release.errors import RunnerRefused
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays, describe_arrays

CPU_PROVIDERS = ("CPUExecutionProvider",)
CUDA_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")

# Its log lines repeat the text of the exceptions.
_LOG_CRASHES_ONLY = 4
_ACTIONS = (
    (
        re.compile(r"NOT_IMPLEMENTED|Could not find an implementation"),
        "ONNX Runtime has no kernel of this operator for the dtype, as for many with float64 and bfloat16. Log "
        "`model.float()`.",
    ),
    (
        re.compile(r"Unexpected input data type"),
        "Give the input the dtype of the model's signature.",
    ),
    (
        re.compile(r"Got invalid dimensions|Invalid rank|Invalid Feed Input Name|Missing Input"),
        "Give the inputs the names and sizes of the model's signature.",
    ),
    (
        re.compile(
            r"broadcast|must have shape|out of data bounds|dimension|cannot be reshaped|mismatch", re.IGNORECASE
        ),
        "The graph fixes a size that PyTorch does not. Compute tables, masks and states in `forward` from the sizes of "
        "the input, or write the fixed size into the signature.",
    ),
)
_OTHER_ACTION = "Export with another opset, or replace the operator that the message names."


def runtime_version() -> str:
    """Return the version of the installed ONNX Runtime."""
    return str(onnxruntime.__version__)


def cuda_available() -> bool:
    """Return True when the installed ONNX Runtime was built with CUDA."""
    return CUDA_PROVIDERS[0] in onnxruntime.get_available_providers()


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxRuntimeOptions:
    """Options of an ONNX Runtime session.

    Attributes:
        threads: The thread count; None lets ONNX Runtime choose.
        providers: The execution providers, in their order.
        session_options: Options under the names of MLflow's ``onnx_session_options``. Two are supported:
            ``intra_op_num_threads``, which overrides `threads`, and ``extra_session_config``, a dict of texts.
    """

    threads: int | None = None
    providers: tuple[str, ...] = CPU_PROVIDERS
    session_options: dict[str, Any] = field(default_factory=dict)


class OnnxRuntimeRunner:
    """Runner of one ONNX file.

    The session opens when the object is made and closes at the end of ``with``. It holds threads and a packed copy of
    the weights, so open one runner at a time.
    """

    name = "ONNX Runtime"

    def __init__(self, path: Path, options: OnnxRuntimeOptions) -> None:
        """Open the session.

        Args:
            path: The ONNX file.
            options: The options of the session.

        Raises:
            RunnerRefused: An execution provider is missing, an option is unknown, or ONNX Runtime rejects the file.
        """
        self.providers_requested = options.providers
        self._path = path
        self._session: Any = _open_session(path, options)
        self.providers_active: tuple[str, ...] = tuple(self._session.get_providers())
        self._output_names = [output.name for output in self._session.get_outputs()]

    def run(self, inputs: Arrays) -> Arrays:
        """Run the model; see `Runner.run`.

        Raises:
            RunnerRefused: ONNX Runtime raises an error, for example for an input that the graph does not have.
        """
        if self._session is None:
            raise RuntimeError("the runner is closed")
        try:
            outputs = self._session.run(None, inputs)
        except Exception as error:  # ONNX Runtime's errors share no base class
            raise_machine_failure(error)
            raise RunnerRefused(
                f"The file {self._path.name} on inputs {describe_arrays(inputs)}",
                f"does not run in ONNX Runtime: {shorten(error, 600)}",
                _action(error),
                code="onnxruntime_failed",
            ) from error
        return dict(zip(self._output_names, outputs, strict=True))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._session = None


def _open_session(path: Path, options: OnnxRuntimeOptions) -> Any:
    session_options = onnxruntime.SessionOptions()
    session_options.log_severity_level = _LOG_CRASHES_ONLY
    if options.threads is not None:
        session_options.intra_op_num_threads = options.threads
        session_options.inter_op_num_threads = 1
    _apply(session_options, options.session_options)
    # Last, because no option may override it: threads that spin after a call take the CPU from the next measurement.
    session_options.add_session_config_entry("session.force_spinning_stop", "1")
    available = onnxruntime.get_available_providers()
    if missing := [provider for provider in options.providers if provider not in available]:
        raise RunnerRefused(
            "The installed ONNX Runtime",
            f"lacks {', '.join(missing)}; it has {', '.join(available)}",
            "Install the build of onnxruntime that has it, or choose device 'cpu'.",
            code="provider_missing",
        )
    try:
        return onnxruntime.InferenceSession(str(path), session_options, providers=list(options.providers))
    except Exception as error:  # ONNX Runtime's errors share no base class
        raise_machine_failure(error)
        raise RunnerRefused(
            f"The file {path.name}",
            f"is not accepted by ONNX Runtime: {shorten(error, 600)}",
            _action(error),
            code="onnxruntime_rejected",
        ) from error


def _action(error: Exception) -> str:
    """Return the next step for an error of ONNX Runtime, whose errors have no classes for it."""
    return next((action for pattern, action in _ACTIONS if pattern.search(str(error))), _OTHER_ACTION)


def _apply(session_options: Any, values: dict[str, Any]) -> None:
    """Set the options as MLflow does. MLflow ignores unknown options; here they are refused."""
    for name, value in values.items():
        if name == "intra_op_num_threads" and isinstance(value, int) and not isinstance(value, bool) and value > 0:
            session_options.intra_op_num_threads = value
        elif name == "extra_session_config" and isinstance(value, dict):
            for key, text in value.items():
                session_options.add_session_config_entry(str(key), str(text))
        else:
            raise RunnerRefused(
                f"The session option {name!r:.80}",
                f"is {value!r:.80}",
                "Set intra_op_num_threads to an integer of 1 or more, or extra_session_config to a dict of texts.",
                code="session_option",
            )
