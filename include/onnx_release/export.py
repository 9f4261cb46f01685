"""PyTorch to ONNX by torch's dynamo exporter, with the same bytes for the same weights."""

from __future__ import annotations

import logging
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from onnx_release import limits
from onnx_release.errors import Refused
from onnx_release.graph_mode import training_nodes
from onnx_release.records import TensorSpec
from onnx_release.samples import Arrays, batch_axis
from onnx_release.source import Trained

EXPORTER = "dynamo"
_RELOG = "Log the model again after model.eval(), with an input example of at least 2 samples and -1 for the batch."


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContract:
    """What the model takes and gives, and one sample of at least `limits.EXPORT_BATCH_SIZE` rows to trace it with."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """`opset` of None takes the exporter's default; `device` is ``cpu``, ``cuda`` or ``auto``: CUDA if present."""

    opset: int | None = None
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written, and how: inputs and outputs are the graph's own, read back after the export."""

    opset: int
    ir_version: int
    exporter: str
    device: str
    export_batch_size: int
    wall_s: float
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def export_onnx(model: Trained, folder: Path, contract: ModelContract, options: ExportOptions) -> ExportResult:
    """Write `model.onnx` and its external data into `folder`.

    :raises Refused: when the model cannot be exported with a dynamic batch and the contract's names, or is in train
        mode: a graph that was traced so keeps its dropout.
    """
    _require_opset(options.opset)
    device = _device(options.device)
    began = time.perf_counter()
    if isinstance(model, torch.export.ExportedProgram):
        _require_eval(model)
        _require_dynamic(model, contract.inputs)
        program = _convert(_moved(model, device), (), None, contract, options)
    else:
        arguments = tuple(torch.from_numpy(contract.example[spec.name]).to(device) for spec in contract.inputs)
        shapes = tuple(_dynamic_axes(spec) for spec in contract.inputs)
        program = _convert(model.eval().to(device), arguments, shapes, contract, options)
        _require_eval(program.exported_program)
    _name_outputs(program, contract.outputs)
    _tidy(program.model, contract.inputs)
    inputs, outputs = _specs(program.model.graph.inputs), _specs(program.model.graph.outputs)
    _require_contract(inputs, outputs, contract)
    program.save(folder / limits.MODEL_FILE, external_data=True)
    return ExportResult(
        opset=_written_opset(program.model, options.opset),
        ir_version=program.model.ir_version,
        exporter=EXPORTER,
        device=device,
        export_batch_size=_batch_size(model, contract),
        wall_s=time.perf_counter() - began,
        inputs=inputs,
        outputs=outputs,
    )


def tool_versions() -> dict[str, str]:
    """Return the versions that decide the exported bytes, as far as this file knows them."""
    # torch.__version__ is a class of its own, which no serialiser of records knows.
    return {"torch": str(torch.__version__), "onnx_ir": ir.__version__}


def _require_opset(opset: int | None) -> None:
    if opset is not None and not limits.OPSET_MIN <= opset <= limits.OPSET_MAX:
        allowed = f"the exporter writes {limits.OPSET_MIN} to {limits.OPSET_MAX}"
        raise Refused(f"opset {opset}", "cannot be written", f"Choose another: {allowed}.")


def _device(wanted: str) -> str:
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if wanted not in ("cpu", "cuda") or (wanted == "cuda" and not torch.cuda.is_available()):
        raise Refused(
            f"device {wanted!r}", "is not to be had on this worker", "Choose 'auto', or another worker's queue."
        )
    return wanted


def _moved(program: torch.export.ExportedProgram, device: str) -> torch.export.ExportedProgram:
    from torch.export.passes import move_to_device_pass

    tensors = list(program.state_dict.values())
    return program if all(t.device.type == device for t in tensors) else move_to_device_pass(program, device)


def _require_eval(program: torch.export.ExportedProgram) -> None:
    if nodes := training_nodes(program):
        raise Refused(
            "the model's graph",
            f"is in train mode: {', '.join(nodes[:5])}",
            "Call model.eval() before the model is logged, and write functional.dropout(x, training=self.training): "
            "without that it ignores the mode.",
        )


def _require_dynamic(program: torch.export.ExportedProgram, inputs: tuple[TensorSpec, ...]) -> None:
    """Compare the program's own shapes with the signature: where that says -1, a number is a frozen dimension."""
    wanted = set(program.graph_signature.user_inputs)
    nodes = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in wanted]
    if len(nodes) != len(inputs):
        raise Refused("the exported program", f"takes {len(nodes)} inputs, its signature names {len(inputs)}", _RELOG)
    frozen = [
        f"'{spec.name}' has {spec.shape[axis]} frozen at {size}"
        for spec, node in zip(inputs, nodes, strict=True)
        for axis, size in enumerate(node.meta["val"].shape)
        if axis < len(spec.shape) and isinstance(spec.shape[axis], str) and isinstance(size, int)
    ]
    if frozen:
        raise Refused("the exported program", "; ".join(frozen), _RELOG)


