"""Release report as Markdown: result, gates, artifact, parity per output and latency per batch size."""

from __future__ import annotations

import re

import jinja2

from onnx_release.records import Measures, ReleaseReport, TuneReport
from onnx_release.report.champion import champion_speed
from onnx_release.report.escape import code_text, escaped
from onnx_release.report.gates import TITLES, published_speedup, refused_outputs
from onnx_release.report.numbers import limit_text, measured_text, size_text, speedup_text, three_digits
from onnx_release.report.short_view import closest_gates, has_more_reasons

_SUMMARY = """\
{{ report.headline | line }}

{{ report.next_step | line | inside("To do: %s") }}

{% for reason in report.reasons if report | has_more_reasons %}
- {{ reason | line }}
{% endfor %}

{% set trained = report.trained_model %}
Model **{{ (trained.model_name or "unnamed") | line }}**, training run `{{ trained.training_run_id | code }}`\
{{ trained.run_name | line | inside(" (%s)") }}\
{% if trained.model_uri %}, `{{ trained.model_uri | code }}`{{ trained.chosen | line | inside(" (%s)") }}{% endif %}.\
{{ report.reason_code | inside(" Code of the refusal: `%s`.") }}

{% for skipped in trained.skipped %}
- Skipped: {{ skipped | line }}
{% endfor %}

{% if report.gates %}
| gate | of | measured | limit | result |
|---|---|---|---|---|
{% for gate in report.gates | closest %}
| {{ gate.name | title }} | {{ gate.subject | line }} | {{ gate | measured | line }} | {{ gate | limit | line }} \
| {{ gate.verdict }} |
{% endfor %}
{% endif %}

{% set artifact = report.artifact %}
{% if artifact %}
Opset {{ artifact.opset }}, IR version {{ artifact.ir_version }}, {{ artifact.size_bytes | size }}, \
exported from {{ artifact.trained_format }} by the strategy {{ artifact.strategy }}, \
{{ "exact" if artifact.precision.is_exact else "**%s**" % artifact.precision }}\
{{ artifact.variant | line | inside(", variant %s") }}, sha256 `{{ artifact.sha256 }}`.

{% for attempt in artifact.attempts if attempt.outcome != "taken" %}
- strategy {{ attempt.strategy | line }}: {{ attempt.outcome }}, {{ attempt.reason | line }}
{% endfor %}
{% for finding in artifact.findings %}
- {{ finding.severity }} {{ finding.code | line }}: {{ finding.message | line }}\
{{ (finding.fix or "") | code | inside("; correct it with `%s`") }}
{% endfor %}

{{ artifact.tuning | tuning if artifact.tuning else "" }}
{% endif %}

{% for layout in report.serving %}
- for {{ {"triton": "Triton", "kserve": "KServe"}[layout.layout] }}: `{{ layout.uri | code }}`, \
model `{{ layout.name | code }}`
{% endfor %}

{% if report.benchmark %}
{% set parity = report.benchmark.parity %}
Parity with PyTorch, the worst of {{ parity.comparisons | samples }} samples at batch sizes \
{{ parity.batch_sizes | join(", ") or "none" }} \
(other than the one of the export: {{ parity.unseen_batch_sizes | join(", ") or "none" }}):

| output | {{ titles | join(" | ") }} | passed |
|{{ "---|" * (titles | length + 2) }}
{% for output, worst in parity.worst_per_output().items() %}
| {{ output | line }} | {{ worst.texts().values() | join(" | ") }} | {{ "no" if output in failed else "yes" }} |
{% endfor %}

{% for output, worst in parity.worst_columns().items() %}
- worst column of {{ output | line }}: {{ worst.worst_column }}, on the sample '{{ worst.sample | line }}' \
at batch size {{ worst.batch_size }}
{% endfor %}
{% for warning in parity.warnings %}
- warning: {{ warning | line }}
{% endfor %}
{% for note in parity.notes %}
- {{ note | line }}
{% endfor %}

{% set at = parity.divergence %}
{% if at %}
The difference begins at \
{{ "node `%s` (%s)" % (at.node | code, at.op_type | line) if at.node else "no node" }}\
{{ " of module `%s` (%s)" % (at.module | code, at.module_type | line) if at.node and at.module else "" }}\
{{ at.mae | inside(", MAE %.2e") }}\
{{ at.scale | inside(" at a scale of %.2e") }}, \
on the sample '{{ at.sample | line }}' at batch size {{ at.batch_size }}.{{ at.note | line | inside(" Note: %s.") }}
{% endif %}

{% set latency = report.benchmark.latency %}
{% if not latency %}
Latency was not measured, because parity failed.
{% else %}
Latency on {{ latency.device }}, {{ latency.threads }} threads per side, {{ latency.host.cpu_model | line }} \
({{ latency.host.usable_cpus }} of {{ latency.host.logical_cpus }} CPUs, \
load {{ "%.2f" % latency.host.load_1m }} at the start), {{ latency.providers_active | join(", ") }}; \
verdict: {{ latency.verdict }}{{ ", goal reached" if latency.goal_reached else "" }}.

| batch | PyTorch p50 / p95 | ONNX Runtime p50 / p95 | samples per s | speedup [interval] | rounds |
|---|---|---|---|---|---|
{% for batch in latency.batches %}
{% set reference, candidate = batch.reference, batch.candidate %}
| {{ batch.batch_size }} | {{ reference.p50_ms | digits }} / {{ reference.p95_ms | digits }} ms \
| {{ candidate.p50_ms | digits }} / {{ candidate.p95_ms | digits }} ms \
| {{ reference.throughput_per_s | digits }} / {{ candidate.throughput_per_s | digits }} \
| {{ batch | published(latency) }} at {{ "%.0f%%" % (100 * batch.confidence) }} \
| {{ batch.rounds }} x {{ batch.calls_per_round }} |
{% endfor %}

{% for warning in latency.warnings %}
- warning: {{ warning | line }}
{% endfor %}

{% set champion = report.benchmark.champion %}
{% if champion %}
Against the champion, version {{ champion.version }} (alias {{ champion.alias }}, \
{{ champion.champion_size_bytes | size }}), \
{{ "not measured: %s" % (champion.problem | line) if champion.problem else "in the same rounds" }}:

| batch | champion p50 / p95 | candidate p50 / p95 | speed [interval] |
|---|---|---|---|
{% for batch in latency.batches if batch.champion %}
{% set times = batch.champion.times %}
| {{ batch.batch_size }} | {{ times.p50_ms | digits }} / {{ times.p95_ms | digits }} ms \
| {{ batch.candidate.p50_ms | digits }} / {{ batch.candidate.p95_ms | digits }} ms \
| {{ batch.champion | champion_speed }} |
{% endfor %}

{% for output, measures in champion.agreement.items() %}
- outputs of both, {{ output | line }}: MAE {{ measures.texts().mae }}, cosine {{ measures.texts().cosine }}
{% endfor %}
{% for metric in champion.metrics %}
- {{ metric.name | line }} of {{ metric.output | line }}: champion {{ metric.champion | digits }}, \
candidate {{ metric.candidate | digits }}
{% endfor %}
{% for warning in champion.warnings %}
- warning: {{ warning | line }}
{% endfor %}
{% endif %}
{% endif %}
{% endif %}
"""

