"""JSON schema of `report.json`: ``python -m onnx_release.records.schema`` writes `docs/report.schema.json`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from onnx_release.records.release import ReleaseReport

SCHEMA_FILE = Path("docs", "report.schema.json")


def schema_text() -> str:
    """Return the JSON schema of a release report as JSON text."""
    schema = {"$schema": "https://json-schema.org/draft/2020-12/schema"}
    return json.dumps(schema | ReleaseReport.model_json_schema(mode="serialization"), indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    (Path(sys.argv[1]) if sys.argv[1:] else SCHEMA_FILE).write_text(schema_text(), encoding="utf-8", newline="\n")
