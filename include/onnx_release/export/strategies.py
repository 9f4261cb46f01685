"""The ways from PyTorch to an ONNX graph, in the order that they are tried, the most faithful first."""

from __future__ import annotations

import gc
import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch.utils import _pytree as pytree

from onnx_release import limits
from onnx_release.errors import Refused
from onnx_release.export import torch_patches
from onnx_release.records import TensorSpec
from onnx_release.trained.arrays import Arrays
from onnx_release.trained.call_model import FlatModule, arguments_for, name_outputs
from onnx_release.trained.input_spec import InputSpec
from onnx_release.trained.load import LoadedModel
from onnx_release.trained.mapped_weights import return_free_memory


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelContract:
    """What the model takes and gives, and one sample of at least `limits.EXPORT_BATCH_SIZE` rows to trace it with.

    `outputs` are empty when the training run says nothing of them; `output_names` then are the model's own, and
    `output_axes` those of their dimensions that were seen to vary, by their names. `ranges` bound what is made up.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    example: Arrays
    output_names: tuple[str, ...] = ()
    output_axes: dict[str, dict[int, str]] = field(default_factory=dict)
    ranges: dict[str, InputSpec] = field(default_factory=dict)

    @property
    def named_outputs(self) -> tuple[str, ...]:
        """The outputs' names, in order."""
        return tuple(spec.name for spec in self.outputs) or self.output_names

    @property
    def varying_axes(self) -> dict[str, dict[int, str]]:
        """The names of the outputs' dimensions that vary, by output and axis."""
        said = {
            spec.name: {axis: s for axis, s in enumerate(spec.shape) if isinstance(s, str)} for spec in self.outputs
        }
        return said or self.output_axes

    @property
    def input_names(self) -> tuple[str, ...]:
        """The inputs' names, in order."""
        return tuple(spec.name for spec in self.inputs)

    def tensors(self, device: str) -> list[torch.Tensor]:
        """Return the sample on a device, in the inputs' order; nothing that the model does to it reaches `example`."""
        return [torch.from_numpy(self.example[name].copy()).to(device) for name in self.input_names]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """A graph in memory; `program` is what the dynamo exporter converted, whose values the graph's are named after."""

    graph: ir.Model
    program: torch.export.ExportedProgram | None = None


Strategy = Callable[[Any, ModelContract, int | None, str], Conversion]

DYNAMO, AUTO, WRAPPED, UNOPTIMIZED, TORCHSCRIPT = (
    "dynamo", "dynamo-auto", "dynamo-wrapped", "dynamo-unoptimized", "torchscript",
)  # fmt: skip


def strategies_for(model: LoadedModel) -> dict[str, Strategy]:
    """Return what can be tried on this kind of model, by name and in order."""
    if isinstance(model, torch.jit.ScriptModule):
        return {TORCHSCRIPT: _torchscript}
    if isinstance(model, torch.export.ExportedProgram):
        return {DYNAMO: _program, UNOPTIMIZED: _program_unoptimized, TORCHSCRIPT: _torchscript}
    return {
        DYNAMO: _explicit,
        AUTO: _automatic,
        WRAPPED: _wrapped,
        UNOPTIMIZED: _unoptimized,
        TORCHSCRIPT: _torchscript,
    }


def _explicit(model: torch.nn.Module, contract: ModelContract, opset: int | None, device: str) -> Conversion:
    """Each varying dimension by the name that the signature gives it: two inputs that share one must vary together."""
    return _direct(model, contract, opset, device, torch.export.Dim)


def _automatic(model: torch.nn.Module, contract: ModelContract, opset: int | None, device: str) -> Conversion:
    """Varying dimensions whose relations torch finds out: two that turn out to be equal become one."""
    return _direct(model, contract, opset, device, _any_size)


def _any_size(_: str) -> Any:
    return torch.export.Dim.DYNAMIC


def _direct(
    model: torch.nn.Module, contract: ModelContract, opset: int | None, device: str, dimension: Callable[[str], Any]
) -> Conversion:
    shapes = [_dynamic_axes(spec, dimension) for spec in contract.inputs]
    arguments, keywords = arguments_for(model, contract.input_names, contract.tensors(device))
    shape_arguments, shape_keywords = arguments_for(model, contract.input_names, shapes)
    call = _Call(
        arguments=arguments,
        keywords=keywords,
        shapes=shape_keywords or tuple(shape_arguments),
        input_names=_called_order(model, contract.input_names),
    )
    return _dynamo(model, call, contract, opset)


