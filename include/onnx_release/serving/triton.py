"""Model repository entry for Triton Inference Server: ``config.pbtxt`` beside a folder with the model.

The fields are those of Triton's ``model_config.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from onnx_release.errors import ServingRefused
from onnx_release.limits import MODEL_FILE
from onnx_release.records import OnnxArtifact, TensorSpec
from onnx_release.samples.dimensions import batch_axes

CONFIG_FILE = "config.pbtxt"
# The folder of the only version in an entry.
VERSION_FOLDER = "1"

_DTYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "uint16": "TYPE_UINT16",
    "uint32": "TYPE_UINT32",
    "uint64": "TYPE_UINT64",
    "int8": "TYPE_INT8",
    "int16": "TYPE_INT16",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
    "bfloat16": "TYPE_BF16",
    "object": "TYPE_STRING",
}


def config_pbtxt(artifact: OnnxArtifact, name: str, max_batch_size: int) -> str:
    """Return the configuration of a model as a text protocol buffer.

    Args:
        artifact: The record of the artifact.
        name: The name of the model, which is that of its folder.
        max_batch_size: The largest batch for a model with a batch that varies. A graph whose first dimensions are not
            one batch gets 0: its requests have all dimensions.

    Raises:
        ServingRefused: `unsupported_dtype`, for a tensor whose dtype Triton lacks.
    """
    batch = max_batch_size if _has_batch(artifact) else 0
    lines = [
        f"name: {quoted(name)}",
        'backend: "onnxruntime"',
        f"default_model_filename: {quoted(MODEL_FILE)}",
        f"max_batch_size: {batch}",
    ]
    for kind, specs in (("input", artifact.inputs), ("output", artifact.outputs)):
        lines += [f"{kind} {{\n{_tensor(spec, is_batched=batch > 0)}\n}}" for spec in specs]
    kind = "KIND_CPU" if artifact.providers[:1] == ("CPUExecutionProvider",) else "KIND_GPU"
    lines.append(f"instance_group {{\n  count: 1\n  kind: {kind}\n}}")
    lines += _parameters(artifact)
    return "\n".join(lines) + "\n"


def quoted(text: str) -> str:
    """Return a text as a string of a text protocol buffer. Every byte outside printable ASCII is an octal escape."""
    plain = [chr(byte) if 32 <= byte < 127 and byte not in b"\"'\\" else f"\\{byte:03o}" for byte in text.encode()]
    return f'"{"".join(plain)}"'


def _has_batch(artifact: OnnxArtifact) -> bool:
    """Return True if the first dimension of every input and output is the batch."""
    axes = batch_axes(artifact.inputs)
    if not axes or any(axis != 0 for axis in axes.values()):
        return False
    first = {spec.shape[0] if spec.shape else None for spec in (*artifact.inputs, *artifact.outputs)}
    return len(first) == 1 and isinstance(first.pop(), str)


def _tensor(spec: TensorSpec, *, is_batched: bool) -> str:
    dtype = _DTYPES.get(spec.dtype)
    if dtype is None:
        raise ServingRefused(
            f"The tensor '{spec.name}'",
            f"has the dtype {spec.dtype}, which Triton lacks",
            "Release without 'triton' and 'kserve' in the parameter 'serving_layouts', or change the dtype.",
            code="unsupported_dtype",
        )
    sizes = [size if isinstance(size, int) else -1 for size in spec.shape[is_batched:]]
    lines = [f"name: {quoted(spec.name)}", f"data_type: {dtype}", f"dims: [ {_joined(sizes or [1])} ]"]
    if not sizes:
        # Triton has no empty list of dimensions.
        lines.append("reshape { shape: [ ] }")
    return "\n".join(f"  {line}" for line in lines)


def _joined(sizes: Sequence[int]) -> str:
    return ", ".join(map(str, sizes))


def _parameters(artifact: OnnxArtifact) -> Iterator[str]:
    """Yield the digest of the artifact, and the tested number of threads of a tuned one."""
    values = {"onnx_release_sha256": artifact.sha256}
    if threads := artifact.session_options.get("intra_op_num_threads"):
        values["intra_op_thread_count"] = str(threads)
    for key, text in values.items():
        yield f"parameters {{\n  key: {quoted(key)}\n  value {{ string_value: {quoted(text)} }}\n}}"
