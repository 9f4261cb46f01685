"""Writer of docs/refusals.md, the table of refusal codes: ``python docs/refusals.py``."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
for source in ("include", "plugins", "."):
    sys.path.insert(0, str(DOCS.parent / source))

from docs.refusal_actions import STAGES, action  # noqa: E402 - needs the path above

PAGE = DOCS / "refusals.md"
HEAD = """\
# Refusal codes

Why was a release refused, and which change helps?

A refused release has a code. It is in the task log, in `report.json` and in the tag `onnx_release.reason_code` of the
training run. A retry gives the same answer: change the cause, then release again. The message of a refusal has the
values of your release; this page has the general case. [troubleshooting.md](troubleshooting.md) has problems without a
code.

`make generated` writes this page from the code.
"""


def page() -> str:
    """Return the page as Markdown: a section for each stage, a row for each code."""
    parts = [HEAD]
    for stage in STAGES:
        summary = (stage.__doc__ or "").splitlines()[0]
        parts.append(f"\n## {stage.__name__}\n\n{summary}\n\n| code | cause | action |\n|---|---|---|\n")
        for code, meaning in sorted(stage.codes.items()):
            mark = " *(deployment)*" if code in stage.deployment_codes else ""
            parts.append(f"| `{code}`{mark} | {meaning} | {action(stage.__name__, code)} |\n")
    parts.append(
        "\n*(deployment)*: the worker or a setting is at fault, so the training run gets `failed`, not `refused`.\n"
    )
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