def _called_order(model: torch.nn.Module, names: Sequence[str]) -> list[str]:
    arguments, keywords = arguments_for(model, names, names)
    flat = [name for value in (*arguments, *keywords.values()) for name in pytree.tree_leaves(value)]
    return [str(name) for name in flat]


def _dynamic_axes(spec: TensorSpec, dimension: Callable[[str], Any]) -> dict[int, Any]:
    return {axis: dimension(size) for axis, size in enumerate(spec.shape) if isinstance(size, str)}


def _wrapped(
    model: torch.nn.Module, contract: ModelContract, opset: int | None, device: str, *, optimize: bool = True
) -> Conversion:
    """The model behind one that takes tensors by position and gives a flat tuple of tensors."""
    flat = FlatModule(model, contract.input_names, contract.named_outputs).eval()
    call = _Call(
        arguments=tuple(contract.tensors(device)),
        shapes=(tuple(_dynamic_axes(spec, _any_size) for spec in contract.inputs),),
        input_names=list(contract.input_names),
    )
    return _dynamo(flat, call, contract, opset, optimize=optimize)


def _unoptimized(model: torch.nn.Module, contract: ModelContract, opset: int | None, device: str) -> Conversion:
    """The same, without the exporter's own rewriting of the graph."""
    return _wrapped(model, contract, opset, device, optimize=False)


def _program(program: torch.export.ExportedProgram, contract: ModelContract, opset: int | None, _: str) -> Conversion:
    """A graph that was traced when the model was logged, converted as it is."""
    return _dynamo(program, _Call(input_names=list(contract.input_names)), contract, opset)


