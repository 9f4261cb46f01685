"""Facts of a training run for its provenance: bounded, and without secrets by their names."""

from __future__ import annotations

import json
import math
import re
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from onnx_release.records.provenance import Dataset, TrainingFacts
from onnx_release.text import shorten
from onnx_release.training_runs.records import key_values

ENTRIES_MAX = 200
TEXT_MAX = 500
_SECRET = re.compile(r"pass(word|wd|phrase)|secret|token|credential|api_?key|access_?key|private_?key", re.IGNORECASE)
_COMMIT = re.compile(r"[0-9a-f]{7,64}")


def training_facts(run: dict[str, Any]) -> TrainingFacts:
    """Return the facts of a run of MLflow's REST API.

    Each kind has at most `ENTRIES_MAX` entries, in the order of their names. A text has at most `TEXT_MAX` characters.
    A parameter whose name looks like that of a secret is left out: the document is beside the model, where more people
    read it.
    """
    data = run.get("data") or {}
    tags = key_values(data.get("tags"))
    params = {name: text for name, text in key_values(data.get("params")).items() if not _SECRET.search(name)}
    metrics = {row["key"]: float(row.get("value") or 0.0) for row in data.get("metrics") or []}
    finite = {name: value for name, value in metrics.items() if math.isfinite(value)}
    commit = tags.get("mlflow.source.git.commit", "")
    datasets = [_dataset(row.get("dataset") or {}) for row in (run.get("inputs") or {}).get("dataset_inputs") or []]
    return TrainingFacts(
        params={_short(name): _short(params[name]) for name in sorted(params)[:ENTRIES_MAX]},
        # The release's own metrics are in its report.
        metrics={
            _short(name): finite[name]
            for name in sorted(name for name in finite if not name.startswith("onnx_release/"))[:ENTRIES_MAX]
        },
        datasets=tuple(datasets[:ENTRIES_MAX]),
        source_commit=commit if _COMMIT.fullmatch(commit) else "",
        source_name=_short(tags.get("mlflow.source.name", "")),
    )


def _dataset(row: dict[str, Any]) -> Dataset:
    source = str(row.get("source") or "")
    try:
        # The source is a JSON object; its address is the part that people read.
        parsed = json.loads(source) if len(source) <= 10 * TEXT_MAX else {}
        source = str(parsed.get("uri") or parsed.get("url") or parsed.get("path") or "")
    except (ValueError, AttributeError):
        source = ""
    return Dataset(
        name=_short(str(row.get("name") or "dataset")),
        digest=_short(str(row.get("digest") or "")),
        source=_short(_without_credentials(source)),
    )


def _without_credentials(address: str) -> str:
    """Return an address without user, password and query: a signed address gives access to the data."""
    try:
        parts = urlsplit(address)
        return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))
    except ValueError:
        return ""


def _short(text: str) -> str:
    """Return a text on one line, without control characters."""
    return shorten("".join(one if one.isprintable() else " " for one in text[: 10 * TEXT_MAX]), TEXT_MAX)
