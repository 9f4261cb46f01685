"""Reasons why PyTorch does not run a model on its own inputs, found by further calls with other dtypes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np

from onnx_release.errors import Refused, RunnerRefused
from onnx_release.export.contract import ModelContract
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner
from onnx_release.trained.dimension_names import batch_name
from onnx_release.trained.input_spec import input_spec_text
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mlflow_model import TrainedPackage
from onnx_release.trained.model_errors import float_dtypes
from onnx_release.trained.signature_code import schema_code

_SOURCES = {"signature": "the signature", "input_spec": "the parameter `input_spec`", "example": "the input example"}
# The number of further calls: a model can have many inputs.
_CALLS_MAX = 40


def explain_failure(
    refusal: RunnerRefused,
    model: LoadedModel,
    options: PyTorchOptions,
    package: TrainedPackage,
    contract: ModelContract,
) -> RunnerRefused:
    """Return a refusal whose action fits the failure of PyTorch on the samples.

    Args:
        refusal: The refusal of the runner.
        model: The loaded model.
        options: Options of the PyTorch runner.
        package: The description of the trained model.
        contract: The inputs of the model, and the sample for the trace.
    """
    example = contract.example if package.example is None else package.example
    with PyTorchRunner(model, options) as runner:
        if not _runs(runner, example):
            for dtypes in islice(_other_dtypes(model, contract), _CALLS_MAX):
                if _runs(runner, {name: array.astype(dtypes[name]) for name, array in example.items()}):
                    return _wrong_dtypes(dtypes, package)
            return refusal
    if batch_name(contract.inputs) is None:
        action = (
            "The inputs share no batch, so their first varying dimensions were multiplied. If they have a batch, "
            f"set the parameter `input_spec`, in which the dimension 'batch' is it: {input_spec_text(package.inputs)}."
        )
        return RunnerRefused(refusal.subject, refusal.problem, action, code=refusal.code)
    return refusal


def _runs(runner: PyTorchRunner, inputs: Mapping[str, np.ndarray]) -> bool:
    try:
        runner.run({name: array.copy() for name, array in inputs.items()})
    except Refused:
        return False
    return True


def _other_dtypes(model: LoadedModel, contract: ModelContract) -> Iterator[dict[str, str]]:
    """Yield other dtypes for the inputs: for one of them, then for all floats, all integers and both."""
    names = sorted({*float_dtypes(model), "float32"} - {"bfloat16"})
    signed = {spec.name: spec.dtype for spec in contract.inputs}
    kinds = {name: np.dtype(dtype).kind for name, dtype in signed.items()}
    for name in signed:
        array = contract.example[name]
        whole = kinds[name] != "f" or bool((array == np.round(array)).all())
        yield from (signed | {name: other} for other in [*names, *(["int64", "int32"] if whole else [])])
    for other in names:
        all_floats = {name: other for name, kind in kinds.items() if kind == "f"}
        all_integers = {name: "int64" for name, kind in kinds.items() if kind in "iu"}
        yield from (signed | all_floats, signed | all_integers, signed | all_floats | all_integers)


def _wrong_dtypes(dtypes: Mapping[str, str], package: TrainedPackage) -> RunnerRefused:
    source = _SOURCES[package.inputs_from]
    problems = "; ".join(
        f"the input '{spec.name}' is {spec.dtype} in {source}, and the model runs only with {dtypes[spec.name]}"
        for spec in package.inputs
        if spec.dtype != dtypes[spec.name]
    )
    right = [spec.replace(dtype=dtypes[spec.name]) for spec in package.inputs]
    return RunnerRefused(
        "The PyTorch model",
        f"does not take the dtype of its inputs: {problems}",
        f"Log the model again with {schema_code(right)} as its inputs, and with an example of these dtypes. Or set "
        f"the parameter `input_spec` to {input_spec_text(right)}.",
        code="dtype_mismatch",
    )