def _program_unoptimized(
    program: torch.export.ExportedProgram, contract: ModelContract, opset: int | None, _: str
) -> Conversion:
    call = _Call(input_names=list(contract.input_names))
    return _dynamo(program, call, contract, opset, optimize=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """How the exporter calls the model; a program needs none of it but names."""

    arguments: tuple[Any, ...] = ()
    keywords: dict[str, Any] | None = None
    shapes: Any = None
    input_names: list[str]


def _dynamo(
    model: Any, call: _Call, contract: ModelContract, opset: int | None, *, optimize: bool = True
) -> Conversion:
    def export() -> Any:
        return torch.onnx.export(
            model,
            call.arguments,
            kwargs=call.keywords or None,
            dynamo=True,
            verbose=False,
            dynamic_shapes=call.shapes,
            opset_version=opset,
            input_names=call.input_names,
            optimize=optimize,
        )

    with quiet_exporter(), _loops_not_forgotten(), _garbage_left(), torch.no_grad():
        try:
            with torch_patches.where_needed() as shortcut:
                program = export()
        except Exception:
            if not shortcut.taken:
                raise
            program = export()
    _name_outputs(program, contract.named_outputs)
    inputs = {str(value.name): value for value in program.model.graph.inputs}
    if set(inputs) == set(contract.input_names):
        program.model.graph.inputs[:] = [inputs[name] for name in contract.input_names]
    return Conversion(graph=program.model, program=program.exported_program)


@contextmanager
def _garbage_left() -> Iterator[None]:
    """Let Python's garbage lie until the end: the exporter makes objects by the hundred thousand, and keeps most.

    Looking through all of them again and again, those of torch's own modules included, is a fifth of its time.
    """
    was_on, frozen = gc.isenabled(), gc.get_freeze_count()
    gc.disable()
    # torch itself asks for collections (2.13): they look at what is new, and not at what was there before.
    gc.freeze()
    try:
        yield
    finally:
        # What the trace leaves behind is tens of megabytes, and the weights are read next.
        gc.collect()
        return_free_memory()
        # What a parent froze before it forked (Airflow does) would be copied into this process by a look at it.
        if not frozen:
            gc.unfreeze()
        if was_on:
            gc.enable()


@contextmanager
def _loops_not_forgotten() -> Iterator[None]:
    """Let the exporter's own handling of LSTM and GRU be found, which keeps their length free by a loop.

    It replaces their kernels for the time of an export, but torch goes on with the kernel that it looked up before, in
    this process's last export or trace, and the length is frozen (torch 2.13). Clearing what it looked up cures that.
    """
    for operator in _RECURRENT:
        operator._dispatch_cache.clear()
    try:
        yield
    finally:
        for operator in _RECURRENT:
            operator._dispatch_cache.clear()


_RECURRENT = (torch.ops.aten.lstm.input, torch.ops.aten.gru.input)


def _name_outputs(program: Any, names: tuple[str, ...]) -> None:
    """Name the graph's outputs after the structure of what the model returned, as `name_outputs` does for tensors."""
    spec = program.exported_program.call_spec.out_spec
    values = list(program.model.graph.outputs)
    # Stand-ins that take the place of the values in the model's own structure: an empty tensor each, told by identity.
    places = [torch.empty(0) for _ in range(spec.num_leaves)]
    named = name_outputs(pytree.tree_unflatten(places, spec), names or None)
    positions = {id(place): index for index, place in enumerate(places)}
    chosen = [positions[id(place)] for place in named.values()]
    if len(values) != len(places):
        raise Refused(
            "the exported graph",
            f"has {len(values)} outputs, and the model gives {len(places)}",
            "Return tensors alone.",
        )
    if len({id(values[index]) for index in chosen}) < len(chosen):
        raise Refused("the exported graph", "gives one value under two names", "Return each tensor once.")
    for name, index in zip(named, chosen, strict=True):
        values[index].name = name
    program.model.graph.outputs[:] = [values[index] for index in chosen]


def _torchscript(model: Any, contract: ModelContract, opset: int | None, device: str) -> Conversion:
    """The exporter of old, which traces the calls of one run: whatever a value decided in it is decided for good.

    Such a decision is an error here (torch only warns), since the graph would be wrong for other inputs. A scripted
    module is compiled, not traced, and keeps its branches.
    """
    scripted = isinstance(model, torch.jit.ScriptModule)
    module = model.module() if isinstance(model, torch.export.ExportedProgram) else model
    flat = module if scripted else FlatModule(module, contract.input_names, contract.named_outputs).eval()
    axes = contract.varying_axes | {
        spec.name: {axis: size for axis, size in enumerate(spec.shape) if isinstance(size, str)}
        for spec in contract.inputs
    }
    with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        path = Path(scratch, limits.MODEL_FILE)
        with quiet_exporter(), _refusing_decisions(), torch.no_grad():
            torch.onnx.export(
                flat,
                tuple(contract.tensors(device)),
                path,
                dynamo=False,
                opset_version=opset or limits.TORCHSCRIPT_OPSET,
                input_names=list(contract.input_names),
                output_names=list(contract.named_outputs),
                dynamic_axes=axes,
            )
        graph = ir.load(path)
        # The weights must outlive the folder.
        ir.external_data.load_to_model(graph)
    return Conversion(graph=graph)


@contextmanager
def _refusing_decisions() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", torch.jit._trace.TracerWarning)
        yield
    for warning in caught:
        if issubclass(warning.category, torch.jit._trace.TracerWarning):
            raise Refused(
                "tracing the model",
                f"fixes what a value decides ({Path(warning.filename).name}, line {warning.lineno}): "
                f"{' '.join(str(warning.message).split())[:200]}",
                "Use torch.where, or tensor operations on shapes.",
            )


@contextmanager
def quiet_exporter() -> Iterator[None]:
    """Keep the exporter's progress lines and its remarks on absent packages out of the task's log."""
    # The second has a level of its own, which the first's does not reach.
    names = ("torch.onnx", "torch.onnx._internal.exporter._registration", "onnx_ir", "onnxscript")
    logs = [logging.getLogger(name) for name in names]
    before = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    # The TorchScript exporter prints the whole graph of a failure to the standard output.
    printed = torch._C._jit_is_onnx_log_enabled()
    torch._C._jit_set_onnx_log_enabled(False)
    try:
        # torch.export prints the graph that it had when it failed; what it says of it comes as the error.
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        torch._C._jit_set_onnx_log_enabled(printed)
        for log, level in zip(logs, before, strict=True):
            log.setLevel(level)
