"""PyTorch's values: every tensor of an exported program, by its name in the ONNX graph."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from onnx_release.text import shorten
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.call_model import FlatModule
from onnx_release.trained.input_binding import bind_inputs
from onnx_release.trained.output_names import name_outputs

# Dtypes that numpy and the inputs of ONNX Runtime have.
_COMPARABLE = {
    torch.float16, torch.float32, torch.float64, torch.bool,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
}  # fmt: skip
# Their values are undefined.
_UNDEFINED = ("aten::empty", "aten::new_empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """Module of the model.

    Attributes:
        path: Its path, for example ``backbone.2.expand``; empty for the model itself.
        kind: The name of its class.
        prefix: The prefix of its weights' names in the exported graph.
    """

    path: str = ""
    kind: str = ""
    prefix: str = ""


class ProgramReference:
    """Exported program that runs node by node, in inference mode, on the device of its export.

    Its values have their names in the ONNX graph. These are the names of the program's nodes, except for the inputs and
    outputs, which the export renamed.

    Raises:
        TrainedModelRefused: when the inputs of the program and of the ONNX graph differ.
    """

    def __init__(
        self, program: torch.export.ExportedProgram, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        self._program = program
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._inputs = bind_inputs(program, inputs).nodes
        # Outputs have the names that the export gives them.
        results = program.graph_signature.user_outputs
        places = [torch.empty(0) for _ in results]
        positions = {id(place): result for place, result in zip(places, results, strict=True)}
        named = name_outputs(pytree.tree_unflatten(places, program.call_spec.out_spec), outputs)
        self._renamed = {name: str(positions[id(place)]) for name, place in named.items()}
        tensors = {n: t for n, t in (program.constants | program.state_dict).items() if isinstance(t, torch.Tensor)}
        self._lifted = {
            spec.arg.name: tensors.get(str(spec.target))
            for spec in program.graph_signature.input_specs
            if spec.target is not None and hasattr(spec.arg, "name")
        }
        self._targets = {getattr(spec.arg, "name", ""): spec.target for spec in program.graph_signature.input_specs}

    def sizes(self, inputs: Arrays) -> tuple[dict[str, int], str]:
        """Return the bytes of every comparable value, and the reason of an early stop, else an empty string."""
        sizes: dict[str, int] = {}

        def see(name: str, tensor: torch.Tensor) -> None:
            sizes[name] = tensor.numel() * tensor.element_size()

        return sizes, self._run(inputs, see)

    def values(self, inputs: Arrays, names: Collection[str]) -> Arrays:
        """Return these values. A value that the program did not reach is missing."""
        found: Arrays = {}

        def see(name: str, tensor: torch.Tensor) -> None:
            if name in names:
                found[name] = tensor.detach().cpu().contiguous().numpy()

        self._run(inputs, see)
        return found

    def module(self, value: str) -> Module:
        """Return the innermost module that computes the value."""
        node = self._node(value)
        return Module() if node is None else _module(node)

    def modules(self, value: str, known: Collection[str]) -> list[Module]:
        """Return the modules between the known values and this one, in order and without repetition."""
        return list(dict.fromkeys(_module(node) for node in self._span(value, known)))

    def parameters(self, value: str, known: Collection[str]) -> Arrays:
        """Return the floating-point weights of the only operator between the known values and this one, by name.

        The result is empty when several operators have weights: the exporter may have folded them into each other.
        """
        found: list[Arrays] = []
        for node in self._span(value, known):
            names = [source.name for source in node.all_input_nodes if source.name in self._lifted]
            tensors = {name: self._lifted[name] for name in names}
            floats = {name: t for name, t in tensors.items() if t is not None and t.is_floating_point()}
            if floats:
                found.append({str(self._targets[name]): t.detach().cpu().float().numpy() for name, t in floats.items()})
        return found[0] if len(found) == 1 else {}

    def _node(self, value: str) -> Any:
        return self._nodes.get(self._renamed.get(value, value))

    def _span(self, value: str, known: Collection[str]) -> list[Any]:
        """Return the program's nodes between the known values and this one, in order."""
        stops = {self._renamed.get(name, name) for name in known if name != value}
        last = self._node(value)
        waiting, seen = [last] if last is not None else [], set()
        while waiting:
            node = waiting.pop()
            if node in seen or node.op != "call_function":
                continue
            seen.add(node)
            waiting += [source for source in node.all_input_nodes if source.name not in stops]
        return [node for node in self._nodes.values() if node in seen]

    def _run(self, inputs: Arrays, see: Any) -> str:
        """Run the program and pass each value to `see`; return the reason of an early stop, else an empty string."""
        aliases: dict[str, list[str]] = {}
        for name, node_name in self._renamed.items():
            aliases.setdefault(node_name, []).append(name)
        walk = _Walk(self._program.graph_module, aliases, see)
        try:
            with torch.inference_mode():
                device = next((t.device for t in self._lifted.values() if t is not None), torch.device("cpu"))
                arguments: list[Any] = []
                for spec in self._program.graph_signature.input_specs:
                    name = getattr(spec.arg, "name", "")
                    if spec.target is not None:
                        arguments.append(self._lifted[name])
                    elif name in self._inputs:
                        arguments.append(torch.from_numpy(inputs[self._inputs[name]].copy()).to(device))
                    else:
                        arguments.append(getattr(spec.arg, "value", None))
                walk.run(*arguments, enable_io_processing=False)
        except Exception as error:  # noqa: BLE001 - the model's own operators raise anything
            return f"PyTorch's program stops at {walk.at}: {type(error).__name__}: {shorten(error)}"
        return ""


class _Walk(torch.fx.Interpreter):
    """Interpreter that passes each tensor to `see`, by its node's name and by the names of its outputs."""

    def __init__(self, module: torch.fx.GraphModule, aliases: Mapping[str, list[str]], see: Any) -> None:
        super().__init__(module)
        self._aliases = aliases
        self._see = see
        self.at = ""

    def run_node(self, node: torch.fx.Node) -> Any:
        """Run one node."""
        self.at = node.name
        result = super().run_node(node)
        if node.op != "call_function" or not isinstance(result, torch.Tensor):
            return result
        schema = getattr(node.target, "_schema", None)
        undefined = schema is not None and schema.name.startswith(_UNDEFINED)
        if result.dtype in _COMPARABLE and result.layout == torch.strided and not undefined:
            for name in (node.name, *self._aliases.get(node.name, ())):
                self._see(name, result)
        return result


def _module(node: torch.fx.Node) -> Module:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return Module()
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    # torch marks the root with a prefix, and later calls of a module with a count.
    prefix = re.sub(r"@\d+", "", re.sub(r"^L__self___?", "", str(path)))
    root = stack[0][1]
    wrapped = root is FlatModule or str(root).endswith(FlatModule.__qualname__)
    path = re.sub(r"^model\.?", "", prefix) if wrapped else prefix
    return Module(path=path, kind=kind.rsplit(".", 1)[-1], prefix=prefix)
