"""Export strategies: the ways from a PyTorch model to an ONNX graph, in the order in which they are tried."""

from __future__ import annotations

import gc
import io
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch

from onnx_release import limits
from onnx_release.errors import ExportRefused
from onnx_release.export import recurrent, torch_patches
from onnx_release.export.contract import ModelContract, varying_axes
from onnx_release.export.torch_patches import TracerWarning, pytree
from onnx_release.scratch import scratch_folder
from onnx_release.text import shorten
from onnx_release.trained.call_model import FlatModule, flat_script
from onnx_release.trained.input_binding import InputBinding, bind_inputs
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mapped_weights import return_free_memory
from onnx_release.trained.output_names import Step, bind_outputs, name_outputs

DYNAMO, AUTO, WRAPPED, UNOPTIMIZED, TORCHSCRIPT = (
    "dynamo", "dynamo-auto", "dynamo-wrapped", "dynamo-unoptimized", "torchscript",
)  # fmt: skip


_NO_BOUND = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Result of a strategy.

    Attributes:
        graph: The ONNX graph in memory.
        program: The exported program that the dynamo exporter converted; the values of `graph` have the names of its
            nodes. None for the TorchScript exporter.
        bounds: The smallest and the largest size of a varying dimension, by its name; 0 for no largest.
    """

    graph: ir.Model
    program: torch.export.ExportedProgram | None = None
    bounds: dict[str, tuple[int, int]] = field(default_factory=dict)


Strategy = Callable[[Any, ModelContract, int | None, str], Conversion]
"""A function of model, contract, opset (None: the exporter's default) and device."""


def strategies_for(model: LoadedModel) -> dict[str, Strategy]:
    """Return the strategies for this type of model, by name and in order: the most faithful first."""
    if isinstance(model, torch.jit.ScriptModule):
        return {TORCHSCRIPT: _torchscript}
    if isinstance(model, torch.export.ExportedProgram):
        return {DYNAMO: _program, UNOPTIMIZED: partial(_program, optimize=False), TORCHSCRIPT: _torchscript}
    return {
        # Two inputs that share the name of a dimension must vary together.
        DYNAMO: partial(_module, dimension=torch.export.Dim),
        # torch derives how dimensions depend on each other, and unifies equal ones.
        AUTO: partial(_module, dimension=lambda _: torch.export.Dim.DYNAMIC),
        WRAPPED: _wrapped,
        UNOPTIMIZED: partial(_wrapped, optimize=False),
        TORCHSCRIPT: _torchscript,
    }


def retrace(model: LoadedModel, contract: ModelContract, strategy: str) -> Conversion:
    """Convert a model again, on the CPU and without writing a file.

    The program of the result has the names of the values in the graph that the same strategy wrote before.
    """
    return strategies_for(model)[strategy](model, contract, None, "cpu")


def _module(
    model: torch.nn.Module, contract: ModelContract, opset: int | None, device: str, *, dimension: Callable[[str], Any]
) -> Conversion:
    """Convert a module as it is called in training.

    Args:
        model: The module.
        contract: Its inputs and outputs.
        opset: The ONNX opset, or None.
        device: The device to trace on.
        dimension: Returns torch's object for a varying dimension, by its name.
    """
    binding = bind_inputs(model, contract.input_names)
    arguments, keywords = binding.arguments(contract.tensors(device))
    shape_arguments, shape_keywords = binding.arguments(
        {spec.name: {axis: dimension(name) for axis, name in varying_axes(spec).items()} for spec in contract.inputs}
    )
    call = _Call(
        arguments=arguments,
        keywords=keywords or None,
        dynamic_shapes=(*shape_arguments, *shape_keywords.values()) if shape_arguments else shape_keywords,
        input_names=list(binding.order),
    )
    return _convert_with_dynamo(model, call, contract, opset)


def _wrapped(
    model: torch.nn.Module, contract: ModelContract, opset: int | None, device: str, *, optimize: bool = True
) -> Conversion:
    """Convert the model inside a module with positional tensors as inputs and a flat tuple of tensors as output."""
    names = contract.input_names
    flat = FlatModule(model, bind_inputs(model, names), names, contract.named_outputs).eval()
    call = _Call(
        arguments=tuple(contract.tensors(device).values()),
        dynamic_shapes=(
            tuple(dict.fromkeys(varying_axes(spec), torch.export.Dim.DYNAMIC) for spec in contract.inputs),
        ),
        input_names=list(names),
        optimize=optimize,
    )
    return _convert_with_dynamo(flat, call, contract, opset)


def _program(
    program: torch.export.ExportedProgram, contract: ModelContract, opset: int | None, _: str, *, optimize: bool = True
) -> Conversion:
    """Convert a program that was traced when the model was logged."""
    call = _Call(input_names=list(bind_inputs(program, contract.input_names).order), optimize=optimize)
    return _convert_with_dynamo(program, call, contract, opset)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """Arguments of the dynamo exporter. A program needs the names alone."""

    input_names: list[str]
    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] | None = None
    dynamic_shapes: Any = None
    optimize: bool = True


