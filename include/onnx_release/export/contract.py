"""Contract of the exported graph: the names, dtypes and shapes that its inputs and outputs must have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch

from onnx_release.errors import ExportRefused, TrainedModelRefused
from onnx_release.export.recurrent import RECURRENT
from onnx_release.limits import EXPORT_BATCH_SIZE, VARYING_DIMENSION_SIZE
from onnx_release.records import TensorSpec
from onnx_release.samples.dimensions import Dimensions, batch_axes
from onnx_release.samples.draw import seeded_arrays
from onnx_release.samples.generate import make_samples
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.dimension_names import batch_name
from onnx_release.trained.input_binding import bind_inputs, program_example
from onnx_release.trained.input_spec import InputSpec
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mlflow_model import TrainedPackage
from onnx_release.trained.signature_code import log_code, schema_code, signature_code


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContract:
    """Inputs and outputs of a model, and the sample that it is traced with.

    Attributes:
        inputs: The inputs, in the order of the signature.
        outputs: The outputs; empty if the training run does not describe them.
        example: One array per input, with at least `limits.EXPORT_BATCH_SIZE` rows.
        output_names: The names that the model gives its outputs, for a training run without `outputs`.
        output_axes: The varying dimensions that were observed in PyTorch's outputs: output name -> axis -> dimension
            name. Without them, those of the signature count.
        ranges: Bounds for generated values, by input name.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays
    output_names: tuple[str, ...] = ()
    output_axes: dict[str, dict[int, str]] = field(default_factory=dict)
    ranges: dict[str, InputSpec] = field(default_factory=dict)

    @property
    def input_names(self) -> tuple[str, ...]:
        """The names of the inputs, in order."""
        return tuple(spec.name for spec in self.inputs)

    @property
    def named_outputs(self) -> tuple[str, ...]:
        """The names of the outputs, in order: those of the training run, else those of the model."""
        return tuple(spec.name for spec in self.outputs) or self.output_names

    @property
    def varying_axes(self) -> dict[str, dict[int, str]]:
        """The varying dimensions of the outputs: output name -> axis -> dimension name."""
        return self.output_axes or {spec.name: varying_axes(spec) for spec in self.outputs}

    def tensors(self, device: str) -> dict[str, torch.Tensor]:
        """Return a copy of the sample on a device, by name and in the order of the inputs."""
        return {name: torch.from_numpy(self.example[name].copy()).to(device) for name in self.input_names}


def contract_for(package: TrainedPackage) -> ModelContract:
    """Return the contract of a trained model.

    The sample is the training run's example with exactly the rows that the exporter needs, or a seeded one.
    """
    samples = make_samples(package.inputs, package.example, (EXPORT_BATCH_SIZE,), package.ranges)
    example = next(sample.inputs for sample in samples if sample.batch_size == EXPORT_BATCH_SIZE)
    dimensions = Dimensions.of(package.inputs, package.example, package.ranges)
    sizes = dimensions.sizes(EXPORT_BATCH_SIZE)
    # torch treats a size of 1 as a constant.
    too_small = {name: VARYING_DIMENSION_SIZE for name in dimensions.others if sizes[name] < EXPORT_BATCH_SIZE}
    if too_small:
        sizes = dimensions.sizes(EXPORT_BATCH_SIZE, **too_small)
        example = seeded_arrays(dimensions, sizes, 0, package.example, package.ranges)
    return ModelContract(inputs=package.inputs, outputs=package.outputs, example=example, ranges=package.ranges)


def varying_axes(spec: TensorSpec) -> dict[int, str]:
    """Return the varying dimensions of a tensor: axis -> dimension name."""
    return {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def require_distinct_names(contract: ModelContract) -> None:
    """Refuse an output with the name of an input: in an ONNX graph each value has its own name.

    Raises:
        TrainedModelRefused: With the code ``ambiguous_names``.
    """
    shared = [name for name in contract.named_outputs if name in contract.input_names]
    if shared:
        renamed = [s.replace(name=f"{s.name}_out") if s.name in shared else s for s in contract.outputs]
        outputs = f" as outputs={schema_code(renamed)}" if renamed else ""
        raise TrainedModelRefused(
            "The model's signature" if renamed else "The model, whose outputs have no names in the signature,",
            f"has one name for an input and for an output: {', '.join(shared):.200}",
            f"Give the outputs other names in the signature{outputs}, and log the model again.",
            code="ambiguous_names",
        )


def require_varying(
    program: torch.export.ExportedProgram, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec] = ()
) -> None:
    """Compare the input shapes of an exported program with the signature.

    Raises:
        ExportRefused: If a dimension that varies in the signature has a fixed size in the program
            (``frozen_batch``, ``frozen_dimension``).
        TrainedModelRefused: If the names do not fit (see `bind_inputs`).
    """
    binding = bind_inputs(program, [spec.name for spec in inputs])
    nodes = {binding.nodes[node.name]: node for node in program.graph.nodes if node.name in binding.nodes}
    problems: list[tuple[str, str]] = []
    for spec in inputs:
        value = nodes[spec.name].meta["val"]
        shape = tuple(size if isinstance(size, int) else str(size) for size in value.shape)
        problems += _frozen(f"input '{spec.name}'", shape, varying_axes(spec), batch_name(inputs))
    action = _relog(inputs, outputs)
    if any(node.target in RECURRENT for node in program.graph.nodes):
        action = (
            "torch fixes the length of nn.RNN, LSTM and GRU in a pt2 file. Log the model with "
            f"serialization_format='pickle', or its state dict; the export keeps the length. {action}"
        )
    _refuse("The exported program", problems, action)


