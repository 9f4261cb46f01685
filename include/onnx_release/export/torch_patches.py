"""Private functions of torch that the export replaces or calls, each with the condition for its removal.

``docs/compatibility.md`` lists the versions of torch that these were tested with, and
``tests/core/export/test_torch_patches.py`` checks that they exist with the expected signatures.

Other files use more private names. Those outside of this folder do not import this file, because it loads the ONNX
exporter:

- ``torch._C.PyTorchFileReader`` in ``trained/scan_pt2.py``: the scan has to read an archive with the reader that
  `torch.export.load` uses. Remove when torch has a public reader of pt2 archives.
- ``torch.utils._python_dispatch`` in ``trained/module_state.py``. Remove when torch publishes `TorchDispatchMode`.
- The loops and decompositions of recurrent operators in ``recurrent.py``: see there.
- ``torch.utils._pytree`` in ``trained``, ``runners`` and ``parity``. Remove when torch publishes its pytree functions.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException
from torch.export import ExportedProgram
from torch.export.graph_signature import OutputKind
from torch.fx import GraphModule, Node
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode
from torch.onnx._internal.exporter import _decomp, _fx_passes
from torch.onnx._internal.torchscript_exporter import utils as torchscript_utils
from torch.utils import _pytree

# Remove when torch publishes its pytree functions.
pytree = _pytree

# Remove when torch has a public class for one overload of an operator, with its schema.
OpOverload = torch._ops.OpOverload

# Remove when `torch.jit` exports the class in its type information.
TracerWarning = torch.jit._trace.TracerWarning

DATA_DEPENDENT_ERRORS = (GuardOnDataDependentSymNode, DataDependentOutputException, DynamicOutputShapeException)
"""Errors of a trace whose next step depends on the values of a tensor.

Remove when `torch.export` raises one public error for this case.
"""

_BATCH_NORM = torch.ops.aten.batch_norm.default
_BATCH_NORM_IN_EVAL = torch.ops.aten._native_batch_norm_legit_no_training.default
# The exporter removes these after its decompositions (`_fx_passes.remove_assertion_nodes`).
ASSERTIONS = frozenset(
    {
        torch.ops.aten.sym_constrain_range_for_size.default,
        torch.ops.aten._assert_async.default,
        torch.ops.aten._assert_async.msg,
        torch.ops.aten._assert_scalar.default,
        torch.ops.aten._assert_tensor_metadata.default,
    }
)


@contextmanager
def graph_printing_disabled() -> Iterator[None]:
    """Keep the TorchScript exporter from printing the graph of a failed export to the standard output.

    torch 2.13 enables this log for every export: `setup_onnx_logging` does not call the function that it tests.

    Remove when the strategy ``torchscript`` is removed, or torch prints nothing by default.
    """
    was_enabled, original = torch._C._jit_is_onnx_log_enabled(), torchscript_utils.setup_onnx_logging
    torch._C._jit_set_onnx_log_enabled(False)
    setattr(torchscript_utils, original.__name__, lambda verbose: nullcontext())
    try:
        yield
    finally:
        setattr(torchscript_utils, original.__name__, original)
        torch._C._jit_set_onnx_log_enabled(was_enabled)


def replace_script_dicts(script: torch.jit.ScriptModule) -> None:
    """Replace the items of dicts in the graph of a script by the values that were stored under their constant keys.

    ONNX has no dicts. torch only removes a dict that is written as one literal. A dict stays if a branch or a loop uses
    it, a key is not constant, or more than its items is used.

    Remove when the TorchScript exporter removes dicts, or the strategy ``torchscript`` is removed.

    Args:
        script: The script, whose graph is changed in place.
    """
    method: Any = script.forward
    graph = method.graph
    torch._C._jit_pass_inline(graph)
    for made in graph.findAllNodes("prim::DictConstruct", recurse=False):
        name = made.output().debugName()
        # Nodes in a branch or a loop are not among those of the graph, but their uses count.
        items = [
            node
            for node in graph.nodes()
            if node.kind() in ("aten::_set_item", "aten::__getitem__") and node.inputsAt(0).debugName() == name
        ]
        pairs = list(made.inputs())
        stored = {key.toIValue(): value for key, value in zip(pairs[::2], pairs[1::2], strict=True)}
        keys = [*stored, *(node.inputsAt(1).toIValue() for node in items)]
        if len(items) < len(made.output().uses()) or not all(isinstance(key, str) for key in keys):
            continue
        missing = False
        for node in items:
            key = node.inputsAt(1).toIValue()
            if node.kind() == "aten::_set_item":
                stored[key] = node.inputsAt(2)
            elif key in stored:
                node.output().replaceAllUsesWith(stored[key])
            else:
                missing = True
        if not missing:
            for node in (*reversed(items), made):
                node.destroy()


class DecompositionSkip:
    """Result of `decompositions_where_needed`: `used` is True if the last export ran without decompositions."""

    used = False


@contextmanager
def decompositions_where_needed() -> Iterator[DecompositionSkip]:
    """Make the ONNX exporter skip its decompositions for programs that need none.

    torch 2.13 traces every program a second time to decompose its operators, which takes half of the export. That is
    needless if the exporter translates every operator directly and no operator writes into its input.

    Remove when the exporter skips the second trace of such programs itself.
    """
    skip = DecompositionSkip()
    original: Callable[..., ExportedProgram] = _fx_passes.decompose_with_registry

    def decompose(program: ExportedProgram, registry: Any) -> ExportedProgram:
        skip.used = _needs_no_decomposition(program, frozenset(_decomp.get_onnx_implemented_overloads(registry)))
        return _with_batch_norms_translated(program) if skip.used else original(program, registry)

    setattr(_fx_passes, original.__name__, decompose)
    try:
        yield skip
    finally:
        setattr(_fx_passes, original.__name__, original)


def _needs_no_decomposition(program: ExportedProgram, translated: frozenset[Any]) -> bool:
    """Return True if the exporter translates every operator directly, a batch norm in eval mode included."""
    if any(spec.kind is not OutputKind.USER_OUTPUT for spec in program.graph_signature.output_specs):
        return False
    if any(isinstance(module, GraphModule) for module in program.graph_module.children()):
        return False
    known = translated | ASSERTIONS
    targets = [
        node.target for node in program.graph.nodes if node.op == "call_function" and not _is_eval_batch_norm(node)
    ]
    return all(
        target in known and not (isinstance(target, OpOverload) and target._schema.is_mutable) for target in targets
    )


def _is_eval_batch_norm(node: Node) -> bool:
    # (input, weight, bias, running_mean, running_var, training, momentum, eps, cudnn_enabled)
    return node.target is _BATCH_NORM and len(node.args) == 9 and not node.args[5] and None not in node.args[1:5]


def _with_batch_norms_translated(program: ExportedProgram) -> ExportedProgram:
    """Return a program with a copied graph, which the exporter may change, and the same weights.

    A batch norm becomes the operator that torch's own decomposition gives.
    """
    graph = copy.deepcopy(program.graph)
    for node in list(graph.nodes):
        if node.op == "call_function" and _is_eval_batch_norm(node):
            values, (_, momentum, eps, _) = node.args[:5], node.args[5:]
            with graph.inserting_before(node):
                norm = graph.call_function(_BATCH_NORM_IN_EVAL, (*values, momentum, eps))
                first = graph.call_function(operator.getitem, (norm, 0))
            value = node.meta["val"]
            norm.meta = {**node.meta, "val": (value, value.new_empty(0), value.new_empty(0))}
            first.meta = dict(node.meta)
            node.replace_all_uses_with(first)
            graph.erase_node(node)
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