def _convert_with_dynamo(model: Any, call: _Call, contract: ModelContract, opset: int | None) -> Conversion:
    export = partial(
        torch.onnx.export,
        model,
        call.arguments,
        kwargs=call.keywords,
        dynamo=True,
        verbose=False,
        dynamic_shapes=call.dynamic_shapes,
        opset_version=opset,
        input_names=call.input_names,
        optimize=call.optimize,
        custom_translation_table=recurrent.translations(),
    )
    with quiet_exporter(), recurrent.rnn_length_kept(), garbage_collection_disabled(), torch.no_grad():
        try:
            with torch_patches.decompositions_where_needed() as skip:
                program: Any = export()
        except Exception:
            if not skip.used:
                raise
            program = export()
    _name_graph_outputs(program, contract.named_outputs)
    inputs = {str(value.name): value for value in program.model.graph.inputs}
    if set(inputs) == set(contract.input_names):
        program.model.graph.inputs[:] = [inputs[name] for name in contract.input_names]
    exported = program.exported_program
    return Conversion(graph=program.model, program=exported, bounds=_bounds(exported, call.input_names, contract))


def _bounds(program: Any, names: list[str], contract: ModelContract) -> dict[str, tuple[int, int]]:
    """Return the bounds that the trace derived for varying dimensions. torch's own lower bounds are 0 to 2."""
    specs = {spec.name: spec for spec in contract.inputs}
    user_inputs = set(program.graph_signature.user_inputs)
    placeholders = [node for node in program.graph.nodes if node.op == "placeholder" and node.name in user_inputs]
    nodes = [node for node in placeholders if isinstance(node.meta.get("val"), torch.Tensor)]
    bounds: dict[str, tuple[int, int]] = {}
    for name, node in zip(names, nodes, strict=False):
        shape = node.meta["val"].shape
        for axis, dimension in varying_axes(specs[name]).items():
            size = shape[axis] if axis < len(shape) else None
            allowed = program.range_constraints.get(size.node.expr) if isinstance(size, torch.SymInt) else None
            if allowed is not None:
                # A larger bound than any tensor has stands for no bound.
                low, high = int(allowed.lower), int(min(allowed.upper, _NO_BOUND))
                if low > 2 or high < _NO_BOUND:
                    bounds[dimension] = (low, high if high < _NO_BOUND else 0)
    return bounds


@contextmanager
def garbage_collection_disabled() -> Iterator[None]:
    """Disable garbage collection during an export.

    The exporter creates hundreds of thousands of objects and keeps most of them. Scanning them repeatedly takes a
    fifth of its time.
    """
    was_enabled, frozen_before = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    # torch 2.13 calls gc.collect() itself. Frozen objects are not scanned.
    gc.freeze()
    try:
        yield
    finally:
        # The trace leaves tens of megabytes, and the weights are read next.
        gc.collect()
        return_free_memory()
        # Airflow freezes objects before it forks. Unfreezing them would copy their pages into this process.
        if not frozen_before:
            gc.unfreeze()
        if was_enabled:
            gc.enable()


def _name_graph_outputs(program: Any, names: tuple[str, ...]) -> None:
    """Name the outputs of the graph by the structure that the model returns, as `name_outputs` names tensors.

    Raises:
        ExportRefused: If the graph has another number of outputs (``output_count``), or one value has two names
            (``repeated_output``).
    """
    spec = program.exported_program.call_spec.out_spec
    values = list(program.model.graph.outputs)
    # Empty tensors stand for the values in the model's own structure. Their identity gives the position.
    placeholders = [torch.empty(0) for _ in range(spec.num_leaves)]
    named = name_outputs(pytree.tree_unflatten(placeholders, spec), names or None)
    positions = {id(placeholder): index for index, placeholder in enumerate(placeholders)}
    chosen = [positions[id(placeholder)] for placeholder in named.values()]
    if len(values) != len(placeholders):
        raise ExportRefused(
            "The exported graph",
            f"has {len(values)} outputs, but the model returns {len(placeholders)} values",
            "Return only tensors from `forward`, and log the model again.",
            code="output_count",
        )
    if len({id(values[index]) for index in chosen}) < len(chosen):
        raise ExportRefused(
            "The exported graph",
            "has one value under two output names",
            "Return each tensor once.",
            code="repeated_output",
        )
    for name, index in zip(named, chosen, strict=True):
        values[index].name = name
    program.model.graph.outputs[:] = [values[index] for index in chosen]