def require_contract(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], contract: ModelContract) -> None:
    """Compare the inputs and outputs of an ONNX graph with the contract: names, dtypes and shapes.

    A graph that is more general than the signature passes (see `more_general`). An output dimension that PyTorch was
    seen to keep fixed may be fixed.

    Raises:
        ExportRefused: If something differs: a varying dimension has a fixed size (``frozen_batch``,
            ``frozen_dimension``), or a name, dtype or size is another (``contract_mismatch``).
    """
    problems: list[tuple[str, str]] = []
    batch = batch_name(contract.inputs)
    for side, found, expected in (("input", inputs, contract.inputs), ("output", outputs, contract.outputs)):
        found_names, expected_names = [spec.name for spec in found], [spec.name for spec in expected]
        if expected and found_names != expected_names:
            problems.append(("contract_mismatch", f"{side}s {found_names} instead of {expected_names}"))
        elif expected:
            for graph_spec, spec in zip(found, expected, strict=True):
                axes = varying_axes(spec) if side == "input" else contract.varying_axes.get(spec.name, {})
                problems += _mismatches(f"{side} '{spec.name}'", graph_spec, spec)
                if len(graph_spec.shape) == len(spec.shape):
                    problems += _frozen(f"{side} '{spec.name}'", graph_spec.shape, axes, batch)
    if any(code != "contract_mismatch" for code, _ in problems):
        action = _relog(contract.inputs, contract.outputs)
    else:
        action = f"Write the signature as the model is: {signature_code(inputs, outputs)}."
    _refuse("The exported graph", problems, action)


def more_general(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec], contract: ModelContract) -> list[str]:
    """Return the differences between a graph and the signature that refuse nothing, as phrases.

    `mlflow.infer_signature` writes -1 for the first dimension alone. So the batch of a recurrent state, which is its
    second dimension, has a fixed size there.
    """
    phrases = []
    sides = (("input", inputs, contract.inputs), ("output", outputs, contract.outputs))
    for side, found, expected in ((side, *pair) for side, *specs in sides for pair in zip(*specs, strict=False)):
        for axis, (size, signed) in enumerate(zip(found.shape, expected.shape, strict=False)):
            label = f"dimension {axis} of the {side} '{found.name}'"
            if isinstance(size, str) and isinstance(signed, int):
                phrases.append(f"{label} varies ('{size}'), and the signature has {signed}")
            elif isinstance(size, int) and isinstance(signed, str):
                phrases.append(f"{label} is always {size}, and the signature has -1")
    return phrases


def _mismatches(label: str, found: TensorSpec, expected: TensorSpec) -> Iterator[tuple[str, str]]:
    """Yield a code and a text for each difference between a tensor of the graph and its specification."""
    if found.dtype != expected.dtype:
        yield "contract_mismatch", f"{label} of dtype {found.dtype} instead of {expected.dtype}"
    if len(found.shape) != len(expected.shape):
        yield "contract_mismatch", f"{label} of shape {list(found.shape)} instead of {list(expected.shape)}"
        return
    for axis, (size, required) in enumerate(zip(found.shape, expected.shape, strict=True)):
        if isinstance(required, int) and isinstance(size, int) and size != required:
            yield "contract_mismatch", f"{label} with size {size} instead of {required} in dimension {axis}"


def _frozen(
    label: str, shape: Sequence[int | str], axes: Mapping[int, str], batch: str | None
) -> Iterator[tuple[str, str]]:
    """Yield a code and a text for each varying dimension that has a fixed size in `shape`."""
    for axis, name in axes.items():
        if axis < len(shape) and isinstance(shape[axis], int):
            code = "frozen_batch" if name == batch else "frozen_dimension"
            yield code, f"{label} with '{name}' (dimension {axis}) frozen at {shape[axis]}"


def _relog(inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> str:
    return (
        "Log the model again in evaluation mode, with an input example of at least 2 samples, and with -1 in the "
        f"signature for every dimension that varies: {log_code(inputs, outputs)}."
    )


def _refuse(subject: str, problems: Sequence[tuple[str, str]], action: str) -> None:
    """Raise for a list of codes and texts, with the code of the most specific one."""
    if problems:
        found = {code for code, _ in problems}
        code = next(code for code in ("frozen_batch", "frozen_dimension", "contract_mismatch") if code in found)
        text = "; ".join(text for _, text in problems)
        raise ExportRefused(subject, f"differs from the signature: it has {text}", action, code=code)


def traced_batch_size(model: LoadedModel, contract: ModelContract) -> int:
    """Return the batch size of the trace. An exported program was traced when it was logged."""
    shapes = {spec.name: contract.example[spec.name].shape for spec in contract.inputs}
    if isinstance(model, torch.export.ExportedProgram):
        shapes |= {name: value.shape for name, value in program_example(model, contract.input_names).items()}
    for name, axis in batch_axes(contract.inputs).items():
        if axis is not None:
            return int(shapes[name][axis])
    return 1 if isinstance(model, torch.export.ExportedProgram) else EXPORT_BATCH_SIZE
