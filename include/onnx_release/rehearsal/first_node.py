"""First node whose values differ between two versions of ONNX Runtime.

As in `parity.divergence`, each node runs on the values of one side, here those of the present runtime, so that its
difference is its own. Neither side optimises the graph: a fused node has no counterpart.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from onnx_release.limits import EXTERNAL_DATA_FILE, MODEL_FILE
from onnx_release.parity.divergence.node_error import NODE_ERROR_MAX, Array, Distance, distance
from onnx_release.parity.divergence.subgraph import ExportedGraph
from onnx_release.records import Divergence
from onnx_release.samples.sample import Sample
from onnx_release.scratch import scratch_folder
from onnx_release.serving.runtime_environment import RuntimeEnvironment
from onnx_release.serving.runtime_process import RuntimeEnded, RuntimeProcess
from onnx_release.trained.arrays import Arrays

SEARCH_MAX_S = 60.0
_CHUNK_VALUES = 64
_PART_FILE = "part.onnx"


def first_node(
    folder: Path,
    sample: Sample,
    present: RuntimeEnvironment,
    other: RuntimeEnvironment,
    *,
    threads: int,
    max_s: float = SEARCH_MAX_S,
) -> Divergence:
    """Return the first node with a difference beyond rounding, or else the first with any difference.

    Args:
        folder: The artifact folder; it is only read.
        sample: The inputs.
        present: The runtime whose values every node gets.
        other: The runtime that differs.
        threads: The threads of a session.
        max_s: The time limit of the search.
    """
    with (
        scratch_folder() as scratch,
        RuntimeProcess(present, 2 * max_s) as ours,
        RuntimeProcess(other, 2 * max_s) as theirs,
    ):
        if (folder / EXTERNAL_DATA_FILE).exists():
            # ONNX Runtime refuses links to external data, and older versions search it beside the file only.
            shutil.copyfile(folder / EXTERNAL_DATA_FILE, scratch / EXTERNAL_DATA_FILE)
        search = _Search(
            graph=ExportedGraph(folder / MODEL_FILE),
            sample=sample,
            part=scratch / _PART_FILE,
            sides=(ours, theirs),
            threads=threads,
            deadline=time.monotonic() + max_s,
        )
        try:
            return search.run()
        except RuntimeEnded as ended:
            return search.result(None, f"the search ended: a part of the graph {ended.problem}")


class _PartFailed(Exception):
    """Part of the graph that a runtime does not load or run."""


@dataclass(frozen=True, slots=True)
class _Fault:
    value: str
    distance: Distance


@dataclass(kw_only=True)
class _Search:
    graph: ExportedGraph
    sample: Sample
    part: Path
    sides: tuple[RuntimeProcess, RuntimeProcess]
    threads: int
    deadline: float
    compared: int = 0
    skipped: list[str] = field(default_factory=list)
    first: _Fault | None = None
    worst: _Fault | None = None

    def run(self) -> Divergence:
        """Search the nodes in the order of the graph."""
        values = self.graph.values
        for start in range(0, len(values), _CHUNK_VALUES):
            if time.monotonic() > self.deadline:
                return self.result(self.first, "the search stopped early")
            for fault in self._differing(values[start : start + _CHUNK_VALUES]):
                if fault.distance.beyond(NODE_ERROR_MAX):
                    return self.result(fault, fault.distance.problem)
                self.first = self.first or fault
                if self.worst is None or fault.distance.error > self.worst.distance.error:
                    self.worst = fault
        if self.first is None or self.worst is None:
            note = "each node alone returns the same bits: only the graph optimisations of ONNX Runtime differ"
            return self.result(None, note)
        note = "each node alone differs by rounding"
        if self.worst is not self.first:
            node = self.graph.producer(self.worst.value)
            note += f"; the largest difference is in {node.name} ({node.op_type})"
        return self.result(self.first, note)

    def _differing(self, chunk: Sequence[str]) -> Iterator[_Fault]:
        """Yield the values of a chunk that differ. A part that one side does not run is cut in half."""
        try:
            values = self._values(chunk)
            found = self._run(self.sides[1], chunk, self.sample.inputs | values, known=values)
        except _PartFailed:
            if len(chunk) == 1:
                self.skipped.append(chunk[0])
                return
            middle = len(chunk) // 2
            yield from self._differing(chunk[:middle])
            yield from self._differing(chunk[middle:])
            return
        for value in chunk:
            self.compared += 1
            if not same_bits(values[value], found[value]):
                yield _Fault(value, distance(values[value], found[value], of="the present runtime's"))

    def _values(self, chunk: Sequence[str]) -> Arrays:
        """Return the chunk's values and those that its nodes read, in the present runtime."""
        known = set(self.graph.values)
        read = self.graph.sources(chunk, known) & known
        return self._run(self.sides[0], sorted({*chunk, *read}), self.sample.inputs, known={})

    def _run(self, side: RuntimeProcess, names: Sequence[str], inputs: Arrays, known: Arrays) -> Arrays:
        try:
            cut = self.graph.cut(names, {name: array.dtype for name, array in known.items()})
        except (KeyError, TypeError, ValueError) as error:  # A dtype that numpy lacks.
            raise _PartFailed from error
        self.part.write_bytes(cut.model)
        if side.open(self.part, self.threads, {}, optimize=False) is not None:
            raise _PartFailed
        read = self.graph.sources(names, known)
        outputs = side.run({name: inputs[name] for name in sorted(read)})
        if isinstance(outputs, str):
            raise _PartFailed
        return {name: outputs[cut.outputs[name]] for name in names}

    def result(self, fault: _Fault | None, note: str) -> Divergence:
        """Return the finding."""
        node = self.graph.producer(fault.value) if fault else None
        notes = [note] if note else []
        if self.skipped:
            notes.append(f"{len(self.skipped)} values could not be compared ({', '.join(self.skipped[:3])})")
        return Divergence(
            sample=self.sample.name,
            batch_size=self.sample.batch_size,
            node=node.name if node else None,
            op_type=node.op_type if node else None,
            value=fault.value if fault else None,
            mae=fault.distance.mae if fault else None,
            max_abs=fault.distance.max_abs if fault else None,
            scale=fault.distance.scale if fault else None,
            compared=self.compared,
            note="; ".join(notes) or None,
        )


def same_bits(one: Array, other: Array) -> bool:
    """Return True for arrays of the same dtype, shape and bytes."""
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


def all_same_bits(outputs: Collection[tuple[Arrays, Arrays]]) -> bool:
    """Return True if both sides of every pair have the same names and arrays of the same bytes."""
    return all(
        ours.keys() == theirs.keys() and all(same_bits(array, theirs[name]) for name, array in ours.items())
        for ours, theirs in outputs
    )
