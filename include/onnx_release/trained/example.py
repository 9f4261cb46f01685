"""Input examples whose values have no names: a list in MLflow's file, or the tensors that a program was traced with."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from onnx_release.errors import TrainedModelRefused
from onnx_release.records import TensorSpec
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.input_binding import InputBinding, bind_inputs, program_example
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mlflow_model import TrainedPackage
from onnx_release.trained.signature import without_batch


def bind_package(package: TrainedPackage, model: LoadedModel) -> tuple[TrainedPackage, InputBinding]:
    """Bind the inputs of a package to its model, and name the values of an example without names.

    The values of a list are in the order of the model's arguments, because MLflow traces a pt2 program in that order.
    The order of the signature is taken only if the values fit that one alone. MLflow stores no example beside a program
    with several inputs, so the tensors of its trace are the example.

    Raises:
        TrainedModelRefused: The signature and the model have different inputs, or the listed values fit no order.
    """
    names = [spec.name for spec in package.inputs]
    binding = bind_inputs(model, names)
    if package.listed_example:
        orders = [dict(zip(order, package.listed_example, strict=True)) for order in (binding.order, names)]
        package = _with_example(package, orders)
        if package.example is None:
            raise TrainedModelRefused(
                "The input example",
                f"is a list of {len(names)} values that fit neither the order of the model's arguments "
                f"({', '.join(binding.order)}) nor that of the signature ({', '.join(names)})",
                "Log a dict with one array for each input as the input example.",
                code="unreadable_file",
            )
    elif package.example is None and isinstance(model, torch.export.ExportedProgram):
        traced = program_example(model, names)
        finite = all(bool(torch.isfinite(tensor).any()) for tensor in traced.values())
        package = _with_example(package, [{name: t.numpy(force=True) for name, t in traced.items() if finite}])
    return dataclasses.replace(package, listed_example=()), binding


def _with_example(package: TrainedPackage, candidates: Sequence[Mapping[str, Any]]) -> TrainedPackage:
    """Return the package with the first example that fits, first with a common batch and then without one."""
    readings = [(package.inputs, package.outputs)]
    if package.inputs_from == "signature":
        readings.append(without_batch(package.inputs, package.outputs))
    for inputs, outputs in readings:
        for values in candidates:
            if (example := _fitting(inputs, values)) is not None:
                return dataclasses.replace(package, inputs=inputs, outputs=outputs, example=example)
    return package


def _fitting(inputs: Sequence[TensorSpec], values: Mapping[str, Any]) -> Arrays | None:
    """Return the values in the dtypes of the inputs, or None if a dtype, shape or size does not fit."""
    arrays: Arrays = {}
    sizes: dict[str, int] = {}
    for spec in inputs:
        try:
            given = np.asarray(values[spec.name])
            array = given.astype(spec.dtype)
        except (KeyError, ValueError, TypeError):
            return None
        expected = [
            sizes.setdefault(size, own) if isinstance(size, str) else size
            for size, own in zip(spec.shape, array.shape, strict=False)
        ]
        exact = array.dtype.kind == "f" or np.array_equal(array, given)
        if list(array.shape) != expected or len(expected) != len(spec.shape) or not array.size or not exact:
            return None
        arrays[spec.name] = array
    return arrays
