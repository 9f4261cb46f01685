"""Output of a command of Airflow's command line: a table for people, or a form for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from airflow.cli.simple_table import AirflowConsole


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """Result of a command.

    :param lines: the text for people; `rows` are the same for Airflow's other forms, and `total` is its last line.
    """

    document: dict[str, Any]
    lines: Sequence[str]
    rows: list[dict[str, str]]
    total: str


def write(result: Result, output: str) -> None:
    """Write a result in one of Airflow's forms."""
    if output == "json":
        sys.stdout.write(json.dumps(result.document, indent=2) + "\n")
    elif output == "table":
        # A terminal without Unicode must not stop the command.
        encoding = sys.stdout.encoding or "utf-8"
        sys.stdout.write("\n".join(result.lines).encode(encoding, "replace").decode(encoding) + "\n")
    else:
        # Its output is for programs.
        AirflowConsole().print_as(data=result.rows, output=output)
        sys.stderr.write(result.total + "\n")
