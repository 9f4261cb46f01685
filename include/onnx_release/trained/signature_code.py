"""Lines of a training script that log a model, made from the model's own inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence

from onnx_release.records import TensorSpec

_TENSORS = 8


def schema_code(specs: Sequence[TensorSpec]) -> str:
    """Return MLflow's schema of tensors as code. A varying dimension is -1."""
    tensors = []
    for spec in specs[:_TENSORS]:
        shape = tuple(-1 if isinstance(size, str) else size for size in spec.shape)
        tensors.append(f"TensorSpec(np.dtype({spec.dtype!r}), {shape}, {spec.name!r})")
    return f"Schema([{', '.join([*tensors, *(['...'] if len(specs) > _TENSORS else [])])}])"


def signature_code(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Return MLflow's signature as code. Without outputs, their place is marked by dots."""
    return f"ModelSignature(inputs={schema_code(inputs)}, outputs={schema_code(outputs) if outputs else '...'})"


def log_code(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    """Return the call that logs a model: with its signature, and an example of 2 rows or more."""
    rows = [spec.name if spec.name.isidentifier() else "batch" for spec in inputs]
    arrays = ", ".join(f"{spec.name!r}: {row}[:4]" for spec, row in zip(inputs, rows, strict=True))
    example = f"{{{arrays}}}" if len(inputs) > 1 else f"{rows[0]}[:4]"
    return (
        f"model.eval(); mlflow.pytorch.log_model(model, name='model', input_example={example}, "
        f"signature={signature_code(inputs, outputs)})"
    )
