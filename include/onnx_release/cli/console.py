"""Output of a command: results on stdout, progress and errors on stderr."""

from __future__ import annotations

import logging
import os
import shutil
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from typing import TextIO
from unicodedata import combining, east_asian_width

from onnx_release.text import printable, shorten

WIDTH_MIN, WIDTH_MAX, WIDTH_DEFAULT = 40, 160, 100
# The narrowest column of a table.
_COLUMN_MIN = 8
_GAP = "  "
_COLOURS = {"good": "32", "bad": "31;1", "note": "33", "dim": "2", "bold": "1"}


def width() -> int:
    """Return the columns of the terminal, within bounds. The variable ``COLUMNS`` precedes it."""
    return max(WIDTH_MIN, min(WIDTH_MAX, shutil.get_terminal_size((WIDTH_DEFAULT, 24)).columns))


def is_terminal(stream: TextIO) -> bool:
    """Return True for a terminal that interprets escape sequences."""
    return stream.isatty() and os.environ.get("TERM") != "dumb"


def styled(text: str, style: str, stream: TextIO | None = None) -> str:
    """Return the text in a style, or unchanged unless the stream is a terminal and ``NO_COLOR`` is unset.

    Args:
        text: The text.
        style: A key of `_COLOURS`.
        stream: The stream of the text. None: stdout.
    """
    stream = stream or sys.stdout
    if not is_terminal(stream) or os.environ.get("NO_COLOR"):
        return text
    return f"\033[{_COLOURS[style]}m{text}\033[0m"


def paragraph(text: str, indent: str = "", first: str | None = None) -> list[str]:
    """Return a text in lines of the terminal's width. Long words, such as paths and URIs, stay whole."""
    wrapper = textwrap.TextWrapper(
        width(),
        initial_indent=indent if first is None else first,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return wrapper.wrap(printable(text))


def table(heading: Sequence[str], rows: Sequence[Sequence[str]], styles: Mapping[str, str] | None = None) -> list[str]:
    """Return a table in the terminal's width. The widest columns wrap.

    Args:
        heading: The names of the columns.
        rows: The cells, in the order of the columns.
        styles: The style of a first cell by its text.
    """
    cells = [[printable(cell) for cell in row] for row in (heading, *rows)]
    widths = [max(1, *map(_columns, column)) for column in zip(*cells, strict=True)]
    room = width() - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _COLUMN_MIN:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for row_number, row in enumerate(cells):
        wrapped = [_folded(cell, size) for cell, size in zip(row, widths, strict=True)]
        for number in range(max(map(len, wrapped))):
            parts = [cell[number] if number < len(cell) else "" for cell in wrapped]
            line = _GAP.join(_padded(part, size) for part, size in zip(parts, widths, strict=True)).rstrip()
            style = "bold" if row_number == 0 else (styles or {}).get(row[0])
            first = line if row_number == 0 else parts[0]
            lines.append(styled(first, style) + line[len(first) :] if style and first else line)
    return lines


def _folded(cell: str, size: int) -> list[str]:
    return textwrap.wrap(cell, size, break_on_hyphens=False) or [""]


def _columns(text: str) -> int:
    """Return the columns of a text: an accent of its own takes none, a Chinese character and most emoji two."""
    return sum(0 if combining(character) else 1 + (east_asian_width(character) in "WF") for character in text)


def _padded(text: str, size: int) -> str:
    return text + " " * (size - _columns(text))


def write(stream: TextIO, text: str) -> None:
    """Write a text. A terminal without Unicode gets replacements, and a reader that has left ends the output."""
    encoding = stream.encoding or "utf-8"
    try:
        stream.write(text.encode(encoding, "replace").decode(encoding))
        stream.flush()
    except BrokenPipeError:
        # Python flushes stdout again at its end.
        with suppress(OSError, ValueError):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def reserved_stdout() -> Iterator[None]:
    """Send to stderr all output of libraries and child processes, so that stdout has only the result."""
    sys.stdout.flush()
    with redirect_stdout(sys.stderr):
        saved = os.dup(1)
        try:
            os.dup2(2, 1)
            yield
        finally:
            os.dup2(saved, 1)
            os.close(saved)


class Progress(logging.Handler):
    """Progress on stderr: one line that changes in a terminal, and lines elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self._stream = sys.stderr
        self._changes = is_terminal(self._stream)
        self._is_open = False

    def emit(self, record: logging.LogRecord) -> None:
        """Show a message. A warning stays."""
        text = printable(record.getMessage())
        self.clear()
        if self._changes and record.levelno < logging.WARNING:
            write(self._stream, styled(shorten(text, width() - 1), "dim", self._stream))
            self._is_open = True
        else:
            write(self._stream, f"{text}\n")

    def clear(self) -> None:
        """Remove the line."""
        if self._is_open:
            write(self._stream, "\r\033[2K")
            self._is_open = False


@contextmanager
def progress(*, is_quiet: bool) -> Iterator[Progress]:
    """Show the messages of this package while the block runs; only warnings and errors with `is_quiet`."""
    own, handler = logging.getLogger("onnx_release"), Progress()
    before = own.level, own.propagate
    own.addHandler(handler)
    own.setLevel(logging.WARNING if is_quiet else logging.INFO)
    own.propagate = False
    try:
        yield handler
    finally:
        handler.clear()
        own.removeHandler(handler)
        own.setLevel(before[0])
        own.propagate = before[1]
