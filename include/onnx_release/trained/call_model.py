"""Calls of a model with named tensors. Export and comparison share these rules."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from onnx_release.trained.input_binding import InputBinding
from onnx_release.trained.output_names import OutputBinding, Step, name_outputs

# A key of a dict that stands in the source of a script.
_PLAIN_KEY = re.compile(r"[\w .:/-]+")


def runnable(module: Callable[..., Any], names: Sequence[str], binding: InputBinding) -> Callable[..., Any]:
    """Return a function of one tensor per name that calls the module as its binding says."""

    def call(*values: torch.Tensor) -> Any:
        arguments, keywords = binding.arguments(dict(zip(names, values, strict=True)))
        return module(*arguments, **keywords)

    return call


class FlatModule(torch.nn.Module):
    """Wrapper of a model that takes tensors by position and returns a flat tuple of tensors.

    Attributes:
        input_names: The inputs in their order.
        output_names: The outputs to return, in their order; None for every output.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        binding: InputBinding,
        input_names: Sequence[str],
        output_names: Sequence[str] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.input_names = tuple(input_names)
        self.output_names = None if output_names is None else tuple(output_names)
        self._binding = binding

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Call the model and return its outputs in the order of `output_names`."""
        arguments, keywords = self._binding.arguments(dict(zip(self.input_names, tensors, strict=True)))
        return tuple(name_outputs(self.model(*arguments, **keywords), self.output_names).values())


def flat_script(
    script: torch.jit.ScriptModule, binding: InputBinding, input_names: Sequence[str], outputs: OutputBinding
) -> torch.jit.ScriptModule:
    """Return a script that takes tensors by position and returns a flat tuple of tensors, without containers.

    Args:
        script: The scripted model.
        binding: The places of its inputs.
        input_names: The inputs in their order.
        outputs: The places of its outputs, in their order.

    Raises:
        RuntimeError: TorchScript does not compile the wrapper.
    """
    variables = {name: f"x{index}" for index, name in enumerate(input_names)}
    positional, keywords = binding.arguments({name: _Variable(text) for name, text in variables.items()})
    arguments = [_source(value) for value in positional]
    arguments += [f"{name}={_source(value)}" for name, value in keywords.items()]
    results = ["result" + "".join(map(_access, path)) for path in outputs.paths.values()]

    class Flat(torch.jit.ScriptModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = script

    flat = Flat()
    flat.define(
        f"def forward(self, {', '.join(variables.values())}):\n"
        f"    result = self.model({', '.join(arguments)})\n"
        f"    return {results[0] if len(results) == 1 else f'({chr(44).join(results)})'}\n"
    )
    return flat.eval()


def _access(step: Step) -> str:
    return f".{step.key}" if step.kind == "field" else f"[{_quoted(step.key)}]"


class _Variable(str):
    """The name of a variable in the source of a script."""

    __slots__ = ()


def _source(value: Any) -> str:
    if isinstance(value, _Variable):
        return value
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{_quoted(key)}: {_source(part)}' for key, part in value.items())}}}"
    parts = ", ".join(map(_source, value))
    return f"({parts},)" if isinstance(value, tuple) else f"[{parts}]"


def _quoted(key: Any) -> str:
    if not _PLAIN_KEY.fullmatch(str(key)):
        raise RuntimeError(f"the key {key!r:.80} cannot stand in a script")
    return repr(key)
