"""What is worth knowing about a trained model before and after its export, each with the line that mends it."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from onnx_release.errors import Refused
from onnx_release.export.fallback import ExportResult
from onnx_release.export.strategies import DYNAMO
from onnx_release.records import Finding
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mlflow_model import TrainedPackage

# Kernels of ONNX Runtime's CPU provider exist for few operators in these.
_RARE_DTYPES = {torch.float64: "float64", torch.bfloat16: "bfloat16"}

# Words of a refusal, the name of the finding they make. The first that fits is taken.
_CODES = (
    ("frozen at", "frozen_dimension"),
    ("train mode", "train_mode"),
    ("names no inputs", "no_signature"),
    ("is neither installed here nor logged", "missing_code"),
    ("is a pickle", "pickle"),
    ("NOT_IMPLEMENTED", "unsupported_dtype"),
    ("data-dependent", "data_dependent"),
    ("fixes what a value decides", "data_dependent"),
    ("cannot be exported", "export"),
)


def of_source(package: TrainedPackage, model: LoadedModel) -> Iterator[Finding]:
    """Yield what the way the model was logged leaves to be wished for."""
    if package.inputs_from == "example":
        yield Finding(
            severity="warning",
            code="no_signature",
            message="the model has no signature: its inputs are taken from its example, and only the batch may vary",
            fix="mlflow.pytorch.log_model(model, signature=ModelSignature(inputs=Schema([TensorSpec(...)])), ...)",
        )
    if package.example is None:
        made = "the input_spec's ranges" if package.ranges else "its signature: 0 and 1, or normal"
        yield Finding(
            severity="warning",
            code="no_example",
            message=f"the model has no input example: samples are made from {made}",
            fix="mlflow.pytorch.log_model(model, input_example=batch[:4].numpy(), ...)",
        )
    if not package.outputs:
        yield Finding(
            severity="info",
            code="outputs_unnamed",
            message="the model's outputs are not described: they have the names that the model itself gives them",
            fix="ModelSignature(outputs=Schema([TensorSpec(np.dtype('float32'), (-1, 2), 'positions')]))",
        )
    for side in package.unnamed:
        yield Finding(
            severity="info",
            code=f"unnamed_{side}",
            message=f"the signature gives its {side} no name, so it is called '{side}' in the ONNX file",
            fix="Schema([TensorSpec(np.dtype('float32'), (-1, 3, 224, 224), 'image')])",
        )
    yield from _names(package, model)
    yield from _dtypes(model)


def _names(package: TrainedPackage, model: LoadedModel) -> Iterator[Finding]:
    if not isinstance(model, torch.export.ExportedProgram):
        return
    own = [str(name) for name in model.graph_signature.user_inputs]
    wanted = [spec.name for spec in package.inputs]
    if own != wanted and len(own) == len(wanted):
        pairs = ", ".join(f"'{a}' is called '{b}'" for a, b in zip(own, wanted, strict=True) if a != b)
        names = ", ".join(f"TensorSpec(..., '{name}')" for name in own)
        yield Finding(
            severity="info",
            code="renamed_inputs",
            message=f"by the signature, the program's input {pairs}",
            fix=f"Schema([{names}])  # if the program's names are the better ones",
        )


def _dtypes(model: LoadedModel) -> Iterator[Finding]:
    tensors = model.state_dict.values() if isinstance(model, torch.export.ExportedProgram) else model.parameters()
    for dtype in sorted({_RARE_DTYPES[t.dtype] for t in tensors if t.dtype in _RARE_DTYPES}):
        yield Finding(
            severity="warning",
            code="unsupported_dtype",
            message=f"the model has {dtype} weights, for which ONNX Runtime's CPU provider lacks many kernels",
            fix="model = model.float()  # before it is logged",
        )


def of_export(result: ExportResult) -> Iterator[Finding]:
    """Yield what the export had to do to succeed."""
    failed = [attempt for attempt in result.attempts if attempt.outcome != "taken"]
    if failed and result.strategy != DYNAMO:
        reasons = "; ".join(f"{attempt.strategy} ({attempt.outcome}): {attempt.reason:.300}" for attempt in failed)
        yield Finding(severity="info", code="strategy", message=f"exported by {result.strategy}, after {reasons}")


def of_refusal(refusal: Refused) -> Finding:
    """Return a refusal as the finding it is; its fix is what the refusal says to do."""
    text = f"{refusal.subject}: {refusal.problem}"
    code = next((code for words, code in _CODES if words in text), "refused")
    return Finding(severity="error", code=code, message=text, fix=refusal.action)
