"""Command ``onnx-release trace``: the origin of a version and all that happened to it, from MLflow alone.

It needs no access to the store: the report is an artifact of the training run too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from typing import Any

from onnx_release.cli import console
from onnx_release.cli.mlflow_trace import trace_of
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.training_runs.trace import Trace, move_text, summary

NAME = "trace"
HELP = "Show the origin of a version: training run, data, DAG run, gates, approval and every move of its aliases."
# More lines hide the rest of the answer. The JSON document has all.
_ROWS_MAX = 12
_STYLES = {"passed": "good", "refused": "bad", "warning": "note", "not settled": "note"}


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the arguments of the command."""
    arguments.add_argument("model", help="models:/NAME/VERSION or models:/NAME@ALIAS")


def run(arguments: argparse.Namespace) -> Outcome:
    """Read everything that MLflow has about the version."""
    found = trace_of(arguments.model)
    document = found.document()
    return Outcome(code=ExitCode.PASSED, document=document, lines=lambda: _lines(found, document))


def _lines(found: Trace, document: Mapping[str, Any]) -> Iterator[str]:
    run = document["training_run"]
    yield from console.table(("fact", "value"), summary(document))
    yield from _section("Data of the training", ("dataset", "digest", "source"), run.get("datasets", []))
    yield from _pairs("Parameters of the training", run.get("params", {}))
    yield from _pairs("Metrics of the training", run.get("metrics", {}))
    if found.report and found.report.gates:
        from onnx_release.report.numbers import limit_text, measured_text

        yield from ("", "Gates")
        rows = [
            [gate.verdict, gate.name, gate.subject, measured_text(gate), limit_text(gate)]
            for gate in found.report.gates
        ]
        yield from console.table(("verdict", "gate", "of", "measured", "limit"), rows, _STYLES)
    yield from ("", "Moves of its aliases" if found.moves else "No alias ever moved to it.")
    if found.moves:
        rows = [[one.at, one.alias, move_text(one), one.by, one.why] for one in found.moves]
        yield from console.table(("at", "alias", "move", "by", "reason"), rows)


def _section(title: str, heading: tuple[str, ...], rows: list[dict[str, Any]]) -> Iterator[str]:
    if rows:
        yield from ("", title)
        yield from console.table(heading, [[str(row[name]) for name in ("name", "digest", "source")] for row in rows])


def _pairs(title: str, values: Mapping[str, Any]) -> Iterator[str]:
    if not values:
        return
    yield from ("", title)
    shown = [[name, f"{value:g}" if isinstance(value, float) else str(value)] for name, value in values.items()]
    yield from console.table(("name", "value"), shown[:_ROWS_MAX])
    if len(shown) > _ROWS_MAX:
        yield f"{len(shown) - _ROWS_MAX} more: --json has all."
