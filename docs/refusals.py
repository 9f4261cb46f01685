"""Writer of docs/refusals.md, the table of refusal codes: ``python docs/refusals.py``."""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).resolve().parent
for source in ("include", "plugins"):
    sys.path.insert(0, str(DOCS.parent / source))

from airflow_onnx import errors as edge  # noqa: E402 - needs the path above
from onnx_release import errors as core  # noqa: E402

PAGE = DOCS / "refusals.md"
HEAD = """\
# Refusal codes

A refused release has a code. It is in the task log, in `report.json` and in the tag `onnx_release.reason_code` of the
training run. A retry gives the same answer: change what the message names, then release again.

`make generated` writes this page from the code.
"""


def page() -> str:
    """Return the page as Markdown: a section for each stage, a row for each code."""
    parts = [HEAD]
    for stage in (*core.STAGES, *edge.STAGES):
        summary = (stage.__doc__ or "").splitlines()[0]
        parts.append(f"\n## {stage.__name__}\n\n{summary}\n\n| code | meaning |\n|---|---|\n")
        parts += [f"| `{code}` | {meaning} |\n" for code, meaning in sorted(stage.codes.items())]
    return "".join(parts)


if __name__ == "__main__":
    PAGE.write_text(page())
