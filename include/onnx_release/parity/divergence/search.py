"""The first node that computes something else than PyTorch, each node being given PyTorch's own values.

Run as a whole, an error travels and grows through the graph, and a threshold for it would have to tell rounding that
added up from a fault that is still small. So the graph is cut at every value that PyTorch also has: each piece, mostly
one node, is fed with PyTorch's values, and its result is as far off as the piece itself makes it. Only when no piece is
at fault are the outputs of the whole graph compared, with and without ONNX Runtime's optimisations.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.errors import Refused
from onnx_release.limits import MODEL_FILE
from onnx_release.parity.divergence.node_error import GRAPH_ERROR_MAX, NODE_ERROR_MAX, Distance, distance
from onnx_release.parity.divergence.onnx_values import Piece
from onnx_release.parity.divergence.pytorch_values import Module, ProgramReference
from onnx_release.parity.divergence.subgraph import ExportedGraph, Node
from onnx_release.parity.divergence.weight_diff import altered_weights
from onnx_release.records import Divergence
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays

if TYPE_CHECKING:
    from torch.export import ExportedProgram

# Values that are held and compared at once: PyTorch's, ONNX Runtime's, and what the pieces need between.
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
    """Return the first value of the graph that is not PyTorch's, or None when all agree up to rounding.

    A finding without a node says in its note what else was seen: nothing to compare by, the time was over, only the
    outputs of the whole graph differ, or the program itself is not the model.

    :param program: what the exporter converted, decomposed as it did; the graph's values go by its nodes' names.
    :param folder: the artifact's folder; nothing in it is changed.
    :param sample: inputs by the names of the graph, of a failed comparison.
    :param expected: the outputs of the trained model itself on the sample, where they are known.
    :raises Refused: when program and graph do not take the same inputs or give the same outputs, or the graph cannot
        be opened.
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
        return search.without_node(stopped or "the exporter kept no names of PyTorch's values in this graph")
    found = search.first_fault()
    if found is None and not search.out_of_time:
        found = search.outputs(expected)
    if found is None and search.out_of_time:
        found = search.without_node(f"the search was ended after {max_s:g} s and found nothing until then")
    if found is not None and stopped:
        found = found.replace(note=_joined(found.note, stopped))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Fault:
    """A value that is off, or that could not be computed."""

    value: str
    distance: Distance


