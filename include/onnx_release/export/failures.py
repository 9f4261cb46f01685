"""Kinds of failed exports: the code, the cause and the action for each error of a strategy."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from onnx_release.errors import ExportRefused, Refused
from onnx_release.export.torch_patches import DATA_DEPENDENT_ERRORS
from onnx_release.text import shorten
from onnx_release.trained.model_errors import where_raised

_REASON_CHARACTERS = 600
_OPERATOR = re.compile(
    r"No ONNX function found for <OpOverload\(op='(?P<dynamo>[\w.]+)'|"
    r"Exporting the operator '(?P<torchscript>[\w:]+)'|"
    r"ONNX export of operator (?P<symbolic>[\w:]+)|"
    r"Unsupported FX nodes: \{'call_function': \['(?P<node>[\w.]+)'"
)
_STRUCTURE = re.compile(
    r"prim::(?P<kind>Dict|List|Set)\w*|(?P<pytree>not a registered pytree|Unsupported (?:input|output) type|"
    r"Only tensors, lists, tuples of tensors|Only tuples, lists and Variables|as input but it has type)"
)
_FROZEN = re.compile(
    r"Constraints violated|inferred a static shape|specialized (?:it|because)|conflicts between user-specified ranges|"
    r"You marked .{0,80} as dynamic but"
)

REPLACE = {
    "adaptive_max_pool": "a max pooling with fixed sizes: the output size must divide the input size",
    "linalg": "the closed formula of a small matrix, or compute it outside of the model",
    "svd": "an operation outside of the model",
    "unique": "an operation outside of the model",
}
"""Replacements of operators that ONNX does not have, by a part of their names."""

_DATA_DEPENDENT = (
    "An `if`, a loop or an assert that depends on the values of a tensor cannot be exported. Write torch.where and "
    "torch.cond instead, or move the check out of `forward`."
)
_ASSERT = (
    "Remove the assert from `forward`, or move it to the code that calls the model: a graph has no check of values."
)
_FIXED_SIZE = (
    "The code fixes a size: with a Python loop over a dimension, with a table or mask of one size, or with `int(...)` "
    "of a shape. Use tensor operations over the dimension (for a loop over steps: nn.RNN, nn.GRU or nn.LSTM), or write "
    "its fixed size into the signature."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Failure of one strategy.

    Attributes:
        code: The code of `ExportRefused`.
        cause: The cause in one sentence, without a full stop.
        reason: The exporter's own text.
        action: The next step for the author of the model.
        place: The line of the model's code, if it is known.
        final: True if no other strategy can succeed.
        exporter_only: True if a strategy with another exporter may succeed, and one with the same exporter cannot.
    """

    code: str
    cause: str
    reason: str
    action: str
    place: str = ""
    final: bool = False
    exporter_only: bool = False


def failure_of(error: Exception) -> Failure:
    """Return the kind of an error that a strategy raised.

    An error of the exporter is a banner around its cause. The kind and the text are those of the innermost cause.
    """
    if isinstance(error, Refused):
        return _of_refusal(error)
    causes: list[BaseException] = [error]
    while (inner := causes[-1].__cause__) is not None:
        causes.append(inner)
    innermost = causes[-1]
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(innermost))
    lines = [line for line in text.splitlines() if line.strip()]
    reason = f"{type(innermost).__name__}: {shorten(' '.join(lines[:4]), _REASON_CHARACTERS)}"
    found = next((found for each in reversed(causes) if (found := where_raised(each))), None)
    place = str(found or "")
    if any(isinstance(each, DATA_DEPENDENT_ERRORS) for each in causes):
        cause = "`forward` depends on the values of a tensor"
        action = _ASSERT if found is not None and found.text.startswith("assert") else _DATA_DEPENDENT
        return Failure(code="data_dependent", cause=cause, reason=reason, action=action, place=place)
    if structure := _STRUCTURE.search(text):
        kind = f"a {structure['kind'].lower()}" if structure["kind"] else "a value that is neither tensor nor tuple"
        cause = f"the model takes or returns {kind}, which this exporter does not support"
        action = "Return a tensor or a tuple of tensors from `forward`, and log the model again."
        return Failure(code="unsupported_structure", cause=cause, reason=reason, action=action)
    if match := _OPERATOR.search(text):
        return _of_operator(next(filter(None, match.groups())), reason)
    if _FROZEN.search(text):
        cause = "the code of the model fixes a dimension that varies in the signature"
        return Failure(code="frozen_dimension", cause=cause, reason=reason, action=_FIXED_SIZE, place=place)
    return Failure(
        code="not_exportable",
        cause=f"{type(innermost).__name__}: {shorten(' '.join(lines[:2]), 200)}",
        reason=reason,
        action="Replace the code that the message names. The log of this task has the full messages.",
        place=place,
    )


def _of_refusal(refusal: Refused) -> Failure:
    """Return the failure of a strategy whose graph was refused. Differences from the signature are final."""
    code = refusal.code if refusal.code in ExportRefused.codes else "not_exportable"
    text = f"{refusal.subject} {refusal.problem}"
    final = code == "contract_mismatch"
    action = _FIXED_SIZE if code in ("frozen_batch", "frozen_dimension") else refusal.action
    place = ""
    if code == "data_dependent":
        # Only a TorchScript trace is refused for this.
        place, action = refusal.subject.removeprefix("A trace of the model at "), _DATA_DEPENDENT
    cause = text[:1].lower() + text[1:]
    return Failure(
        code=code,
        cause=cause,
        reason=text,
        action=action,
        place=place,
        final=final,
        # Another way into the same exporter fixes the same sizes.
        exporter_only=code == "size_limit",
    )


def _of_operator(name: str, reason: str) -> Failure:
    operator = name.replace("aten.", "aten::")
    hint = next((hint for part, hint in REPLACE.items() if part in operator), "operators that ONNX has")
    return Failure(
        code="unsupported_operator",
        cause=f"ONNX has no translation of the operator {operator}",
        reason=reason,
        action=f"Replace {operator} in `forward` by {hint}.",
        exporter_only=True,
    )


def unfit_graph(reason: str) -> Failure:
    """Return the failure of a strategy whose graph differs from PyTorch."""
    return Failure(code="not_exportable", cause=f"the graph is wrong: {reason}", reason=reason, action=_FIXED_SIZE)


def refusal_of(failures: Sequence[tuple[str, Failure]]) -> ExportRefused:
    """Return the refusal of a model that no strategy exports: first the cause that most strategies share.

    Args:
        failures: The name and the failure of each strategy, in order.
    """
    # A frozen batch is a frozen dimension that the contract recognises.
    groups = [failure.code.replace("frozen_batch", "frozen_dimension") for _, failure in failures]
    counts = Counter(group for group in groups if group != "not_exportable") or Counter(groups)
    # The first strategy is the most faithful one, so it decides between groups of equal count.
    leading = failures[groups.index(counts.most_common(1)[0][0])][1]
    place = leading.place or next((failure.place for _, failure in failures if failure.place), "")
    reasons: dict[str, list[str]] = {}
    for name, failure in failures:
        reasons.setdefault(failure.reason, []).append(name)
    attempts = "; ".join(f"{', '.join(names)}: {shorten(reason, 250)}" for reason, names in reasons.items())
    return ExportRefused(
        "The model",
        f"cannot be exported to ONNX: {leading.cause}{f' ({place})' if place else ''}. Attempts: {attempts}",
        leading.action,
        code=leading.code,
    )
