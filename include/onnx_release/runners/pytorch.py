"""PyTorch's side of a comparison: the model that the training run left, as it is."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils import _pytree as pytree

from onnx_release.errors import Refused
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.call_model import name_outputs, runnable

TorchModel = torch.nn.Module | torch.export.ExportedProgram


def cuda_available() -> bool:
    """Say whether PyTorch sees a CUDA device."""
    return torch.cuda.is_available()


@dataclass(frozen=True, slots=True, kw_only=True)
class PyTorchOptions:
    """How to run the model.

    `input_names` and `output_names` as `calling.arguments_for` and `calling.name_outputs` take them. `threads`
    of None leaves PyTorch's setting. `mha_fastpath` of None leaves PyTorch's own choice: the fast path of attention
    gives other numbers for masked places, and is what a user of eager PyTorch would be timed with.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...] | None
    device: str = "cpu"
    threads: int | None = None
    mha_fastpath: bool | None = None


class PyTorchRunner:
    """Runs a module or an exported program in eval mode and inference mode.

    Inputs on the CPU are shared with the caller, not copied: a model that writes into its input writes into the array.
    The process-wide thread count and fast path are set while the runner is open and put back by `close`.
    """

    name = "PyTorch"

    def __init__(self, model: TorchModel, options: PyTorchOptions) -> None:
        self._options = options
        self._call: Callable[..., Any] | None = _callable(model, options)
        self._settings = _process_settings(options)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name; raises `Refused` when the model fails on these inputs or gives other outputs."""
        if self._call is None:
            raise RuntimeError("the runner is closed")
        tensors = [torch.from_numpy(inputs[name]).to(self._options.device) for name in self._options.input_names]
        try:
            with torch.inference_mode():
                result = self._call(*tensors)
        except Exception as error:  # a model's forward can raise anything
            raise _refused(inputs, error) from error
        named = name_outputs(result, self._options.output_names)
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}

    def close(self) -> None:
        """Let go of the model, and put the process-wide settings back."""
        self._call = None
        self._settings.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _callable(model: TorchModel, options: PyTorchOptions) -> Callable[..., Any]:
    if not isinstance(model, torch.export.ExportedProgram):
        return runnable(model.eval().to(options.device), options.input_names)
    # An exported program has its mode baked in, and its module's eval() raises.
    module, structure = model.module(), model.call_spec.in_spec
    module = module if options.device == "cpu" else module.to(options.device)

    def call(*values: torch.Tensor) -> Any:
        arguments, keywords = pytree.tree_unflatten(list(values), structure)
        return module(*arguments, **keywords)

    return call


def _refused(inputs: Arrays, error: Exception) -> Refused:
    shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in inputs.items())
    return Refused(
        f"The PyTorch model on inputs {shapes}",
        f"raised {type(error).__name__}: {' '.join(str(error).split())[:600]}",
        "It must run at every batch size asked for: log it again with a dynamic batch, or ask for other sizes.",
    )


def _process_settings(options: PyTorchOptions) -> ExitStack:
    """Make the process-wide settings, and return the stack that puts the former ones back."""
    former = ExitStack()
    if options.threads is not None:
        former.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(options.threads)
    if options.mha_fastpath is not None:
        former.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(options.mha_fastpath)
    return former