@dataclass(kw_only=True)
class _Search:
    """One search; `known` holds the sizes in bytes of the values that both sides have, in the graph's order."""

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
        """Return the first value, in the graph's order, that a piece computes wrongly or not at all."""
        for chunk in self._chunks():
            if time.monotonic() > self.deadline:
                self.out_of_time = True
                return None
            wanted = {*chunk, *self.graph.sources(chunk, self.known)}
            fault = self._check(chunk, self.reference.values(self.sample.inputs, wanted))
            if fault is not None:
                return self._blame(fault)
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
        """Return the first fault among some values; halves of them are tried where all at once cannot be computed."""
        cut = self.graph.cut(chunk, {value: values[value].dtype for value in self.known if value in values})
        try:
            piece = Piece(cut.model, self.folder)
        except Refused as refusal:
            return self._check_halves(chunk, values, self._skip, refusal)
        try:
            found = piece.run(self.sample.inputs | values)
        except Refused as refusal:
            return self._check_halves(chunk, values, _cannot_run, refusal)
        for value in chunk:
            fault = _Fault(value=value, distance=distance(values[value], found[cut.outputs[value]]))
            self.compared += 1
            if fault.distance.beyond(NODE_ERROR_MAX):
                return fault
            if self.worst is None or fault.distance.error > self.worst.distance.error:
                self.worst = fault
        return None

    def _check_halves(
        self, chunk: Sequence[str], values: Arrays, alone: Callable[[str, Refused], _Fault | None], why: Refused
    ) -> _Fault | None:
        if len(chunk) == 1:
            return alone(chunk[0], why)
        if time.monotonic() > self.deadline:
            self.out_of_time = True
            return None
        middle = len(chunk) // 2
        return self._check(chunk[:middle], values) or self._check(chunk[middle:], values)

    def _skip(self, value: str, _: Refused) -> None:
        # PyTorch's value is of a kind that the node after it does not take: the names meet by chance.
        self.skipped.append(value)

    def outputs(self, expected: Arrays | None) -> Divergence | None:
        """Compare the outputs of the whole graph, after no single node was found at fault."""
        ours = self.reference.values(self.sample.inputs, self.graph.outputs)
        if expected is not None and (found := _first_beyond(expected, ours)):
            why = (
                "PyTorch's own exported program differs from the model here: the tracing changed it, not the conversion"
            )
            return self._record(found, note=why)
        whole = self.graph.whole()
        plain = _first_beyond(ours, Piece(whole, self.folder).run(self.sample.inputs))
        if plain is not None:
            return self._added_up(plain)
        if optimized := _first_beyond(ours, Piece(whole, self.folder, optimize=True).run(self.sample.inputs)):
            why = "only with ONNX Runtime's graph optimisations: without them the graph agrees"
            return self._record(optimized, note=why)
        return None

    def _added_up(self, output: _Fault) -> Divergence:
        """Name the node with the largest error of its own, where no error is large and their sum is."""
        note = (
            f"no node alone is at fault when it is given PyTorch's values, and the whole graph's output "
            f"'{output.value}' is off by {output.distance.error:.2g} of its scale: differences add up. "
            f"The node named here has the largest of its own"
        )
        return self._record(self.worst or output, note=note)

    def without_node(self, note: str) -> Divergence:
        """Return a finding that names no node."""
        return Divergence(
            sample=self.sample.name,
            batch_size=self.sample.batch_size,
            node="",
            op_type="",
            value="",
            compared=self.compared,
            note=_joined(note, self._left_out()),
        )

    def _blame(self, fault: _Fault) -> Divergence:
        """Choose among the nodes between the last values that agree and this one."""
        nodes = self.graph.segment(fault.value, self.known)
        parameters = self.reference.parameters(fault.value, self.known)
        altered = altered_weights(self.graph, nodes, parameters)
        if len({weight.node for weight in altered}) == 1:
            weight = altered[0]
            note = (
                f"its weight '{weight.weight}' is not the model's '{weight.parameter}', "
                f"the largest difference is {weight.max_abs:.3g}"
            )
            return self._record(fault, note=note, node=weight.node)
        others = ", ".join(f"{node.name} ({node.op_type})" for node in nodes[:-1][-8:])
        note = f"PyTorch has no values between this node and {others}: one of these may be at fault" if others else ""
        choice = "among equal values the two may choose differently" if nodes[-1].op_type in _CHOOSING else ""
        return self._record(fault, note=_joined(note, choice), node=nodes[-1])

    def _record(self, fault: _Fault, *, note: str, node: Node | None = None) -> Divergence:
        if node is None and fault.value in self.graph.values:
            node = self.graph.producer(fault.value)
        module = self._module(fault.value, node)
        found = fault.distance
        return Divergence(
            sample=self.sample.name,
            batch_size=self.sample.batch_size,
            node=node.name if node else "",
            op_type=node.op_type if node else "",
            value=fault.value,
            module=module.path,
            module_type=module.kind,
            mae=found.mae,
            max_abs=found.max_abs,
            scale=found.scale,
            compared=self.compared,
            note=_joined(found.problem, note, self._left_out()),
        )

    def _module(self, value: str, node: Node | None) -> Module:
        """Return the module whose weights the node has, if it did a part of the value; else the one that gave it.

        A convolution with a batch norm folded into it gives the norm's value, with the convolution's weights.
        """
        names = self.graph.weight_names(node) if node else ()
        owners = {name.rpartition(".")[0] for name in names}
        owned = [module for module in self.reference.modules(value, self.known) if module.prefix in owners - {""}]
        return owned[0] if owned else self.reference.module(value)

    def _left_out(self) -> str:
        return (
            f"{len(self.skipped)} values could not be compared ({', '.join(self.skipped[:3])})" if self.skipped else ""
        )


def _cannot_run(value: str, refusal: Refused) -> _Fault:
    return _Fault(value=value, distance=Distance(dtype="", error=float("inf"), problem=refusal.problem))


def _first_beyond(reference: Arrays, candidate: Arrays) -> _Fault | None:
    faults = (_Fault(value=name, distance=distance(array, candidate[name])) for name, array in reference.items())
    return next((fault for fault in faults if fault.distance.beyond(GRAPH_ERROR_MAX)), None)


def _joined(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
