"""Result of a command: an exit code, a JSON document and lines for people."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit codes of `onnx-release`. docs/command-line.md describes them."""

    PASSED = 0
    REFUSED = 1
    USAGE = 2
    UNAVAILABLE = 3
    UNEXPECTED = 4
    INTERRUPTED = 130


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Result of a command.

    Attributes:
        code: The exit code.
        document: The fields of the JSON document, besides those that every document has.
        lines: Returns the text for people. It is called when stdout is the command's own again, whose terminal decides
            about width and colours.
    """

    code: ExitCode
    document: dict[str, Any] = field(default_factory=dict)
    lines: Callable[[], Iterable[str]] = tuple
