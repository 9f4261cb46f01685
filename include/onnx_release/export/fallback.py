"""PyTorch to ONNX by the first strategy whose result is fit, with the same bytes for the same weights."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from onnx_release import limits
from onnx_release.errors import Refused
from onnx_release.export.strategies import Conversion, ModelContract, strategies_for
from onnx_release.export.train_mode import TrainMode, training_nodes
from onnx_release.records import ExportAttempt, TensorSpec
from onnx_release.samples.generate import batch_axis
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mapped_weights import pages_of

_WRITERS = 2
_BLOCK_BYTES = 4 * 2**20
_RELOG = "Log the model again after model.eval(), with an input example of at least 2 samples and -1 for the batch."

Verify = Callable[[Path, "ExportResult"], str]
"""Looks at a written model and returns why it is unfit, or an empty string."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportOptions:
    """`opset` of None takes the exporter's default; `device` is ``cpu``, ``cuda`` or ``auto``: CUDA if present."""

    opset: int | None = None
    device: str = "auto"


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportResult:
    """What was written, and how: inputs and outputs are the graph's own, read back after the export.

    `strategy` is the one that was taken, `attempts` are all that were tried, in order.
    """

    opset: int
    ir_version: int
    strategy: str
    device: str
    export_batch_size: int
    wall_s: float
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    attempts: tuple[ExportAttempt, ...] = ()


def export_onnx(
    model: LoadedModel, folder: Path, contract: ModelContract, options: ExportOptions, verify: Verify | None = None
) -> ExportResult:
    """Write `model.onnx` and its external data into `folder`, by the first strategy whose result `verify` finds fit.

    When none is, the first that wrote a model of the right shape is taken, and the tests that follow refuse it with
    all their evidence.

    :raises Refused: when no strategy can write the model with what varies left to vary and the contract's names, or
        it is in train mode: a graph that was traced so keeps its dropout. The message has every strategy's reason.
    """
    _require_opset(options.opset)
    device = _device(options.device)
    require_exportable(model, contract)
    model = _moved(model, device) if isinstance(model, torch.export.ExportedProgram) else model.eval().to(device)
    return _Ladder(model, folder, contract, ExportOptions(opset=options.opset, device=device), verify).climb()


def require_exportable(model: LoadedModel, contract: ModelContract) -> None:
    """Raise `Refused` for a program whose trace fixed what no export can free: its mode, or a dimension."""
    if isinstance(model, torch.export.ExportedProgram):
        _require_eval(model)
        _require_dynamic(model, contract.inputs)


@dataclass
class _Ladder:
    """The strategies, tried in order."""

    model: LoadedModel
    folder: Path
    contract: ModelContract
    options: ExportOptions
    verify: Verify | None

    def climb(self) -> ExportResult:
        attempts: list[ExportAttempt] = []
        for strategy in strategies_for(self.model):
            began = time.perf_counter()
            result, outcome = self._try(strategy)
            attempts.append(
                ExportAttempt(
                    strategy=strategy,
                    outcome="failed" if result is None else "unfit" if outcome else "taken",
                    reason=outcome,
                    wall_s=round(time.perf_counter() - began, 3),
                )
            )
            if result is not None and not outcome:
                return self._finished(result, attempts)
        return self._last_resort(attempts)

    def _try(self, strategy: str) -> tuple[ExportResult | None, str]:
        """Return what was written, if anything was, and why it is not to be taken."""
        try:
            result = self._write(strategy)
        except TrainMode:
            raise
        except Refused as refusal:
            return None, f"{refusal.subject}: {refusal.problem}"
        except Exception as error:  # noqa: BLE001 - the exporter runs the model's own code, which raises anything
            return None, _essence(error)
        return result, self.verify(self.folder, result) if self.verify else ""

    def _write(self, strategy: str) -> ExportResult:
        began = time.perf_counter()
        for left in self.folder.iterdir():
            left.unlink()
        conversion = strategies_for(self.model)[strategy](
            self.model, self.contract, self.options.opset, self.options.device
        )
        if conversion.program is not None:
            _require_eval(conversion.program)
        graph = conversion.graph
        _tidy(graph, self.contract.inputs)
        _free_outputs(graph.graph, self.contract.varying_axes)
        inputs, outputs = _specs(graph.graph.inputs), _specs(graph.graph.outputs)
        _require_contract(inputs, outputs, self.contract)
        _save(graph, self.folder, self.model)
        return ExportResult(
            opset=_written_opset(graph, self.options.opset),
            ir_version=graph.ir_version,
            strategy=strategy,
            device=self.options.device,
            export_batch_size=_batch_size(self.model, self.contract),
            wall_s=time.perf_counter() - began,
            inputs=inputs,
            outputs=outputs,
        )

    def _finished(self, result: ExportResult, attempts: list[ExportAttempt]) -> ExportResult:
        return replace(result, attempts=tuple(attempts), wall_s=sum(attempt.wall_s for attempt in attempts))

    def _last_resort(self, attempts: list[ExportAttempt]) -> ExportResult:
        unfit = next((attempt.strategy for attempt in attempts if attempt.outcome == "unfit"), None)
        if unfit is None:
            by_reason: dict[str, list[str]] = {}
            for attempt in attempts:
                by_reason.setdefault(attempt.reason, []).append(attempt.strategy)
            reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in by_reason.items())
            raise Refused("the model", f"cannot be exported to ONNX. {reasons}", _ADVICE)
        return self._finished(self._write(unfit), attempts)


