"""Mutants of a module: its source with one small change each, by the operators of cosmic-ray."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import parso
import parso.python.tree as tree
from cosmic_ray.ast import ast_nodes
from cosmic_ray.operators.operator import Operator
from cosmic_ray.operators.provider import OperatorProvider

# The operators of cosmic-ray that are used. It replaces each sign by every other one; these are the nearest.
USED = re.compile(
    r"""
      AddNot | ReplaceTrueWithFalse | ReplaceFalseWithTrue | ReplaceAndWithOr | ReplaceOrWithAnd
    | ReplaceBreakWithContinue | ReplaceContinueWithBreak
    | ExceptionReplacer | NumberReplacer | RemoveDecorator | ZeroIterationForLoop
    | ReplaceUnaryOperator_Delete_(USub|Not|Invert)
    | ReplaceComparisonOperator_(Eq|NotEq|Lt|LtE|Gt|GtE)_(Eq|NotEq|Lt|LtE|Gt|GtE)
    | ReplaceComparisonOperator_(Is_IsNot|IsNot_Is)
    | ReplaceBinaryOperator_(Add_Sub|Sub_Add|Mul_Div|Div_Mul|FloorDiv_Mul|Mod_Div|Pow_Mul|BitOr_BitAnd|BitAnd_BitOr)
    """,
    re.VERBOSE,
)


class RemoveStatement(Operator):  # type: ignore[misc]
    """An operator that replaces a call, a raise, a return, a yield or an assignment in place by `pass`."""

    def mutation_positions(self, node: Any) -> Iterator[tuple[Any, Any]]:
        if node.type == "simple_stmt":
            statement = node.children[0]
            in_place = statement.type == "expr_stmt" and str(getattr(statement.children[1], "value", "=")) != "="
            if in_place or statement.type in {"atom_expr", "raise_stmt", "return_stmt", "yield_expr"}:
                yield statement.start_pos, statement.end_pos

    def mutate(self, node: Any, index: int) -> Any:
        first = node.children[0]
        node.children[0] = tree.Name("pass", first.start_pos, prefix=first.get_first_leaf().prefix)
        return node

    @classmethod
    def examples(cls) -> tuple[()]:
        return ()


@dataclass(frozen=True)
class Mutant:
    """A changed source.

    Attributes:
        source: The whole module.
        line: The number of the first changed line.
        before: The changed lines of the module, without indentation.
        after: The same lines of the mutant.
    """

    source: str
    line: int
    before: str
    after: str


def mutants_of(source: str) -> list[Mutant]:
    """Return each mutant that Python compiles, in the order of the lines.

    Two that differ only in an annotation are the same.
    """
    found: dict[str, Mutant] = {}
    original = _meaning(source)
    for changed in _changed_sources(source):
        try:
            meaning = _meaning(changed)
        except SyntaxError:
            continue
        if meaning != original and meaning not in found:
            found[meaning] = _describe(source, changed)
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _changed_sources(source: str) -> Iterator[str]:
    provider = OperatorProvider()
    operators = [provider[name]() for name in provider if USED.fullmatch(name)] + [RemoveStatement()]
    lines = [0]
    for line in source.splitlines(keepends=True):
        lines.append(lines[-1] + len(line))
    for node in ast_nodes(parso.parse(source)):
        start, end = (lines[line - 1] + column for line, column in (node.get_start_pos_of_prefix(), node.end_pos))
        for operator in operators:
            for index, _ in enumerate(operator.mutation_positions(node)):
                # The operators change a node in place. So each gets a copy of its own.
                yield source[:start] + _mutated(operator, node, index) + source[end:]


def _mutated(operator: Operator, node: Any, index: int) -> str:
    """Return the code of a node after a mutation, and restore the node."""
    leaves = [(leaf, leaf.value) for leaf in ast_nodes(node) if isinstance(leaf, parso.tree.Leaf)]
    children = list(getattr(node, "children", ()))
    changed = operator.mutate(node, index)
    code = "" if changed is None else str(changed.get_code())
    for leaf, value in leaves:
        leaf.value = value
    if children:
        node.children = children
    return code


def _meaning(source: str) -> str:
    """Return the code as text, without the annotations."""
    module = ast.parse(source)
    for node in ast.walk(module):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(module)


def _describe(source: str, changed: str) -> Mutant:
    old, new = source.splitlines(), changed.splitlines()
    first = next(index for index, (one, other) in enumerate(zip(old, new, strict=False)) if one != other)
    last = 0
    while old[last - 1] == new[last - 1] and min(len(old), len(new)) + last > first + 1:
        last -= 1
    return Mutant(
        source=changed,
        line=first + 1,
        before=" ".join(line.strip() for line in old[first : len(old) + last]),
        after=" ".join(line.strip() for line in new[first : len(new) + last]),
    )