_TUNING = """\
Tuning at batch size {{ tuning.batch_size }} with {{ tuning.threads }} threads chose **{{ tuning.chosen }}**, \
in {{ tuning.wall_s | digits }} s of at most {{ tuning.max_s | digits }} s. Speedups are relative to the plain export, \
at {{ "%.0f%%" % (100 * tuning.confidence) }} confidence.

| variant | outcome | speedup [interval] | p50 / p95 | size | cosine | SQNR \
{% for output, name in tuning.task_metric.items() %}
| {{ ("%s of %s" % (name, output)) | line }} \
{% endfor %}
| reason |
|{{ "---|" * (8 + tuning.task_metric | length) }}
{% for variant in tuning.variants %}
{% set measures = variant.measures.texts() %}
| {{ variant.name | line }} | {{ variant.outcome }} | {{ variant | speedup }} \
| {{ "%s / %s ms" % (variant.p50_ms | digits, variant.p95_ms | digits) if variant.p50_ms is not none else "-" }} \
| {{ variant.size_bytes | size }} | {{ measures.cosine }} | {{ measures.sqnr_db }} \
{% for output in tuning.task_metric %}
| {{ variant.task_metrics.get(output) | digits }} \
{% endfor %}
| {{ variant.reason | line }} |
{% endfor %}

{% for note in tuning.notes %}
- {{ note | line }}
{% endfor %}
"""


def summary_markdown(report: ReleaseReport) -> str:
    """Return the whole report for a person."""
    return render_markdown(
        _SUMMARY,
        report=report,
        titles=[info.title or name for name, info in Measures.model_fields.items()],
        failed=refused_outputs(report),
    )


def tuning_markdown(tuning: TuneReport, *, for_log: bool = False) -> str:
    """Return the table of a tuning: every candidate with its measurements, its outcome and the reason.

    Args:
        tuning: the result of the tuning.
        for_log: escape nothing but the columns of the table.
    """
    return render_markdown(_TUNING, for_log=for_log, tuning=tuning)


def render_markdown(template: str, *, for_log: bool = False, **values: object) -> str:
    """Return a template of Markdown with the values.

    Args:
        template: The template.
        for_log: escape nothing but the columns of the table.
        values: The values of the template.
    """
    # Markdown is not HTML: `line` and `code` escape foreign text.
    environment = jinja2.Environment(trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined)  # noqa: S701
    environment.filters |= {
        "champion_speed": champion_speed,
        "closest": closest_gates,
        "code": code_text,
        "digits": three_digits,
        "has_more_reasons": has_more_reasons,
        "inside": lambda value, text: "" if value in (None, "") else text % value,
        "limit": limit_text,
        "line": lambda text: " ".join((text or "").split()).replace("|", "\\|") if for_log else escaped(text or ""),
        "measured": measured_text,
        "published": published_speedup,
        "samples": lambda comparisons: len({(c.sample, c.batch_size) for c in comparisons}),
        "size": size_text,
        "speedup": lambda record: speedup_text(record.speedup, record.speedup_low, record.speedup_high),
        "title": lambda name: TITLES.get(name, name),
        "tuning": tuning_markdown,
    }
    # Empty lists leave empty lines behind.
    return re.sub(r"\n{3,}", "\n\n", environment.from_string(template).render(**values)).strip() + "\n"
