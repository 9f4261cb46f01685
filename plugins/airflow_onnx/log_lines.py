"""Lines of text: in the width of a browser, and foreign text that must stay on one line."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from onnx_release.text import printable

# A browser shows a line of this length without a scroll bar. Links are not broken.
LINE_MAX_CHARACTERS = 150


def one_line(text: str, size: int) -> str:
    """Return foreign text as one line of printable characters, cut to a size."""
    return " ".join(printable(text).split())[:size]


def wrapped(text: str) -> Iterator[str]:
    """Yield the text in lines of at most `LINE_MAX_CHARACTERS`, with an indent from the second line on."""
    yield from textwrap.wrap(
        " ".join(text.split()), LINE_MAX_CHARACTERS, subsequent_indent="  ", break_on_hyphens=False
    )
