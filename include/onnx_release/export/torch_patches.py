"""Decompositions only where the ONNX exporter needs one: half of an export's time goes into a second trace without.

torch's exporter traces every program again to decompose its operators (torch 2.13), also those that have nothing to
decompose: all of them are what the exporter translates anyway, and none writes into its inputs. Such a program is
handed on as it is; any other takes the exporter's own way.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import Graph, GraphModule, Node
from torch.onnx._internal.exporter import _decomp, _fx_passes

_BATCH_NORM = torch.ops.aten.batch_norm.default
_BATCH_NORM_IN_EVAL = torch.ops.aten._native_batch_norm_legit_no_training.default
# The exporter itself takes these out, after it has decomposed.
_ASSERTIONS = frozenset(
    {
        torch.ops.aten.sym_constrain_range_for_size.default,
        torch.ops.aten._assert_async.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_tensor_metadata.default,
    }
)


class Shortcut:
    """Whether the last export under `where_needed` went without decompositions."""

    taken = False


@contextmanager
def where_needed() -> Iterator[Shortcut]:
    """Let the exporter leave out its decompositions for programs that need none, as long as the context lives."""
    shortcut, passes = Shortcut(), _fx_passes
    full: Callable[..., ExportedProgram] = passes.decompose_with_registry

    def decompose(program: ExportedProgram, registry: Any) -> ExportedProgram:
        shortcut.taken = _can_do_without(program, frozenset(_decomp.get_onnx_implemented_overloads(registry)))
        return _with_batch_norms_translated(program) if shortcut.taken else full(program, registry)

    setattr(passes, full.__name__, decompose)
    try:
        yield shortcut
    finally:
        setattr(passes, full.__name__, full)


def _can_do_without(program: ExportedProgram, translated: frozenset[Any]) -> bool:
    """Say whether every operator is one that the exporter translates; a batch norm in eval mode is easily made one."""
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs):
        return False
    if any(isinstance(module, GraphModule) for module in program.graph_module.children()):
        return False
    known = translated | _ASSERTIONS
    nodes = (node for node in program.graph.nodes if node.op == "call_function" and not _is_batch_norm(node))
    return all(node.target in known and not _writes(node.target) for node in nodes)


def _writes(target: Any) -> bool:
    return isinstance(target, torch._ops.OpOverload) and target._schema.is_mutable


def _is_batch_norm(node: Node) -> bool:
    # (input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    return node.target is _BATCH_NORM and len(node.args) == 9 and not node.args[5] and None not in node.args[1:5]


def _with_batch_norms_translated(program: ExportedProgram) -> ExportedProgram:
    """Return a program with a graph of its own, as the exporter goes on to change it, and the same weights."""
    graph = copy.deepcopy(program.graph)
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_batch_norm(node):
            _translate_batch_norm(graph, node)
    return ExportedProgram(
        root=program.graph_module,
        graph=graph,
        graph_signature=program.graph_signature,
        state_dict=program.state_dict,
        range_constraints=program.range_constraints,
        module_call_graph=program.module_call_graph,
        example_inputs=program.example_inputs,
        constants=program.constants,
        verifiers=program.verifiers,
    )


def _translate_batch_norm(graph: Graph, node: Node) -> None:
    """Put the operator in its place that torch's own decomposition would."""
    values, (_, momentum, eps, _) = node.args[:5], node.args[5:]
    with graph.inserting_before(node):
        norm = graph.call_function(_BATCH_NORM_IN_EVAL, (*values, momentum, eps))
        first = graph.call_function(operator.getitem, (norm, 0))
    value = node.meta["val"]
    norm.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
    first.meta = dict(node.meta)
    node.replace_all_uses_with(first)
    graph.erase_node(node)
