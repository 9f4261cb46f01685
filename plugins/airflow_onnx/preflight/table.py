"""The checks of a deployment as text for a terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby

from airflow_onnx.preflight.checks import Check, State
from airflow_onnx.preflight.run import DeploymentReport
from onnx_release.text import printable

_WORDS = {State.OK: "ok", State.WARNING: "WARNING", State.FAILED: "FAILED", State.SKIPPED: "skipped"}
# Green, yellow, red and grey, which terminals show readably on light and dark grounds.
_COLORS = {State.OK: "32", State.WARNING: "33;1", State.FAILED: "31;1", State.SKIPPED: "90"}
_STATE_WIDTH, _NAME_WIDTH = 8, 14
# The columns of `--output plain`, `yaml` and of the page.
COLUMNS = ("subject", "item", "state", "found", "action")


def rows(report: DeploymentReport) -> list[dict[str, str]]:
    """Return the checks as rows of plain texts."""
    return [
        {"subject": one.subject, "item": one.id, "state": one.state.value, "found": one.found, "action": one.action}
        for one in report.checks
    ]


def lines(report: DeploymentReport, width: int = 120, *, color: bool = False) -> Iterator[str]:
    """Yield the table: a heading for each subject, a line for each check, and below it the next step.

    :param width: the width of the terminal in characters.
    """
    for subject, group in groupby(report.checks, key=lambda check: check.subject):
        checks = list(group)
        heading = " ".join(printable(subject).split())
        users = sorted({dag_id for check in checks for dag_id in check.dag_ids} - set(heading.split()))
        yield f"{heading}{f'  for {printable(chr(32).join(users))}' if users else ''}"
        for check in checks:
            yield from _check_lines(check, max(60, width), color)
        yield ""
    yield summary(report)


def _check_lines(check: Check, width: int, color: bool) -> Iterator[str]:
    word = f"{_WORDS[check.state]:<{_STATE_WIDTH}}"
    if color:
        word = f"\033[{_COLORS[check.state]}m{word}\033[0m"
    indent = 2 + _STATE_WIDTH + 1 + _NAME_WIDTH + 1
    found = _wrapped(check.found, width - indent)
    yield f"  {word} {check.name:<{_NAME_WIDTH}} {found[0]}"
    yield from (" " * indent + line for line in found[1:])
    if check.action:
        first, *rest = _wrapped(check.action, width - indent - 3)
        yield f"{' ' * indent}-> {first}"
        yield from (" " * (indent + 3) + line for line in rest)


def _wrapped(text: str, width: int) -> Sequence[str]:
    return textwrap.wrap(" ".join(printable(text).split()), width, break_on_hyphens=False) or [""]


def summary(report: DeploymentReport) -> str:
    """Return one line with the numbers of checks by state."""
    counts = report.counts
    words = {State.OK: "ok", State.FAILED: "failed", State.WARNING: "with a warning", State.SKIPPED: "skipped"}
    parts = [f"{counts[state]} {word}" for state, word in words.items() if counts[state]]
    return f"{', '.join(parts)} in {report.seconds:.1f} s on {report.host}."


def short(report: DeploymentReport) -> str:
    """Return the number of checks that are ok, and the first problem if there is one."""
    made = [check for check in report.checks if check.state is not State.SKIPPED]
    problems = [check for state in (State.FAILED, State.WARNING) for check in made if check.state is state]
    text = f"{len(made) - len(problems)} of {len(made)} ok"
    if not problems:
        return text
    first = problems[0]
    return " ".join(printable(f"{text}. {first.subject}, {first.name}: {first.found}").split())