def _torchscript(model: Any, contract: ModelContract, opset: int | None, device: str) -> Conversion:
    """Convert with the TorchScript exporter, which traces one call of the model.

    The trace keeps the branch that this call took. torch only warns of that; here it is an error, because the graph
    would be wrong for other inputs. A scripted module is compiled, not traced, and keeps its branches.
    """
    tensors = contract.tensors(device)
    binding = bind_inputs(model, contract.input_names)
    module: Any
    if isinstance(model, torch.jit.ScriptModule):
        module = _flat_script(model, binding, contract, tensors)
    else:
        module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
        module = FlatModule(module, binding, contract.input_names, contract.named_outputs).eval()
    with scratch_folder() as scratch:
        path = scratch / limits.MODEL_FILE
        export = partial(
            torch.onnx.export,
            module,
            tuple(tensors.values()),
            path,
            dynamo=False,
            opset_version=opset or limits.TORCHSCRIPT_OPSET,
            input_names=list(contract.input_names),
            output_names=list(contract.named_outputs),
            dynamic_axes=contract.varying_axes | {spec.name: varying_axes(spec) for spec in contract.inputs},
        )
        with (
            quiet_exporter(),
            torch_patches.graph_printing_disabled(),
            _fixed_branches_refused(),
            _dicts_refused(),
            torch.no_grad(),
        ):
            export()
        graph = ir.load(path)
        # The folder is deleted, so the weights have to be in memory.
        ir.external_data.load_to_model(graph)
    return Conversion(graph=graph)


def _flat_script(
    model: torch.jit.ScriptModule, binding: InputBinding, contract: ModelContract, tensors: dict[str, torch.Tensor]
) -> torch.jit.ScriptModule:
    """Return a script with the inputs and outputs of the contract by position: the model itself, or a wrapper of it."""
    arguments, keywords = binding.arguments(tensors)
    with torch.no_grad():
        outputs = bind_outputs(model(*arguments, **keywords), contract.named_outputs)
    in_order = tuple((Step("index", index),) for index in range(len(outputs.paths)))
    plain = not outputs.dropped and tuple(outputs.paths.values()) in (((),), in_order)
    plain &= not keywords and all(a is b for a, b in zip(arguments, tensors.values(), strict=False))
    if plain and "prim::DictConstruct" not in str(model.inlined_graph):
        return model
    try:
        flat = flat_script(model, binding, contract.input_names, outputs)
    except RuntimeError as error:
        raise ExportRefused(
            "The scripted model",
            f"has inputs or outputs in a container that TorchScript does not take apart: {shorten(error)}",
            "Take tensors and return a tuple of tensors, and log the model again.",
            code="unsupported_structure",
        ) from error
    torch_patches.replace_script_dicts(flat)
    return flat


@contextmanager
def _dicts_refused() -> Iterator[None]:
    """Raise `ExportRefused` (``unsupported_structure``) for a script whose dicts the exporter does not take apart."""
    try:
        yield
    except Exception as error:
        if "prim::Dict" not in str(error):
            raise
        raise ExportRefused(
            "The scripted model",
            "stores values in a dict within a loop or a branch, or under keys that are not constant. ONNX has no dicts",
            "Store them under constant keys outside of it, or return a tuple, and log the model again.",
            code="unsupported_structure",
        ) from error


@contextmanager
def _fixed_branches_refused() -> Iterator[None]:
    """Raise `ExportRefused` (``data_dependent``) for a trace that fixed a branch or a value."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", TracerWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, TracerWarning):
            raise ExportRefused(
                f"A trace of the model at {Path(warning.filename).name}, line {warning.lineno}",
                f"fixes a value that depends on the input: {shorten(warning.message, 200)}",
                "Use torch.where, or tensor operations on shapes.",
                code="data_dependent",
            )


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence the exporter's log lines, warnings and messages on the standard error."""
    # The exporter's registry sets its own log level, so the level of "torch.onnx" does not apply to it.
    names = (
        *("torch.onnx", "torch.onnx._internal.exporter._registration", "onnx_ir", "onnxscript"),
        *("torch._guards", "torch._export", "torch._dynamo", "torch.fx"),
    )
    logs = [logging.getLogger(name) for name in names]
    levels = [log.level for log in logs]
    for log in logs:
        # torch logs the errors that it raises, too.
        log.setLevel(logging.CRITICAL)
    try:
        # torch.export prints the graph of a failed export. The same text is in the exception.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)
