"""Report of a rehearsal: a sentence for each runtime, a table of the models, and files for people and programs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from statistics import median

from onnx_release.records.rehearsal import RehearsalReport, RehearsedRuntime, RuntimeLatency
from onnx_release.report.html import render_page
from onnx_release.report.markdown import render_markdown
from onnx_release.report.numbers import three_digits

JSON_FILE, PAGE_FILE, SUMMARY_FILE = "rehearsal.json", "rehearsal.html", "rehearsal.md"
_WORST_FIRST = ("does not load", "does not run", "changes", "not rehearsed", "within limits", "bit-equal")
COLUMNS = ("result", "runtime", "model", "difference", "to PyTorch", "node", "latency ratio")

_SUMMARY = """\
# Rehearsal of ONNX Runtime {{ report.runtimes | join(", ") }}

{{ report.created | line }}, {{ report.models | length }} models, beside ONNX Runtime {{ report.present | line }}.
{% for host in report.hosts %}
Host: {{ host | line }}.
{% endfor %}

{% for sentence in sentences %}
- {{ sentence | line }}
{% endfor %}

| {{ columns | join(" | ") }} |
|{{ "---|" * columns | length }}
{% for row in rows %}
| {% for cell in row %}{{ cell | line }} | {% endfor %}

{% endfor %}

{% for text in remarks %}
- {{ text | line }}
{% endfor %}

The difference is the largest absolute one from the present runtime, and that from PyTorch's stored outputs. A latency
ratio above 1 is slower than the present runtime.
"""


def runtime_sentence(report: RehearsalReport, runtime: str) -> str:
    """Return the result of one runtime over all models."""
    results = [one for model in report.models for one in model.runtimes if one.runtime == runtime]
    total = len(report.models)
    counted = Counter(one.verdict for one in results)
    parts = []
    if missing := counted["does not load"]:
        parts.append(f"{missing} of {_models(total)} {'does' if missing == 1 else 'do'} not load")
    if failed := counted["does not run"]:
        parts.append(f"{failed} {'does' if failed == 1 else 'do'} not run")
    parts += _changes([one for one in results if one.verdict == "changes"])
    if near := [one for one in results if one.verdict == "within limits"]:
        largest = max((one.difference or 0.0 for one in near), default=0.0)
        parts.append(
            f"{len(near)} {'differs' if len(near) == 1 else 'differ'} by at most {three_digits(largest)}, within "
            f"{'its' if len(near) == 1 else 'their'} limits"
        )
    if equal := counted["bit-equal"]:
        rest = "the others are bit-equal" if equal > 1 else "the other is bit-equal"
        parts.append(rest if parts else f"{equal} of {_models(total)} {'is' if equal == 1 else 'are'} bit-equal")
    if skipped := total - sum(counted.values()) + counted["not rehearsed"]:
        parts.append(f"{skipped} {'was' if skipped == 1 else 'were'} not rehearsed")
    if timed := [one.latency for one in results if one.latency]:
        parts.append(_median_ratio(timed))
    return f"ONNX Runtime {runtime}: {'; '.join(parts) or 'no model was rehearsed'}."


def rehearsal_rows(report: RehearsalReport) -> Iterator[tuple[str, ...]]:
    """Yield one row of plain texts for each runtime and model, in the order of `COLUMNS`, the worst results first."""
    for model in report.models:
        if not model.runtimes:
            yield ("not rehearsed", "-", model.name, "-", "-", "-", "-")
    for runtime in report.runtimes:
        results = [(model.name, one) for model in report.models for one in model.runtimes if one.runtime == runtime]
        for name, one in sorted(results, key=lambda result: _WORST_FIRST.index(result[1].verdict)):
            yield (
                one.verdict,
                runtime,
                name,
                three_digits(one.difference),
                f"{three_digits(one.reference_difference)}{' (beyond)' if one.reference == 'failed' else ''}",
                _node(one),
                ratio_text(one.latency),
            )


def remarks(report: RehearsalReport) -> Iterator[str]:
    """Yield the errors and restrictions, each with its model and runtime."""
    for model in report.models:
        yield from (f"{model.name}: {text}" for text in (model.problem, *model.notes) if text)
        for one in model.runtimes:
            texts = (one.problem, one.note, (one.node.note or "") if one.node else "")
            yield from (f"{model.name} in {one.runtime}: {text}" for text in texts if text)


def is_ready(report: RehearsalReport) -> bool:
    """Return True if every model runs in every runtime, within the limits of its release."""
    return all(
        model.runtimes
        and all(one.verdict in ("bit-equal", "within limits") and one.reference != "failed" for one in model.runtimes)
        for model in report.models
    )


def ratio_text(latency: RuntimeLatency | None) -> str:
    """Return a ratio with its interval, for example ``0.93 [0.88, 0.99]``; a dash without one."""
    if latency is None:
        return "-"
    interval = f"[{latency.ratio_low:.2f}, {latency.ratio_high:.2f}]"
    # An uncertain ratio is not published as a plain number.
    return f"{latency.ratio:.2f} {interval}" if latency.settled else f"{interval}, not settled"


def rehearsal_html(report: RehearsalReport) -> str:
    """Return the report as one HTML file without scripts and without requests."""
    return render_page(
        "rehearsal.html",
        report=report,
        sentences=[runtime_sentence(report, runtime) for runtime in report.runtimes],
        columns=COLUMNS,
        rows=list(rehearsal_rows(report)),
        remarks=list(remarks(report)),
        ready=is_ready(report),
    )


def rehearsal_markdown(report: RehearsalReport) -> str:
    """Return the report as Markdown."""
    return render_markdown(
        _SUMMARY,
        report=report,
        columns=COLUMNS,
        rows=list(rehearsal_rows(report)),
        remarks=list(remarks(report)),
        sentences=[runtime_sentence(report, runtime) for runtime in report.runtimes],
    )


def write_rehearsal(folder: Path, report: RehearsalReport) -> list[Path]:
    """Write the report as JSON, HTML and Markdown into a folder, and return the paths."""
    texts = {
        JSON_FILE: json.dumps(report.to_dict(), indent=2, ensure_ascii=False) + "\n",
        PAGE_FILE: rehearsal_html(report),
        SUMMARY_FILE: rehearsal_markdown(report),
    }
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8", newline="\n")
    return [folder / name for name in texts]


def _median_ratio(timed: list[RuntimeLatency]) -> str:
    """Return the median of the settled ratios. An uncertain ratio is not published as a plain number."""
    settled = [one.ratio for one in timed if one.settled]
    if not settled:
        return "no latency ratio is settled"
    of = "" if len(settled) == len(timed) else f" ({len(settled)} of {len(timed)} are settled)"
    return f"median latency ratio {median(settled):.2f}{of}"


def _models(count: int) -> str:
    return f"{count} model{'' if count == 1 else 's'}"


def _changes(changed: list[RehearsedRuntime]) -> list[str]:
    if not changed:
        return []
    if len(changed) > 1:
        return [f"{len(changed)} change by up to {three_digits(max(one.difference or 0.0 for one in changed))}"]
    (one,) = changed
    text = f"1 changes by {three_digits(one.difference)}" if one.difference is not None else "1 changes"
    return [f"{text} in node {one.node.node}" if one.node and one.node.node else text]


def _node(one: RehearsedRuntime) -> str:
    if one.node is None:
        return "-"
    if one.node.node is None:
        return "no single node"
    return f"{one.node.node} ({one.node.op_type}), {three_digits(one.node.max_abs)}"
