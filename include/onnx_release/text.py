"""Foreign text, made safe for a log, a page and a tag."""

from __future__ import annotations

import re

PART_MAX_CHARACTERS = 6000
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
# An absolute path without its last part. The paths of URIs do not match.
_FOLDERS = re.compile(r"(?<![\w:/.~%-])/(?:[^\s/'\":,()]+/)+")


def without_folders(text: str) -> str:
    """Return a text with absolute paths cut to their last part: a reader cannot open a folder of the worker."""
    return _FOLDERS.sub("", text)


def printable(text: object) -> str:
    """Return foreign text with a blank for each character that breaks a line, or hides or reverses a part of it."""
    return "".join(character if character.isprintable() else " " for character in str(text))


def bounded(text: str, characters: int = PART_MAX_CHARACTERS) -> str:
    """Return a text that a log, a page and a tag can show: cut to a length, without control characters.

    Line breaks and tabs stay. Characters that change the direction of a line count as control characters.
    """
    if len(text) > characters:
        text = f"{text[: characters - 1]}…"
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text)


def shorten(error: object, characters: int = 300) -> str:
    """Return the text of a library's error on one line, cut to a length, after a word if there is one."""
    text = " ".join(str(error).split())
    if len(text) <= characters:
        return text
    cut = text[: characters - 1]
    words = cut.rpartition(" ")[0]
    return f"{words if len(words) > characters // 2 else cut}…"
