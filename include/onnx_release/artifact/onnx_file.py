"""The ONNX model of an artifact: one file with its weights, or a graph with external data."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx_ir as ir
from google.protobuf.message import EncodeError

from onnx_release import limits
from onnx_release.errors import ArtifactRefused


def save(
    model: ir.Model, folder: Path, single_file_max_bytes: int, *, read: Callable[[int], None] | None = None, **how: Any
) -> None:
    """Write ``model.onnx``, with the weights in it or in ``model.onnx.data``.

    One file needs memory for about three times the weights. External data is streamed.

    Args:
        model: The graph. Tensors that are external stay so, unless the result is one file.
        folder: The folder to write to.
        single_file_max_bytes: The largest size of all weights for one file. 0: weights are always external.
        read: A function that gets the size of each tensor after it was written to the external data.
        how: Further arguments of `onnx_ir.save`, for external data.

    Raises:
        ArtifactRefused: `single_file_too_large`, if one file would exceed the limit of its format.
    """
    if weights_bytes(model) > single_file_max_bytes:
        callback = (lambda tensor, _: read(tensor.nbytes)) if read else None
        ir.save(model, folder / limits.MODEL_FILE, external_data=limits.EXTERNAL_DATA_FILE, callback=callback, **how)
        return
    ir.external_data.load_to_model(model)
    path = folder / limits.MODEL_FILE
    size = weights_bytes(model)
    try:
        if size <= limits.PROTO_MAX_BYTES:
            content = ir.to_proto(model).SerializeToString()
            if (size := len(content)) <= limits.PROTO_MAX_BYTES:
                path.write_bytes(content)
                return
    except (EncodeError, ValueError) as error:
        raise _too_large(size, single_file_max_bytes) from error
    raise _too_large(size, single_file_max_bytes)


def repack(source: Path, target: Path, single_file_max_bytes: int) -> None:
    """Write a model into another folder, as `save` does. Files that are right already are copied.

    Args:
        source: The folder of the model, which is only read.
        target: The folder to write to.
        single_file_max_bytes: As in `save`.
    """
    model = ir.load(source / limits.MODEL_FILE)
    is_external = (source / limits.EXTERNAL_DATA_FILE).exists()
    if is_external != (weights_bytes(model) > single_file_max_bytes):
        save(model, target, single_file_max_bytes)
        return
    for name in (limits.MODEL_FILE, limits.EXTERNAL_DATA_FILE):
        if (source / name).exists():
            shutil.copyfile(source / name, target / name)


def weights_bytes(model: ir.Model) -> int:
    """Return the size of all initializers in bytes, also of those in the graphs of nodes."""
    values = (value for graph in model.graphs() for value in graph.initializers.values())
    return sum(value.const_value.nbytes for value in values if value.const_value is not None)


def _too_large(size: int, single_file_max_bytes: int) -> ArtifactRefused:
    return ArtifactRefused(
        "The model as one file",
        f"has {size / 1e9:.3g} GB or more; the ONNX format allows {limits.PROTO_MAX_BYTES / 1e9:.3g} GB in a file",
        f"Lower the parameter 'single_file_max_bytes', which is {single_file_max_bytes}.",
        code="single_file_too_large",
    )
