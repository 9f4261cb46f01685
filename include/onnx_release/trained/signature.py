"""Signature of an MLflow model: its tensors, and the names of their varying dimensions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from mlflow.types import Schema

from onnx_release.errors import TrainedModelRefused
from onnx_release.limits import NAME_MAX_CHARACTERS
from onnx_release.records import TensorSpec
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.dimension_names import batch_name, identifiers

Side = Literal["input", "output"]

_SIGN = (
    "Log the model again with mlflow.pytorch.log_model(..., signature=ModelSignature(inputs=Schema([TensorSpec("
    "np.dtype('float32'), (-1, ...), 'name')]), outputs=...)), each tensor named and -1 for its batch."
)


def read_schema(schema: Schema | None, side: Side) -> tuple[TensorSpec, ...]:
    """Return the tensors of one side of a signature. A dimension that varies is -1.

    Raises:
        TrainedModelRefused: The side is missing, has columns, or does not name each tensor.
    """
    subject = "The model's signature"
    if schema is None or not schema.inputs:
        raise TrainedModelRefused(subject, f"names no {side}s", _SIGN, code="no_signature")
    if not schema.is_tensor_spec():
        columns = ", ".join(map(str, schema.input_names()))
        problem = f"has columns instead of tensors as {side}s: {columns:.200}"
        raise TrainedModelRefused(subject, problem, _sign_table(side, len(schema.inputs)), code="column_signature")
    names = schema.input_names() if schema.has_input_names() else [side]
    if len(names) != len(schema.inputs) or len(set(names)) != len(names):
        problem = f"does not give each of its {len(schema.inputs)} {side}s a unique name: {', '.join(names):.200}"
        raise TrainedModelRefused(subject, problem, _SIGN, code="ambiguous_names")
    if wrong := [str(name) for name in names if len(str(name)) > NAME_MAX_CHARACTERS or not str(name).isprintable()]:
        problem = f"names an {side} {wrong[0]!r:.80}, with control characters or more than {NAME_MAX_CHARACTERS} others"
        raise TrainedModelRefused(subject, problem, _SIGN, code="tensor_name")
    return tuple(
        TensorSpec(name=str(name), dtype=str(np.dtype(tensor.type)), shape=tuple(max(int(n), -1) for n in tensor.shape))
        for name, tensor in zip(names, schema.inputs, strict=True)
    )


def _sign_table(side: Side, columns: int) -> str:
    name = "features" if side == "input" else "predictions"
    return (
        f"Log the model again with the {side}s Schema([TensorSpec(np.dtype('float32'), (-1, {columns}), '{name}')]) in "
        "its signature, in the shape and the dtype of the tensor that `forward` takes or returns."
    )


def with_dimension_names(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], example: Arrays | None
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Name the varying dimensions of a signature, which are -1 there. Names of the parameter `input_spec` stay."""
    leading = set()
    for spec in inputs if example is not None else ():
        axis = _first_varying(spec)
        if example is not None and axis is not None and example[spec.name].ndim == len(spec.shape):
            leading.add(example[spec.name].shape[axis])
    named = any(isinstance(size, str) for spec in inputs for size in spec.shape)
    batch = batch_name(inputs) if named else "batch" if len(leading) <= 1 else None
    labels = {
        (spec.name, axis): f"{spec.name}_dim{axis}"
        for spec in (*inputs, *outputs)
        for axis, size in enumerate(spec.shape)
        if size == -1
    }
    unique = identifiers(labels.values())

    def renamed(spec: TensorSpec) -> TensorSpec:
        first = _first_varying(spec)
        shape = [
            size if size != -1 else batch if axis == first and batch is not None else unique[labels[spec.name, axis]]
            for axis, size in enumerate(spec.shape)
        ]
        return spec.replace(shape=tuple(shape))

    return tuple(map(renamed, inputs)), tuple(map(renamed, outputs))


def without_batch(
    inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return tensors in which each dimension ``batch`` has a name of its own."""
    specs = (*inputs, *outputs)
    own = {(spec.name, axis): f"{spec.name}_dim{axis}" for spec in specs for axis in range(len(spec.shape))}
    unique = identifiers([*(str(size) for spec in specs for size in spec.shape), *own.values()])

    def renamed(spec: TensorSpec) -> TensorSpec:
        shape = [unique[own[spec.name, axis]] if size == "batch" else size for axis, size in enumerate(spec.shape)]
        return spec.replace(shape=tuple(shape))

    return tuple(map(renamed, inputs)), tuple(map(renamed, outputs))


def _first_varying(spec: TensorSpec) -> int | None:
    return spec.shape.index(-1) if -1 in spec.shape else None