def _dynamic_axes(spec: TensorSpec) -> dict[int, Any]:
    # A name stands for one Dim: two inputs that share it must vary together.
    return {axis: torch.export.Dim(size) for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def _convert(
    model: Any, arguments: tuple[Any, ...], shapes: Any, contract: ModelContract, options: ExportOptions
) -> Any:
    try:
        with quiet_exporter(), torch.no_grad():
            return torch.onnx.export(
                model,
                arguments,
                dynamo=True,
                verbose=False,
                dynamic_shapes=shapes,
                opset_version=options.opset,
                input_names=[spec.name for spec in contract.inputs],
                output_names=[spec.name for spec in contract.outputs],
                optimize=True,
            )
    except Exception as error:  # the exporter runs the model's own code, which raises anything
        raise Refused("the model", f"cannot be exported to ONNX: {_essence(error)}", _ADVICE) from error


_ADVICE = (
    "Rewrite what the message names: an `if` or a loop that depends on a tensor's values or on the batch size cannot "
    "be exported (torch.where and torch.cond can)."
)


def _essence(error: BaseException) -> str:
    """Return the exporter's own words without its banner: the innermost cause says what the model does wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:4])[:600]}"


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress lines and its remarks on absent packages out of the task's log."""
    # The second has a level of its own, which the first's does not reach.
    logs = [logging.getLogger(name) for name in ("torch.onnx", "torch.onnx._internal.exporter._registration")]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)


def _name_outputs(program: Any, outputs: tuple[TensorSpec, ...]) -> None:
    """Name the outputs of a model that returns a dict after its keys: their order need not be the signature's."""
    spec = program.exported_program.call_spec.out_spec
    result = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    values = program.model.graph.outputs
    if isinstance(result, Mapping) and set(result) == {spec.name for spec in outputs} and len(values) == len(result):
        for name, position in result.items():
            values[position].name = name
        program.model.graph.outputs[:] = [values[result[spec.name]] for spec in outputs]


def _tidy(model: ir.Model, inputs: tuple[TensorSpec, ...]) -> None:
    """Make the bytes depend on weights and graph alone, and write the weights at the disk's speed."""
    graph = model.graph
    renamed = {
        str(size.value): str(spec.shape[axis])
        for spec, value in zip(inputs, graph.inputs, strict=False)
        for axis, size in enumerate(value.shape or ())
        if isinstance(size, ir.SymbolicDim) and axis < len(spec.shape) and isinstance(spec.shape[axis], str)
    }
    # The exporter writes source paths and lines into metadata: they differ by checkout, and tell what is not asked for.
    model.metadata_props.clear()
    graph.metadata_props.clear()
    for node in graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            _tidy_value(value, renamed)
    for value in (*graph.inputs, *graph.initializers.values()):
        _tidy_value(value, renamed)


def _tidy_value(value: ir.Value, renamed: dict[str, str]) -> None:
    value.metadata_props.clear()
    if value.shape is not None:
        value.shape = ir.Shape([d if isinstance(d, int) else _renamed(d, renamed) for d in value.shape])
    if value.const_value is not None:
        # A folded Linear's weight is a transposed view, which numpy writes an element at a time.
        array = value.const_value.numpy()
        if not array.flags.c_contiguous and array.dtype.kind in "fiub":
            value.const_value = ir.tensor(torch.from_numpy(array).contiguous().numpy(), name=value.name)


def _renamed(dimension: ir.SymbolicDim, names: dict[str, str]) -> str | None:
    # A dimension may be an expression, such as s77 + 1.
    value = dimension.value
    return None if value is None else re.sub(r"\w+", lambda word: names.get(word[0], word[0]), str(value))


def _specs(values: Any) -> tuple[TensorSpec, ...]:
    return tuple(
        TensorSpec(
            name=str(value.name),
            dtype=value.dtype.numpy().name if value.dtype is not None else "no tensor",
            shape=tuple(size if isinstance(size, int) else str(size.value) for size in value.shape or ()),
        )
        for value in values
    )


def _require_contract(inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], contract: ModelContract) -> None:
    """Compare the graph with the signature: names, dtypes, and above all that what may vary still does."""
    wrong = []
    for side, found, wanted in (("input", inputs, contract.inputs), ("output", outputs, contract.outputs)):
        if [spec.name for spec in found] != [spec.name for spec in wanted]:
            names = [[spec.name for spec in specs] for specs in (found, wanted)]
            wrong.append(f"has {side}s {names[0]}, its signature names {names[1]}")
            continue
        for got, spec in zip(found, wanted, strict=True):
            wrong += _misfits(side, got, spec)
    if wrong:
        raise Refused("the exported graph", "; ".join(wrong), _RELOG)


def _misfits(side: str, got: TensorSpec, wanted: TensorSpec) -> list[str]:
    label, found = f"{side} '{got.name}'", []
    if got.dtype != wanted.dtype:
        found.append(f"{label} is {got.dtype}, its signature says {wanted.dtype}")
    if len(got.shape) != len(wanted.shape):
        return [*found, f"{label} has shape {list(got.shape)}, its signature says {list(wanted.shape)}"]
    for axis, (size, expected) in enumerate(zip(got.shape, wanted.shape, strict=True)):
        if isinstance(expected, str) and isinstance(size, int):
            found.append(f"{label} has dimension {axis} frozen at {size}, its signature lets it vary")
        if isinstance(expected, int) and size != expected:
            found.append(f"{label} has dimension {axis} of {size}, its signature says {expected}")
    return found


def _written_opset(model: ir.Model, wanted: int | None) -> int:
    opset = int(model.opset_imports[""])
    if wanted is not None and opset != wanted:
        raise Refused(f"opset {wanted}", f"was asked for, and the exporter wrote {opset}", "Choose another opset.")
    return opset


def _batch_size(model: Trained, contract: ModelContract) -> int:
    """Return the batch size that the graph was traced with: an exported program was traced when it was logged."""
    shapes = [contract.example[spec.name].shape for spec in contract.inputs]
    if isinstance(model, torch.export.ExportedProgram) and model.example_inputs is not None:
        shapes = [leaf.shape for leaf in pytree.tree_leaves(model.example_inputs) if isinstance(leaf, torch.Tensor)]
    for spec, shape in zip(contract.inputs, shapes, strict=False):
        if (axis := batch_axis(spec)) is not None:
            return int(shape[axis])
    return 1
