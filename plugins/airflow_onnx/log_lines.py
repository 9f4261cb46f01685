"""Lines of a task's log in the width of a browser."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

# A browser shows a line of this length without a scroll bar. Links are not broken.
LINE_MAX_CHARACTERS = 150


def wrapped(text: str) -> Iterator[str]:
    """Yield the text in lines of at most `LINE_MAX_CHARACTERS`, with an indent from the second line on."""
    one_line = " ".join(text.split())
    yield from textwrap.wrap(one_line, LINE_MAX_CHARACTERS, subsequent_indent="  ", break_on_hyphens=False)
