"""Writer of docs/tags.md, the tags and metrics of a release: ``python docs/tags.py``."""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

DOCS = Path(__file__).resolve().parent
for source in ("include", "plugins"):
    sys.path.insert(0, str(DOCS.parent / source))

from onnx_release.records import Measures, SideLatency  # noqa: E402 - needs the path above
from onnx_release.training_runs import tags  # noqa: E402

PAGE = DOCS / "tags.md"
HEAD = """\
# Tags and metrics

What does a release write to MLflow, and which tags can a training script set?

`make generated` writes this page from the code. A tag without a value does not exist.

"""
SECTIONS = {
    "MODEL_NAME": "## Tags that a training script sets\n\n[Sources](sources.md) describes their use.",
    "STATUS": "## Tags of the training run\n\n### State of the release",
    "ATTEMPTED_AT": "### Newest attempt",
    "REGISTERED_MODEL": "### Current release\n\n"
    "They are deleted when the version was deleted and another attempt began. A release of reduced precision has\n"
    "`version`, `alias`, `s3_uri` and `sha256` with its precision in the name, such as `onnx_release.int8.version`.",
    "VERSION_STATUS": "## Tags of a model version\n\nThe first line of the version's description is the result. "
    "`report.json` beside the model has everything else.",
    "PROMOTION_LOCK": "## Tags of a registered model",
}
METRICS = """
## Metrics of the training run

All are below `onnx_release/`, or `onnx_release/<precision>/` for a model of reduced precision. A value that was not
measured has no metric.

| metric | value |
|---|---|
| `size_bytes` | size of the artifact |
| `export_wall_s` | duration of the export |
| `tune/wall_s`, `tune/<variant>/speedup` | duration of the tuning, and each variant's speedup to the exported model |
| `parity/<output>/<measure>` | worst value of each measure: {measures} |
| `parity/<output>/worst_column/<value>` | worst column: `index`, `mae`, `scale`, `sqnr_db`, `share` of its limit |
| `latency/batch_<n>/reference_<value>` | PyTorch's times: {times} |
| `latency/batch_<n>/candidate_<value>` | ONNX Runtime's times, likewise |
| `latency/batch_<n>/<value>` | `speedup`, `speedup_low` and `speedup_high`; if not settled, `speedup_low` alone |
| `latency/batch_<n>/cpu_wait_share` | share of the time in which the process waited for a CPU |

[Events](events.md#metrics) has the metrics for Airflow's StatsD, Datadog and OpenTelemetry. The
[report](reports.md) has every other figure.
"""


def page() -> str:
    """Return the page as Markdown."""
    parts = [HEAD]
    for name, tag, meaning in _tags():
        if name in SECTIONS:
            gap = "\n" if len(parts) > 1 else ""
            parts.append(f"{gap}{SECTIONS[name]}\n\n| tag | meaning |\n|---|---|\n")
        parts.append(f"| `{tag}` | {meaning.replace('``', '`')} |\n")
    times = (name for name, field in SideLatency.model_fields.items() if field.annotation is float)
    return "".join([*parts, METRICS.format(measures=_listed(Measures.model_fields), times=_listed(times))])


def _listed(names: object) -> str:
    return ", ".join(f"`{name}`" for name in names)  # type: ignore[attr-defined]


def _tags() -> Iterator[tuple[str, str, str]]:
    """Yield name, tag and docstring of each constant with one."""
    body = ast.parse(inspect.getsource(tags)).body
    for node, text in pairwise(body):
        if isinstance(node, ast.Assign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            name = ast.unparse(node.targets[0])
            if name != "ROOT":
                yield name, getattr(tags, name), str(text.value.value)


if __name__ == "__main__":
    PAGE.write_text(page())