def _save(graph: ir.Model, folder: Path, model: LoadedModel) -> None:
    """Write the graph and, beside it, the weights, one at a time."""
    pages = pages_of(model)

    def written(tensor: ir.TensorProtocol, _: Any) -> None:
        pages.read(tensor.nbytes)

    ir.save(
        graph,
        folder / limits.MODEL_FILE,
        external_data=limits.EXTERNAL_DATA_FILE,
        callback=written,
        # One thread copies into the page cache at a third of what two do; the bytes are the same.
        max_workers=_WRITERS,
        max_in_flight_bytes=limits.MAPPED_PAGES_KEPT_BYTES,
    )
    pages.drop()


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
        raise TrainMode(
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


_ADVICE = (
    "Rewrite what the messages name: an `if` or a loop that depends on a tensor's values or on the batch size cannot "
    "be exported (torch.where and torch.cond can)."
)


def _essence(error: BaseException) -> str:
    """Return the exporter's own words without its banner: the innermost cause says what the model does wrong."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error))
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines[:4])[:600]}"


def retrace(model: LoadedModel, contract: ModelContract, strategy: str) -> Conversion:
    """Convert once more, on the CPU and without writing: what the values of a written graph are named after."""
    return strategies_for(model)[strategy](model, contract, None, "cpu")


def _tidy(model: ir.Model, inputs: tuple[TensorSpec, ...]) -> None:
    """Make the bytes depend on weights and graph alone, and write the weights at the disk's speed."""
    graph = model.graph
    renamed: dict[str, str] = {}
    for spec, value in zip(inputs, graph.inputs, strict=False):
        for axis, size in enumerate(value.shape or ()):
            if isinstance(size, ir.SymbolicDim) and axis < len(spec.shape) and isinstance(spec.shape[axis], str):
                # Where two dimensions turned out to be one, the first name is kept.
                renamed.setdefault(str(size.value), str(spec.shape[axis]))
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


def _free_outputs(graph: ir.Graph, axes: dict[str, dict[int, str]]) -> None:
    """Let vary what the signature lets vary: after a loop, torch labels a dimension with the size that it traced.

    It is a label alone, which the other sizes of the probe would find to be true. The shapes within the graph that
    come from it would mislead whoever plans memory by them, so they go.
    """
    freed = False
    for value in graph.outputs:
        for axis, name in axes.get(str(value.name), {}).items():
            if value.shape is not None and axis < len(value.shape) and isinstance(value.shape[axis], int):
                value.shape = ir.Shape([name if i == axis else size for i, size in enumerate(value.shape)])
                freed = True
    if freed:
        outputs = set(graph.outputs)
        for node in graph.all_nodes():
            for value in node.outputs:
                value.shape = value.shape if value in outputs else None


def _tidy_value(value: ir.Value, renamed: dict[str, str]) -> None:
    value.metadata_props.clear()
    if value.shape is not None:
        value.shape = ir.Shape([d if isinstance(d, int) else _renamed(d, renamed) for d in value.shape])
    if value.const_value is not None:
        # A folded Linear's weight is a transposed view, which numpy writes an element at a time.
        array = value.const_value.numpy()
        if not array.flags.c_contiguous and array.dtype.kind in "fiub":
            value.const_value = _StridedTensor(array, dtype=value.const_value.dtype, name=value.name)


class _StridedTensor(ir.Tensor[npt.NDArray[Any]]):
    """A tensor whose values do not lie in order: they are put in order a block of rows at a time, as they are written.

    torch does that much faster than numpy, and no second copy of the whole is made.
    """

    def tofile(self, file: Any) -> None:
        array = self.numpy()
        rows = max(1, _BLOCK_BYTES * len(array) // array.nbytes)
        for first in range(0, len(array), rows):
            file.write(torch.from_numpy(array[first : first + rows]).contiguous().numpy().data)


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
        if not wanted:
            continue
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


def _batch_size(model: LoadedModel, contract: ModelContract) -> int:
    """Return the batch size that the graph was traced with: an exported program was traced when it was logged."""
    shapes = [contract.example[spec.name].shape for spec in contract.inputs]
    if isinstance(model, torch.export.ExportedProgram) and model.example_inputs is not None:
        shapes = [leaf.shape for leaf in pytree.tree_leaves(model.example_inputs) if isinstance(leaf, torch.Tensor)]
    for spec, shape in zip(contract.inputs, shapes, strict=False):
        if (axis := batch_axis(spec)) is not None:
            return int(shape[axis])
    return 1
