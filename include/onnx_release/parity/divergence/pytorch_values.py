"""PyTorch's side: every value of an exported program, by the names that the exporter gave on to the ONNX graph."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils import _pytree as pytree

from onnx_release.errors import Refused
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.call_model import FlatModule, name_outputs

# What numpy holds and ONNX Runtime can be fed with.
_COMPARABLE = {
    torch.float16, torch.float32, torch.float64, torch.bool,
    torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
}  # fmt: skip
# Their values are whatever the memory held.
_UNDEFINED = ("aten::empty", "aten::new_empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class Module:
    """A module of the model: its path, such as ``backbone.2.expand`` (empty for the model itself), and its class.

    `prefix` is what weights of the module are called by in the exported graph.
    """

    path: str = ""
    kind: str = ""
    prefix: str = ""


class ProgramReference:
    """An exported program that is run node by node, in inference mode, on the device that it was traced for.

    Values go by their names in the ONNX graph: those of the program's nodes, but for its inputs and outputs, which the
    export renamed.
    """

    def __init__(
        self, program: torch.export.ExportedProgram, inputs: tuple[str, ...], outputs: tuple[str, ...]
    ) -> None:
        """Take the names of the graph's inputs and outputs; raises `Refused` when the program has others."""
        self._program = program
        self._nodes = {node.name: node for node in program.graph.nodes}
        self._inputs = _input_names(program, inputs)
        self._renamed = _output_names(program, outputs)
        self._lifted = {
            spec.arg.name: _tensor(program, str(spec.target))
            for spec in program.graph_signature.input_specs
            if spec.target is not None and hasattr(spec.arg, "name")
        }
        self._targets = {getattr(spec.arg, "name", ""): spec.target for spec in program.graph_signature.input_specs}

    def sizes(self, inputs: Arrays) -> tuple[dict[str, int], str]:
        """Return the bytes of every value that can be compared, and why the program stopped early, if it did."""
        sizes: dict[str, int] = {}

        def see(name: str, tensor: torch.Tensor) -> None:
            sizes[name] = tensor.numel() * tensor.element_size()

        return sizes, self._run(inputs, see)

    def values(self, inputs: Arrays, wanted: Collection[str]) -> Arrays:
        """Return these values; one that the program did not come to is missing."""
        found: Arrays = {}

        def see(name: str, tensor: torch.Tensor) -> None:
            if name in wanted:
                found[name] = tensor.detach().cpu().contiguous().numpy()

        self._run(inputs, see)
        return found

    def module(self, value: str) -> Module:
        """Return the innermost module that was running when the value came about."""
        node = self._node(value)
        return Module() if node is None else _module(node)

    def modules(self, value: str, known: Collection[str]) -> list[Module]:
        """Return the modules of everything between the known values and this one, in order and without repetition."""
        return list(dict.fromkeys(_module(node) for node in self._span(value, known)))

    def parameters(self, value: str, known: Collection[str]) -> Arrays:
        """Return the floating-point weights, by name, of the one operator between the known values and this one.

        Empty when several operators have weights: the exporter may have folded them into each other.
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
        """Return the program's nodes that make a value out of known ones, in order."""
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
        """Run the program and show each value; return why it stopped, or nothing."""
        aliases: dict[str, list[str]] = {}
        for name, node_name in self._renamed.items():
            aliases.setdefault(node_name, []).append(name)
        walk = _Walk(self._program.graph_module, aliases, see)
        try:
            with torch.inference_mode():
                walk.run(*self._arguments(inputs), enable_io_processing=False)
        except Exception as error:  # noqa: BLE001 - the model's own operators raise anything
            return f"PyTorch's program stops at {walk.at}: {type(error).__name__}: {' '.join(str(error).split())[:200]}"
        return ""

    def _arguments(self, inputs: Arrays) -> Iterator[Any]:
        device = next((t.device for t in self._lifted.values() if t is not None), torch.device("cpu"))
        for spec in self._program.graph_signature.input_specs:
            name = getattr(spec.arg, "name", "")
            if spec.target is not None:
                yield self._lifted[name]
            elif name in self._inputs:
                yield torch.from_numpy(inputs[self._inputs[name]].copy()).to(device)
            else:
                yield getattr(spec.arg, "value", None)


class _Walk(torch.fx.Interpreter):
    """Runs a graph and shows each tensor under its node's name, and under the names of the outputs that it becomes."""

    def __init__(self, module: torch.fx.GraphModule, aliases: Mapping[str, list[str]], see: Any) -> None:
        super().__init__(module)
        self._aliases = aliases
        self._see = see
        self.at = ""

    def run_node(self, node: torch.fx.Node) -> Any:
        """Run one node."""
        self.at = node.name
        result = super().run_node(node)
        if node.op == "call_function" and isinstance(result, torch.Tensor) and _comparable(node, result):
            for name in (node.name, *self._aliases.get(node.name, ())):
                self._see(name, result)
        return result


def _comparable(node: torch.fx.Node, tensor: torch.Tensor) -> bool:
    schema = getattr(node.target, "_schema", None)
    undefined = schema is not None and schema.name.startswith(_UNDEFINED)
    return tensor.dtype in _COMPARABLE and tensor.layout == torch.strided and not undefined


def _module(node: torch.fx.Node) -> Module:
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    if not stack:
        return Module()
    path, kind = stack[-1]
    kind = kind if isinstance(kind, str) else kind.__qualname__
    # torch marks the root by a prefix, and a module's later calls by a count.
    prefix = re.sub(r"@\d+", "", re.sub(r"^L__self___?", "", str(path)))
    path = re.sub(r"^model\.?", "", prefix) if _is_wrapper(stack[0][1]) else prefix
    return Module(path=path, kind=kind.rsplit(".", 1)[-1], prefix=prefix)


def _is_wrapper(kind: Any) -> bool:
    return str(kind).endswith(FlatModule.__qualname__) or kind is FlatModule


def _tensor(program: torch.export.ExportedProgram, target: str) -> torch.Tensor | None:
    found = program.state_dict.get(target, program.constants.get(target))
    return found if isinstance(found, torch.Tensor) else None


def _input_names(program: torch.export.ExportedProgram, names: tuple[str, ...]) -> dict[str, str]:
    """Return the ONNX name of each of the program's inputs: the same where they agree, else by their order."""
    own = [str(name) for name in program.graph_signature.user_inputs if isinstance(name, str)]
    if set(own) == set(names):
        return {name: name for name in own}
    if len(own) != len(names):
        raise Refused(
            "the exported program",
            f"takes {len(own)} tensors and the ONNX graph {len(names)}: they cannot be fed alike",
            "Compare them by hand.",
        )
    return dict(zip(own, names, strict=True))


def _output_names(program: torch.export.ExportedProgram, names: tuple[str, ...]) -> dict[str, str]:
    """Return the node behind each output of the ONNX graph, by the rules that the export named them with."""
    places = [torch.empty(0) for _ in program.graph_signature.user_outputs]
    positions = {id(place): node for place, node in zip(places, program.graph_signature.user_outputs, strict=True)}
    structure = pytree.tree_unflatten(places, program.call_spec.out_spec)
    named = name_outputs(structure, names)
    return {name: str(positions[id(place)]) for name, place in named.items()}
