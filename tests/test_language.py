"""Plain English, as far as it can be counted: openings of docstrings, the word "what", and a list of banned idioms."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("include", "plugins", "dags", "stack", "deploy", "bench", "adoption", "soak", "docs")
PAGES = (ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))

# The old idioms of this project, and words that make a program a person. Each has a plain word instead.
BANNED = re.compile(
    r"""\b(
      anew | whoever | whatever | whichever | wherefore | thereby | whilst | amid
    | (?<!there\ )is\ no\b(?!\ longer) | (?<!there\ )are\ no\b(?!\ longer)
    | not\ to\ be\ had | to\ be\ had | no\ hand\ on | by\ hand
    | speaks?\ of | spoke\ of | tells?\ of | told | held?s?\ against | be\ it
    | no\ more\ than\ that | all\ that\ is | as\ of\ old | for\ good
    | bell | court | contest | contests | heat | gate-?keeper | workshop | sport
    | knows | wants | wishes | thinks | looks\ at | looks\ for
    )\b""",
    re.IGNORECASE | re.VERBOSE,
)


def _python_files() -> list[Path]:
    return [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def _docstrings(path: Path) -> tuple[tuple[int, str], ...]:
    """Return (line, text) of every docstring of a file."""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    nodes = (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, kinds))
    return tuple((getattr(node, "lineno", 1), text) for node in nodes if (text := ast.get_docstring(node)))


@cache
def _comments(path: Path) -> tuple[tuple[int, str], ...]:
    """Return (line, text) of every comment of a file, without the ones for tools."""
    tokens = tokenize.generate_tokens(io.StringIO(path.read_text()).readline)
    return tuple(
        (token.start[0], token.string.lstrip("# "))
        for token in tokens
        if token.type == tokenize.COMMENT and not re.match(r"#\s*(noqa|type:|fmt:)", token.string)
    )


def _strings(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of every string of several words: messages, form texts, log lines."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.count(" ") >= 2:
            yield node.lineno, node.value


def _name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("package", PACKAGES)
def test_no_docstring_opens_with_a_question_word(package: str) -> None:
    found = [
        f"{_name(path)}:{line}: {text.splitlines()[0]}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for line, text in _docstrings(path)
        if re.match(r"(What|Whether|How|Where)\b", text)
    ]
    assert found == []


@pytest.mark.parametrize("package", PACKAGES)
def test_the_word_what_is_rare(package: str) -> None:
    """At most 1 in 1000 words of docstrings and comments; clearer words are there."""
    found, words = [], 0
    for path in sorted((ROOT / package).rglob("*.py")):
        for line, text in (*_docstrings(path), *_comments(path)):
            words += len(re.findall(r"[A-Za-z']+", text))
            found += [f"{_name(path)}:{line}"] * len(re.findall(r"\bwhat\b", text, re.IGNORECASE))
    assert len(found) <= words / 1000, found


@pytest.mark.parametrize("path", _python_files(), ids=_name)
def test_code_has_no_banned_idiom(path: Path) -> None:
    texts = {*_docstrings(path), *_comments(path), *_strings(path)}
    assert sorted(f"{line}: {match[0]}" for line, text in texts for match in BANNED.finditer(text)) == []


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_pages_have_no_banned_idiom(page: Path) -> None:
    lines = enumerate(page.read_text().splitlines(), 1)
    assert [f"{number}: {match[0]}" for number, line in lines for match in BANNED.finditer(line)] == []
