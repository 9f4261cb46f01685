"""PyTorch's side of a comparison: the model that the training run left, as it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch.utils import _pytree as pytree

from onnx_release.errors import Refused
from onnx_release.samples import Arrays

TorchModel = torch.nn.Module | torch.export.ExportedProgram


def cuda_available() -> bool:
    """Say whether PyTorch sees a CUDA device."""
    return torch.cuda.is_available()


@dataclass(frozen=True, slots=True, kw_only=True)
class TorchOptions:
    """How to run the model.

    `input_names` in the order of ``forward``'s arguments and `output_names` in the order of what it returns. `threads`
    of None leaves PyTorch's setting. `mha_fastpath` of None leaves PyTorch's own choice: the fast path of attention
    gives other numbers for masked places, and is what a user of eager PyTorch would be timed with.
    """

    input_names: tuple[str, ...]
    output_names: tuple[str, ...]
    device: str = "cpu"
    threads: int | None = None
    mha_fastpath: bool | None = None


class TorchRunner:
    """Runs a module or an exported program in eval mode and inference mode.

    Inputs on the CPU are shared with the caller, not copied: a model that writes into its input writes into the array.
    The process-wide thread count and fast path are set while the runner is open and put back by `close`.
    """

    name = "PyTorch"

    def __init__(self, model: TorchModel, options: TorchOptions) -> None:
        self._options = options
        self._module: Callable[..., Any] | None = _callable(model, options.device)
        self._settings = _process_settings(options)

    def run(self, inputs: Arrays) -> Arrays:
        """Return the outputs by name; raises `Refused` when the model fails on these inputs or gives other outputs."""
        if self._module is None:
            raise RuntimeError("the runner is closed")
        tensors = [torch.from_numpy(inputs[name]).to(self._options.device) for name in self._options.input_names]
        try:
            with torch.inference_mode():
                result = self._module(*tensors)
        except Exception as error:  # a model's forward can raise anything
            raise _refused(inputs, error) from error
        named = name_outputs(result, self._options.output_names)
        return {name: tensor.cpu().numpy() for name, tensor in named.items()}

    def close(self) -> None:
        """Let go of the model, and put the process-wide settings back."""
        self._module = None
        self._settings.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def _callable(model: TorchModel, device: str) -> Callable[..., Any]:
    if not isinstance(model, torch.export.ExportedProgram):
        return model.eval().to(device)
    # An exported program has its mode baked in, and its module's eval() raises.
    module = model.module()
    return module if device == "cpu" else module.to(device)


def name_outputs(result: Any, names: tuple[str, ...]) -> dict[str, torch.Tensor]:
    """Give names to what a model returned: a tensor, a (nested) tuple, list or dict of tensors; None is left out.

    A flat dict whose keys are the names is taken by key, all else in order.

    :raises Refused: when the count differs, or something is no tensor that numpy can hold.
    """
    if isinstance(result, Mapping) and set(result) == set(names):
        leaves: list[Any] = [result[name] for name in names]
    else:
        leaves = [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]
    strange = [type(leaf).__name__ for leaf in leaves if not isinstance(leaf, torch.Tensor)]
    strange += [str(leaf.dtype) for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.bfloat16]
    if strange or len(leaves) != len(names):
        raise Refused(
            "What the PyTorch model returns",
            f"is {len(leaves)} values{f' (of them {strange})' if strange else ''}, "
            f"and the signature names {len(names)} outputs: {', '.join(names)}",
            "Return plain tensors, and log the model again with a signature that names each of them.",
        )
    return dict(zip(names, leaves, strict=True))


def _refused(inputs: Arrays, error: Exception) -> Refused:
    shapes = ", ".join(f"{name} {array.dtype} {list(array.shape)}" for name, array in inputs.items())
    return Refused(
        f"The PyTorch model on inputs {shapes}",
        f"raised {type(error).__name__}: {' '.join(str(error).split())[:600]}",
        "It must run at every batch size asked for: log it again with a dynamic batch, or ask for other sizes.",
    )


def _process_settings(options: TorchOptions) -> ExitStack:
    """Make the process-wide settings, and return the stack that puts the former ones back."""
    former = ExitStack()
    if options.threads is not None:
        former.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(options.threads)
    if options.mha_fastpath is not None:
        former.callback(torch.backends.mha.set_fastpath_enabled, torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(options.mha_fastpath)
    return former
