"""Search for the first node that differs from PyTorch on PyTorch's own values.

In the whole graph an error grows from node to node, and no threshold separates accumulated rounding from a small fault.
So the graph is cut at every value that PyTorch also has. Each part, mostly one node, runs on PyTorch's values, and its
error is its own. When no part is at fault, the outputs of the whole graph are compared, with and without the graph
optimisations of ONNX Runtime.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.errors import Refused
from onnx_release.limits import MODEL_FILE
from onnx_release.parity.divergence.node_error import GRAPH_ERROR_MAX, NODE_ERROR_MAX, Distance, distance
from onnx_release.parity.divergence.onnx_values import Piece
from onnx_release.parity.divergence.pytorch_values import ProgramReference
from onnx_release.parity.divergence.subgraph import ExportedGraph, Node
from onnx_release.parity.divergence.weight_diff import altered_weights
from onnx_release.records import Divergence
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Values in memory at the same time: PyTorch's, ONNX Runtime's, and those between them.
CHUNK_VALUES = 64
CHUNK_BYTES = 256 * 2**20
SEARCH_MAX_S = 120.0

_CHOOSING = ("TopK", "ArgMax", "ArgMin")


def find_divergence(
    program: ExportedProgram,
    folder: Path,
    sample: Sample,
    *,
    expected: Arrays | None = None,
    max_s: float = SEARCH_MAX_S,
) -> Divergence | None:
    """Return the first value of the graph that differs from PyTorch's, or None when all agree up to rounding.

    A finding without a node has a note: no common names, no time left, a difference only in the outputs of the whole
    graph, or a program that differs from the model.

    Args:
        program: The program that the exporter converted, with the exporter's decompositions. Its nodes have the names
            of the graph's values.
        folder: The artifact's folder; it is only read.
        sample: The inputs of a failed comparison, by the graph's names.
        expected: The outputs of the trained model on the sample.
        max_s: The time limit of the search.

    Raises:
        ParityRefused: when program and graph have different inputs, or ONNX Runtime does not run the whole graph.
    """
    graph = ExportedGraph(folder / MODEL_FILE)
    reference = ProgramReference(program, graph.inputs, graph.outputs)
    sizes, stopped = reference.sizes(sample.inputs)
    known = {value: sizes[value] for value in graph.values if value in sizes}
    search = _Search(
        graph=graph,
        reference=reference,
        folder=folder,
        sample=sample,
        known=known,
        deadline=time.monotonic() + max_s,
    )
    if not known:
        return search.without_node(stopped or "the graph has none of the names of PyTorch's values")
    found = search.first_fault()
    if found is None and not search.out_of_time:
        found = search.outputs(expected)
    if found is None and search.out_of_time:
        found = search.without_node(f"the search stopped after {max_s:g} s without a finding")
    if found is not None and stopped:
        found = found.replace(note=_joined(found.note, stopped))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fault:
    """A value that differs, or that cannot be computed."""

    value: str
    distance: Distance


@dataclass(kw_only=True)
class _Search:
    """State of one search. `known` has the bytes of each value of both sides, in the graph's order."""

    graph: ExportedGraph
    reference: ProgramReference
    folder: Path
    sample: Sample
    known: dict[str, int]
    deadline: float
    compared: int = 0
    skipped: list[str] = field(default_factory=list)
    worst: _Fault | None = None
    out_of_time: bool = False

    def first_fault(self) -> Divergence | None:
        """Return the first value, in the graph's order, whose part has a wrong result or does not run."""
        for chunk in self._chunks():
            if time.monotonic() > self.deadline:
                self.out_of_time = True
                return None
            names = {*chunk, *self.graph.sources(chunk, self.known)}
            fault = self._check(chunk, self.reference.values(self.sample.inputs, names))
            if fault is not None:
                return self._locate(fault)
        return None

    def _chunks(self) -> Iterator[list[str]]:
        chunk: list[str] = []
        size = 0
        for value, nbytes in self.known.items():
            if chunk and (len(chunk) == CHUNK_VALUES or size + nbytes > CHUNK_BYTES):
                yield chunk
                chunk, size = [], 0
            chunk.append(value)
            size += nbytes
        if chunk:
            yield chunk

    def _check(self, chunk: Sequence[str], values: Arrays) -> _Fault | None:
        """Return the first fault among these values. When their part does not run, check each half of them."""
        cut = self.graph.cut(chunk, {value: values[value].dtype for value in self.known if value in values})
        try:
            piece = Piece(cut.model, self.folder)
        except Refused:
            if len(chunk) > 1:
                return self._check_halves(chunk, values)
            # The next node does not accept PyTorch's value: the two names are equal by chance.
            self.skipped.append(chunk[0])
            return None
        try:
            found = piece.run(self.sample.inputs | values)
        except Refused as refusal:
            if len(chunk) > 1:
                return self._check_halves(chunk, values)
            cannot_run = Distance(dtype="", error=float("inf"), problem=refusal.problem)
            return _Fault(value=chunk[0], distance=cannot_run)
        for value in chunk:
            fault = _Fault(value=value, distance=distance(values[value], found[cut.outputs[value]]))
            self.compared += 1
            if fault.distance.beyond(NODE_ERROR_MAX):
                return fault
            if self.worst is None or fault.distance.error > self.worst.distance.error:
                self.worst = fault
        return None

    def _check_halves(self, chunk: Sequence[str], values: Arrays) -> _Fault | None:
        if time.monotonic() > self.deadline:
            self.out_of_time = True
            return None
        middle = len(chunk) // 2
        return self._check(chunk[:middle], values) or self._check(chunk[middle:], values)

    def outputs(self, expected: Arrays | None) -> Divergence | None:
        """Compare the outputs of the whole graph, when no single node is at fault."""
        ours = self.reference.values(self.sample.inputs, self.graph.outputs)
        if expected is not None and (found := _first_beyond(expected, ours)):
            note = "the exported program itself differs from the model here: the tracing changed it, not the conversion"
            return self._record(found, note=note)
        whole = self.graph.whole()
        if plain := _first_beyond(ours, Piece(whole, self.folder).run(self.sample.inputs)):
            note = (
                f"no node alone is at fault on PyTorch's values, and the output '{plain.value}' of the whole graph "
                f"differs by {plain.distance.error:.2g} of its scale: differences add up. "
                f"This node has the largest error of all nodes"
            )
            return self._record(self.worst or plain, note=note)
        if optimized := _first_beyond(ours, Piece(whole, self.folder, optimize=True).run(self.sample.inputs)):
            return self._record(optimized, note="only the graph optimisations of ONNX Runtime cause the difference")
        return None

    def without_node(self, note: str) -> Divergence:
        """Return a finding without a node."""
        return Divergence(
            sample=self.sample.name,
            batch_size=self.sample.batch_size,
            compared=self.compared,
            note=_joined(note, self._skipped_note()),
        )

    def _locate(self, fault: _Fault) -> Divergence:
        """Return the node at fault among those between the last equal values and this one."""
        nodes = self.graph.segment(fault.value, self.known)
        parameters = self.reference.parameters(fault.value, self.known)
        altered = altered_weights(self.graph, nodes, parameters)
        if len({weight.node for weight in altered}) == 1:
            weight = altered[0]
            note = (
                f"its weight '{weight.weight}' differs from the model's '{weight.parameter}', "
                f"the largest difference is {weight.max_abs:.3g}"
            )
            return self._record(fault, note=note, node=weight.node)
        others = ", ".join(f"{node.name} ({node.op_type})" for node in nodes[:-1][-8:])
        hidden = (
            f"PyTorch has no values between this node and {others}: one of these may be at fault" if others else None
        )
        choice = "among equal values the two sides may choose differently" if nodes[-1].op_type in _CHOOSING else None
        return self._record(fault, note=_joined(hidden, choice), node=nodes[-1])

    def _record(self, fault: _Fault, *, note: str | None, node: Node | None = None) -> Divergence:
        if node is None and fault.value in self.graph.values:
            node = self.graph.producer(fault.value)
        # A convolution with a folded batch norm computes the norm's value with the convolution's weights. So the module
        # of the node's weights comes first, if it computes a part of the value.
        owners = {name.rpartition(".")[0] for name in (self.graph.weight_names(node) if node else ())}
        between = self.reference.modules(fault.value, self.known)
        owned = [module for module in between if module.prefix in owners - {""}]
        module = owned[0] if owned else self.reference.module(fault.value)
        found = fault.distance
        return Divergence(
            sample=self.sample.name,
            batch_size=self.sample.batch_size,
            node=node.name if node else None,
            op_type=node.op_type if node else None,
            value=fault.value,
            module=module.path or None,
            module_type=module.kind or None,
            mae=found.mae,
            max_abs=found.max_abs,
            scale=found.scale,
            compared=self.compared,
            note=_joined(found.problem, note, self._skipped_note()),
        )

    def _skipped_note(self) -> str | None:
        if not self.skipped:
            return None
        return f"{len(self.skipped)} values could not be compared ({', '.join(self.skipped[:3])})"


def _first_beyond(reference: Arrays, candidate: Arrays) -> _Fault | None:
    faults = (_Fault(value=name, distance=distance(array, candidate[name])) for name, array in reference.items())
    return next((fault for fault in faults if fault.distance.beyond(GRAPH_ERROR_MAX)), None)


def _joined(*parts: str | None) -> str | None:
    return "; ".join(part for part in parts if part) or None
