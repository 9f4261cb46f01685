"""Code blocks of the documentation, and the commands in those for a shell."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
]
_JOINED = re.compile(r"\\\n\s*")


@dataclass(frozen=True, slots=True)
class Block:
    """One fenced block, with the line of the page on which its text begins."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(*languages: str) -> list[Block]:
    """Return the blocks of these languages on all pages."""
    return [block for page in PAGES for block in _of_page(page) if block.language in languages]


def _of_page(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        yield Block(page, text.count("\n", 0, match.start(2)) + 1, match[1], match[2])


def commands(block: Block) -> Iterator[list[str]]:
    """Yield the words of each simple command of a block for a shell, without variables before it."""
    for line in _JOINED.sub(" ", block.text).splitlines():
        for part in _parts(line):
            words = part
            while words and re.fullmatch(r"[A-Za-z_]\w*=.*", words[0]):
                words = words[1:]
            if words:
                yield words


def _parts(line: str) -> Iterator[list[str]]:
    """Yield the commands of one line: those between pipes and `&&`."""
    # A subshell in a value, such as TOKEN=$(curl …), is a command of its own.
    values = re.split(r"(?:^|\s)\w+=\$\(", line)[1:] if re.match(r"\w+=\$\(", line) else []
    for text in [value.rstrip().removesuffix(")") for value in values] or [line]:
        yield from _piped(text)


def _piped(text: str) -> Iterator[list[str]]:
    lexer = shlex.shlex(text, posix=True, punctuation_chars="|&;>")
    lexer.whitespace_split = True
    part: list[str] = []
    for word in lexer:
        if set(word) <= set("|&;"):
            yield part
            part = []
        else:
            part.append(word)
    yield part[: part.index(">")] if ">" in part else part
