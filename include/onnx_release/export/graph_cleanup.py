"""Clean-up of an exported graph, so that equal weights give equal bytes, and its saving."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from onnx_release import limits
from onnx_release.artifact import onnx_file
from onnx_release.export.contract import varying_axes
from onnx_release.records import TensorSpec
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mapped_weights import pages_of

_WRITERS = 2
_BLOCK_BYTES = 2**20


def rename_inner_values(graph: ir.Graph) -> None:
    """Give an inner value another name if it has the name of an input or an output, such as ``linear``."""
    outer = {value.name: value for value in (*graph.inputs, *graph.outputs)}
    inner = [value for node in graph.all_nodes() for value in node.outputs]
    taken = {str(value.name) for value in (*inner, *graph.initializers.values())} | {str(name) for name in outer}
    for value in (*inner, *graph.initializers.values()):
        if value.name in outer and value is not outer[value.name]:
            name, count = str(value.name), 1
            while f"{name}_{count}" in taken:
                count += 1
            taken.add(f"{name}_{count}")
            value.name = f"{name}_{count}"


def clean(model: ir.Model, inputs: Sequence[TensorSpec]) -> None:
    """Remove metadata, give the dimensions the names of the signature, and prepare the weights for writing.

    The exporter writes source paths and line numbers into the metadata. They differ by checkout, and they would
    publish parts of the training code.
    """
    graph = model.graph
    names: dict[str, str] = {}
    for spec, value in zip(inputs, graph.inputs, strict=False):
        for axis, name in varying_axes(spec).items():
            size = value.shape[axis] if value.shape is not None and axis < len(value.shape) else None
            if isinstance(size, ir.SymbolicDim):
                # The exporter may unify two dimensions. The first name is kept.
                names.setdefault(str(size.value), name)
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            _clean_value(value, names)
    for value in (*graph.inputs, *graph.initializers.values()):
        _clean_value(value, names)


def _clean_value(value: ir.Value, names: Mapping[str, str]) -> None:
    value.metadata_props.clear()
    if value.shape is not None:
        value.shape = ir.Shape([size if isinstance(size, int) else _renamed(size, names) for size in value.shape])
    if value.const_value is not None:
        # The weight of a folded Linear layer is a transposed view. numpy writes such a view element by element.
        array = value.const_value.numpy()
        if not array.flags.c_contiguous and array.dtype.kind in "fiub":
            value.const_value = _StridedTensor(array, dtype=value.const_value.dtype, name=value.name)


class _StridedTensor(ir.Tensor[npt.NDArray[Any]]):
    """A tensor in non-contiguous memory. `tofile` makes one block of rows contiguous at a time.

    torch copies a block much faster than numpy, and no second copy of the whole tensor is made.
    """

    def tofile(self, file: Any) -> None:
        array = self.numpy()
        rows = max(1, _BLOCK_BYTES * len(array) // array.nbytes)
        for first in range(0, len(array), rows):
            file.write(_contiguous(array[first : first + rows]).data)


def _contiguous(block: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return a copy in row-major order.

    torch transposes a matrix by tiles, five times faster than it copies a strided one, if its columns are contiguous
    and adjoin each other. Rows of a transposed view do not adjoin until numpy has gathered their columns.
    """
    if block.ndim == 2:
        return torch.from_numpy(np.ascontiguousarray(block.T)).t().contiguous().numpy()
    return torch.from_numpy(block).contiguous().numpy()


def _renamed(dimension: ir.SymbolicDim, names: Mapping[str, str]) -> str | None:
    # A dimension can be an expression, such as s77 + 1.
    value = dimension.value
    return None if value is None else re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(value))


def restore_varying_outputs(graph: ir.Graph, axes: Mapping[str, Mapping[int, str]]) -> None:
    """Give the outputs their varying dimensions back.

    After a loop, torch records the traced size of a dimension. Verification runs other sizes, so a wrong name is
    found there. The shapes of inner values are removed in that case: ONNX Runtime would plan memory by them.

    Args:
        graph: The graph, changed in place.
        axes: Output name -> axis -> dimension name.
    """
    restored = False
    for value in graph.outputs:
        for axis, name in axes.get(str(value.name), {}).items():
            if value.shape is not None and axis < len(value.shape) and isinstance(value.shape[axis], int):
                value.shape = ir.Shape([name if i == axis else size for i, size in enumerate(value.shape)])
                restored = True
    if restored:
        outputs = set(graph.outputs)
        for node in graph.all_nodes():
            for value in node.outputs:
                value.shape = value.shape if value in outputs else None


def specs_of(values: Iterable[ir.Value]) -> tuple[TensorSpec, ...]:
    """Return the names, dtypes and shapes of values of a graph."""
    return tuple(
        TensorSpec(
            name=str(value.name),
            dtype=value.dtype.numpy().name if value.dtype is not None else "not a tensor",
            shape=tuple(size if isinstance(size, int) else str(size.value) for size in value.shape or ()),
        )
        for value in values
    )


def save_model(
    graph: ir.Model, folder: Path, model: LoadedModel, single_file_max_bytes: int = limits.SINGLE_FILE_MAX_BYTES
) -> None:
    """Write ``model.onnx``, and the external data of larger weights.

    Pages of a memory-mapped weight file are released while external data is written.

    Args:
        graph: The graph.
        folder: The folder to write to.
        model: The loaded model, whose weights the graph shares.
        single_file_max_bytes: As in `onnx_file.save`.
    """
    pages = pages_of(model)
    onnx_file.save(
        graph,
        folder,
        single_file_max_bytes,
        read=pages.read,
        # One thread copies into the page cache at a third of the speed of two. The bytes are the same.
        max_workers=_WRITERS,
        max_in_flight_bytes=limits.MAPPED_PAGES_KEPT_BYTES,
    )
    pages.drop()
