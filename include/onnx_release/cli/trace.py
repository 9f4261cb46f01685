"""Command ``onnx-release trace``: the origin of a version and all that happened to it, from MLflow alone.

It needs no access to the store: the report is an artifact of the training run too.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from onnx_release.cli import console
from onnx_release.cli.mlflow_trace import Trace, read_trace
from onnx_release.cli.outcome import ExitCode, Outcome
from onnx_release.records import AliasMove
from onnx_release.records.provenance import TrainingFacts
from onnx_release.training_runs import tags

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
    found = read_trace(arguments.model)
    return Outcome(code=ExitCode.PASSED, document=_document(found), lines=lambda: _lines(found))


def _document(found: Trace) -> dict[str, Any]:
    version, facts = found.version, found.facts
    return {
        "model": version.name,
        "version": int(version.version),
        "aliases": found.aliases,
        "created_at": _time(version.creation_timestamp),
        "sha256": version.tags.get(tags.VERSION_SHA256),
        "source": version.source,
        "files": [file.to_dict() for file in found.files],
        "signature": version.tags.get(tags.VERSION_SIGNATURE),
        "status": version.tags.get(tags.VERSION_STATUS),
        "approval": version.tags.get(tags.APPROVAL),
        "dag_run": version.tags.get(tags.VERSION_DAG_RUN),
        "headline": found.report.headline if found.report else None,
        "gates": [gate.to_dict() for gate in found.report.gates] if found.report else [],
        "training_run": _training_run(found, facts),
        "moves": [move.to_dict() for move in found.moves],
    }


def _training_run(found: Trace, facts: TrainingFacts) -> dict[str, Any]:
    run_id = found.version.run_id or found.version.tags.get(tags.VERSION_TRAINING_RUN)
    if found.run is None:
        return {"run_id": run_id, "found": False}
    info = found.run.info
    return {
        "run_id": info.run_id,
        "found": info.lifecycle_stage != "deleted",
        "name": info.run_name,
        "experiment_id": info.experiment_id,
        "user": info.user_id,
        "ended_at": _time(info.end_time),
        **facts.to_dict(),
    }


def _lines(found: Trace) -> Iterator[str]:
    document = _document(found)
    run = document["training_run"]
    facts = [
        ("version", f"{document['model']} v{document['version']}, made {document['created_at']}"),
        ("aliases", ", ".join(document["aliases"]) or "none"),
        ("result", document["headline"] or document["status"] or "unknown: the report is gone"),
        ("sha256", document["sha256"] or "none"),
        ("files", document["source"]),
        ("signature", document["signature"] or "none"),
        ("DAG run", document["dag_run"] or "unknown"),
        ("approval", document["approval"] or "none"),
        ("training run", _run_text(run)),
        ("script", " at ".join(filter(None, (run.get("source_name"), run.get("source_commit")))) or "unknown"),
    ]
    yield from console.table(("fact", "value"), [[name, str(text)] for name, text in facts])
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
        rows = [[one.at, one.alias, _move_text(one), one.by, one.why] for one in found.moves]
        yield from console.table(("at", "alias", "move", "by", "reason"), rows)


def _run_text(run: Mapping[str, Any]) -> str:
    if not run["found"]:
        return f"{run['run_id'] or 'unknown'}, which was deleted"
    return (
        f"{run['run_id']} ({run['name'] or 'without a name'}), ended {run['ended_at']}, by {run['user'] or 'unknown'}"
    )


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


def _move_text(move: AliasMove) -> str:
    before, after = (f"v{one}" if one else "no version" for one in (move.from_version, move.to_version))
    return f"{before} to {after}"


def _time(at_ms: int | None) -> str | None:
    return f"{datetime.fromtimestamp(at_ms / 1000, UTC):%Y-%m-%dT%H:%M:%SZ}" if at_ms else None
