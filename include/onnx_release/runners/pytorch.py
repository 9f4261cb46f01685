"""Runner of the trained model in PyTorch: the reference."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch

from onnx_release.errors import RunnerRefused
from onnx_release.machine_faults import raise_machine_failure
from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays, describe_arrays
from onnx_release.trained.call_model import runnable
from onnx_release.trained.input_binding import bind_inputs
from onnx_release.trained.model_errors import classify, float_dtypes, where_raised
from onnx_release.trained.output_names import OutputBinding, bind_outputs, name_outputs

TorchModel = torch.nn.Module | torch.export.ExportedProgram


def cuda_available() -> bool:
    """Return True when PyTorch can use a CUDA device."""
    return torch.cuda.is_available()


@dataclass(frozen=True, slots=True, kw_only=True)
class PyTorchOptions:
    """Options of a PyTorch runner.

    Attributes:
        input_names: The inputs in their order, as for `bind_inputs`.
        output_names: The outputs in their order, as for `bind_outputs`; None for every output.
        device: The device that the model runs on, ``cpu`` or ``cuda``.
        threads: The thread count of PyTorch; None keeps the current one.
        mha_fastpath: Switches the fast path of multi-head attention on or off; None keeps the current setting. The
            fast path returns other values at masked positions, and it is the default of eager PyTorch.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...] | None
    device: str = "cpu"
    threads: int | None = None
    mha_fastpath: bool | None = None


class PyTorchRunner:
    """Runner of a module or an exported program, in evaluation mode and inference mode.

    Inputs on the CPU share memory with the caller's arrays: a model that writes into its input changes the array.
    The thread count and the fast path are settings of the whole process. They are changed only while the runner is
    open, and restored afterwards.
    """

    name = "PyTorch"

    def __init__(self, model: TorchModel, options: PyTorchOptions) -> None:
        self._model = model
        self._options = options
        self._call: Callable[..., Any] | None = None
        self._former_settings = ExitStack()
        self._outputs: OutputBinding | None = None

    def run(self, inputs: Arrays) -> Arrays:
        """Run the model; see `Runner.run`.

        Raises:
            RunnerRefused: The model raises an error.
            TrainedModelRefused: The model returns other outputs than the options name.
        """
        if self._call is None:
            raise RuntimeError("the runner is not open")
        tensors = [torch.from_numpy(inputs[name]).to(self._options.device) for name in self._options.input_names]
        try:
            with torch.inference_mode():
                result = self._call(*tensors)
        except Exception as error:  # a model's forward can raise anything
            raise_machine_failure(error)
            dtypes = {name: inputs[name].dtype.name for name in self._options.input_names}
            kind = classify(error, dtypes, lambda: float_dtypes(self._model))
            place = where_raised(error)
            raise RunnerRefused(
                f"The PyTorch model on inputs {describe_arrays(inputs)}",
                f"raised {type(error).__name__}: {shorten(error, 600)}{f' ({place})' if place else ''}",
                kind.action,
                code=kind.code,
            ) from error
        if self._outputs is None:
            self._outputs = bind_outputs(result, self._options.output_names)
        named = name_outputs(result, self._options.output_names)
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}

    def outputs(self) -> OutputBinding:
        """Return the places of the outputs in the result of the first call."""
        if self._outputs is None:
            raise RuntimeError("the runner was not called")
        return self._outputs

    def __enter__(self) -> Self:
        self._call = _callable(self._model, self._options)
        if self._options.threads is not None:
            self._former_settings.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(self._options.threads)
        if self._options.mha_fastpath is not None:
            enabled = torch.backends.mha.get_fastpath_enabled()
            self._former_settings.callback(torch.backends.mha.set_fastpath_enabled, enabled)
            torch.backends.mha.set_fastpath_enabled(self._options.mha_fastpath)
        return self

    def __exit__(self, *exception: object) -> None:
        self._call = None
        self._former_settings.close()
        # `torch.cond` and its like compile themselves, once more for each number of threads, and fail at a limit.
        if (compiler := sys.modules.get("torch._dynamo")) is not None:
            compiler.reset()


def _callable(model: TorchModel, options: PyTorchOptions) -> Callable[..., Any]:
    binding = bind_inputs(model, options.input_names)
    # The mode of an exported program is fixed, and its module's eval() raises.
    module = model.module() if isinstance(model, torch.export.ExportedProgram) else model.eval()
    return runnable(module.to(options.device), options.input_names, binding)
