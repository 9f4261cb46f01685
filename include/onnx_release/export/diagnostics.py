"""Findings about a trained model and its export, each with a correction for the training script."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

import torch

from onnx_release.errors import Refused
from onnx_release.export.fallback import ExportResult
from onnx_release.export.strategies import DYNAMO
from onnx_release.export.train_mode import uses_batch_statistics
from onnx_release.records import Finding, TensorSpec
from onnx_release.text import shorten
from onnx_release.trained.dimension_names import batch_name
from onnx_release.trained.input_binding import InputBinding
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mlflow_model import TrainedPackage
from onnx_release.trained.output_names import OutputBinding
from onnx_release.trained.signature_code import log_code, schema_code, signature_code

# ONNX Runtime's CPU provider has kernels of few operators for these.
_RARE_DTYPES = {torch.float64: "float64", torch.bfloat16: "bfloat16"}

# The own name of a value that has only a place in a tuple or among `*args`.
_POSITION = re.compile(r"output(_\d+)?|argument \d+|[\d.]+")


def training_findings(
    package: TrainedPackage, model: LoadedModel, outputs: Sequence[TensorSpec] = ()
) -> Iterator[Finding]:
    """Yield findings about how the model was logged, each with lines made from the model's own inputs and outputs.

    Args:
        package: The description of the model's files.
        model: The loaded model.
        outputs: The outputs of the exported graph, for a signature that does not describe them.
    """
    if package.inputs_from == "example":
        yield Finding(
            severity="warning",
            code="no_signature",
            message="The model has no signature: its inputs are read from its input example, and only the batch varies",
            fix=log_code(package.inputs, package.outputs),
        )
    if package.example is None:
        source = "the ranges of the input_spec" if package.ranges else "0 and 1, or a normal distribution"
        yield Finding(
            severity="warning",
            code="no_example",
            message=f"The model has no input example: its test inputs are random values from {source}",
            fix=log_code(package.inputs, package.outputs or outputs),
        )
    if not package.outputs:
        yield Finding(
            severity="info",
            code="unnamed_outputs",
            message="The signature does not describe the outputs: they have the names that the model gives them",
            fix=signature_code(package.inputs, outputs),
        )
    for side in package.unnamed:
        yield Finding(
            severity="info",
            code=f"unnamed_{side}",
            message=f"The {side} has no name in the signature: its name in the ONNX file is '{side}'",
            fix=schema_code(package.inputs if side == "input" else package.outputs),
        )
    if uses_batch_statistics(model):
        yield Finding(
            severity="warning",
            code="batch_statistics",
            message="A batch norm has no running statistics: a row's output depends on the other rows of its batch",
            fix="torch.nn.BatchNorm2d(..., track_running_stats=True)  # or GroupNorm",
        )
    tensors = model.state_dict.values() if isinstance(model, torch.export.ExportedProgram) else model.parameters()
    for dtype in sorted({_RARE_DTYPES[tensor.dtype] for tensor in tensors if tensor.dtype in _RARE_DTYPES}):
        yield Finding(
            severity="warning",
            code="unsupported_dtype",
            message=f"The model has {dtype} weights: many operators of ONNX Runtime's CPU provider do not support them",
            fix="model = model.float()  # before it is logged",
        )


def name_findings(package: TrainedPackage, inputs: InputBinding, outputs: OutputBinding) -> Iterator[Finding]:
    """Yield findings about names that bound by order, and about outputs that the signature leaves out."""
    sides = ("input", inputs, package.inputs), ("output", outputs, package.outputs)
    for side, binding, described in sides:
        own = {name: binding.own_names[name] for name in binding.ordered}
        if any(name != own_name and not _POSITION.fullmatch(own_name) for name, own_name in own.items()):
            renamed = ", ".join(f"'{model_name}' is '{name}' in the ONNX file" for name, model_name in own.items())
            specs = [spec.replace(name=binding.own_names.get(spec.name, spec.name)) for spec in described]
            yield Finding(
                severity="info",
                code=f"renamed_{side}s",
                message=f"The model does not have these names of the signature, so they bind by order: {renamed}",
                fix=f"{schema_code(specs)}  # to keep the names of the model",
            )
    if fixed := ", ".join(f"{name}={value!r:.60}" for name, value in inputs.fixed.items() if value is not None):
        yield Finding(
            severity="info",
            code="fixed_arguments",
            message=f"The exported program has the values of its trace for arguments that are not tensors: {fixed}",
            fix="torch.export.export(model, ...)  # with the values that the release needs",
        )
    if outputs.dropped:
        yield Finding(
            severity="info",
            code="dropped_outputs",
            message=f"The signature leaves out values that the model returns: {', '.join(outputs.dropped)}",
            fix="ModelSignature(outputs=Schema([...]))  # with a TensorSpec for each value that a consumer needs",
        )


def dimension_findings(package: TrainedPackage, more_general: Sequence[str]) -> Iterator[Finding]:
    """Yield findings about dimensions that the signature describes differently.

    Args:
        package: The description of the trained model.
        more_general: Differences between the graph and the signature, from `contract.more_general`.
    """
    if more_general:
        yield Finding(
            severity="warning",
            code="more_general",
            message=f"The graph differs from the signature: {'; '.join(more_general)}",
            fix="-1 for each dimension that varies, and a number for each that does not, in the signature",
        )
    if package.columns:
        yield Finding(
            severity="warning",
            code="table_input",
            message="The signature describes a table. The ONNX file takes one float32 tensor 'input' with the columns "
            f"{', '.join(package.columns)}, in this order",
            fix=f"Schema([TensorSpec(np.dtype('float32'), (-1, {len(package.columns)}), 'features')])",
        )
    if batch_name(package.inputs) is None:
        sizes = ", ".join(f"'{spec.name}' {list(spec.shape)}" for spec in package.inputs)
        yield Finding(
            severity="info",
            code="no_common_batch",
            message=f"The inputs share no batch dimension: {sizes}. A batch size of n is n times the example",
        )


def export_findings(
    result: ExportResult, written: Sequence[str] = (), limited: Mapping[str, str] | None = None
) -> Iterator[Finding]:
    """Yield findings about the export: the strategy, limits of sizes, and attributes that `forward` writes."""
    rejected = [attempt for attempt in result.attempts if attempt.outcome != "taken"]
    if rejected and result.strategy != DYNAMO:
        reasons = "; ".join(
            f"{attempt.strategy} ({attempt.outcome}): {shorten(attempt.reason)}" for attempt in rejected
        )
        message = f"The strategy '{result.strategy}' wrote the ONNX file. Earlier ones did not succeed: {reasons}"
        yield Finding(severity="info", code="strategy", message=message)
    for dimension, limit in (limited or {}).items():
        message = f"The code of the model limits the dimension '{dimension}' to {limit}, and the signature does not"
        yield Finding(severity="warning", code="size_limit", message=message)
    if written:
        names = ", ".join(written[:10]) + (", …" if len(written) > 10 else "")
        message = f"`forward` writes attributes of the model: {names}. The outputs do not depend on earlier calls"
        yield Finding(severity="info", code="forward_writes", message=message)


def refusal_finding(refusal: Refused) -> Finding:
    """Return a refusal as a finding with the same code. Its fix is the action of the refusal."""
    return Finding(
        severity="error", code=refusal.code, message=f"{refusal.subject} {refusal.problem}", fix=refusal.action
    )
