"""Gates of a release, and its result in one sentence."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from onnx_release.errors import Refused
from onnx_release.latency.evaluate import latency_gates
from onnx_release.limits import CPU_WAIT_SHARE_MAX, LatencyBudget
from onnx_release.records import (
    AppliedLimit,
    BatchLatency,
    BenchmarkReport,
    CheckReport,
    Gate,
    LatencyReport,
    OutputParity,
    ParityReport,
    ReleaseReport,
    RuntimeReport,
)
from onnx_release.report.champion import champion_gates
from onnx_release.report.numbers import limit_text, measured_text, size_text, speedup_text, three_digits
from onnx_release.text import shorten

TITLES = {
    "check": "static checks",
    "comparable": "same dtype, shape and places of NaN",
    "mae": "mean absolute error of the worst column",
    "max_abs": "largest absolute error",
    "tolerance": "largest error over the tolerance",
    "sqnr_db": "signal to noise",
    "column_sqnr_db": "signal to noise of one column",
    "cosine": "cosine similarity",
    "uncertainty_ratio": "error over the model's uncertainty",
    "agreement": "share of equal values",
    "parity": "comparison with PyTorch",
    "unseen_batch_sizes": "unseen batch sizes",
    "invented_inputs": "invented inputs",
    "runtime_loads": "load of the model",
    "runtime_parity": "comparison with PyTorch",
    "speedup": "speedup",
    "p95_ms": "95th percentile",
    "provider": "execution provider",
    "latency": "latency",
    "champion": "comparison with the champion",
    "champion_speed": "speed relative to the champion",
    "champion_size": "size relative to the champion",
    "champion_metric": "loss of the metric against the champion",
}
"""The titles of all gates by name."""

# Limits that a larger value keeps; the others are upper limits.
_AT_LEAST = ("sqnr_db", "column_sqnr_db", "cosine", "agreement")
_UNITS = {"sqnr_db": "dB", "column_sqnr_db": "dB"}
_SHORT_DTYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16", "float64": "fp64"}
# The reason of these gates has the place and the value.
_EXPLAINED = (
    "check", "parity", "comparable", "runtime_loads", "runtime_parity", "provider", "latency", "champion",
)  # fmt: skip
_SENTENCE_CHARACTERS = 300


def gates(check: CheckReport | None, benchmark: BenchmarkReport | None) -> tuple[Gate, ...]:
    """Return every gate of the reports. A report that did not pass has at least one refused gate."""
    found: list[Gate] = []
    if check is not None:
        errors = sum(finding.severity == "error" for finding in check.findings)
        found.append(_count("check", "file", errors, "errors", passed=check.passed))
    if benchmark is not None:
        found += _parity_gates(benchmark.parity)
        found += (gate for report in benchmark.runtimes for gate in _runtime_gates(report))
        if benchmark.latency is not None:
            found += _latency_gates(benchmark.latency)
            if benchmark.champion is not None:
                found += champion_gates(benchmark.champion, benchmark.latency)
        elif not (benchmark.timed and benchmark.parity.passed):
            found.append(Gate(name="speedup", subject="all batch sizes", verdict="not measured"))
    return tuple(found)


def is_settled(batch: BatchLatency, latency: LatencyReport) -> bool:
    """Return True for a speedup that may be published as a plain number."""
    is_served = batch.batch_size == latency.budget.get("batch_size")
    # A process that waits for a CPU slows PyTorch more than ONNX Runtime.
    is_disturbed = batch.cpu_wait_share is not None and batch.cpu_wait_share > CPU_WAIT_SHARE_MAX
    return batch.conclusive and not is_disturbed and not (is_served and latency.verdict == "not settled")


def published_speedup(batch: BatchLatency, latency: LatencyReport) -> str:
    """Return a speedup as text. One that is not settled has the lower end of its interval, if it has one."""
    if is_settled(batch, latency):
        return speedup_text(batch.speedup, batch.speedup_low, batch.speedup_high)
    least = f", at least {three_digits(batch.speedup_low)}x" if batch.speedup_low > 0 else ""
    return f"not settled{least}"


def is_warning(report: ReleaseReport) -> bool:
    """Return True for an accepted release with a gate that did not simply pass."""
    return bool(warning(report))


def warning(report: ReleaseReport) -> str:
    """Return the first gate of an accepted release that did not simply pass, as text, and the number of others."""
    warned = [gate for gate in report.gates if gate.verdict != "passed"] if report.status == "accepted" else []
    return f"{gate_sentence(warned[0])}{_others(len(warned) - 1)}" if warned else ""


def refused_outputs(report: ReleaseReport) -> set[str]:
    """Return the outputs with a refused gate."""
    return {gate.subject for gate in report.gates if gate.verdict == "refused"}


def headline(report: ReleaseReport, refusal: Refused | None = None) -> str:
    """Return the result of a release in one plain sentence.

    Args:
        report: The report without its headline.
        refusal: The refusal that ended the release. A failed gate of the report goes first.
    """
    if report.status == "refused":
        return _sentence(f"Refused: {_lower_article(_refused_gate(report) or _reason(report, refusal))}")
    if warned := warning(report):
        return _sentence(f"Released with a warning: {warned}")
    return _sentence(f"Released: {', '.join(_figures(report))}")


def next_step(report: ReleaseReport, refusal: Refused | None = None) -> str:
    """Return the advice for a person in one plain text; empty when nothing is to do. The arguments are `headline`'s."""
    failed = [gate for gate in report.gates if gate.verdict not in ("passed", "not measured")]
    first = next((gate for gate in failed if gate.verdict == "refused"), failed[0] if failed else None)
    if first is not None:
        return _sentence(_advice(report, first))
    return _sentence(refusal.action) if refusal is not None else ""


def _parity_gates(parity: ParityReport) -> Iterator[Gate]:
    deciding = [comparison for comparison in parity.comparisons if comparison.decides]
    for output in dict.fromkeys(comparison.output for comparison in deciding):
        yield from _output_gates(output, [comparison for comparison in deciding if comparison.output == output])
    unseen = len(parity.unseen_batch_sizes)
    if deciding:
        yield Gate(
            name="unseen_batch_sizes",
            subject="all outputs",
            measured=unseen,
            limit=1,
            unit="sizes",
            sense="at least",
            verdict="passed" if unseen else "refused",
        )
    yield _count("parity", "all samples", len(parity.failures), "failures", passed=parity.passed)
    invented = _count("invented_inputs", "all outputs", len(parity.warnings), "warnings", passed=not parity.warnings)
    yield invented if invented.verdict == "passed" else invented.replace(verdict="warning")


def _runtime_gates(report: RuntimeReport) -> Iterator[Gate]:
    """Yield the gates of one version of ONNX Runtime: it loads the model, and its outputs are PyTorch's."""
    subject = f"ONNX Runtime {report.version}"
    yield Gate(name="runtime_loads", subject=subject, verdict="passed" if report.loads else "refused")
    if report.loads:
        yield _count("runtime_parity", subject, len(report.failures), "failures", passed=report.passed)


def _output_gates(output: str, comparisons: list[OutputParity]) -> Iterator[Gate]:
    if any(not one.passed and all(limit.passed for limit in one.applied) for one in comparisons):
        yield Gate(name="comparable", subject=output, verdict="refused")
    worst: dict[str, AppliedLimit] = {}
    for limit in (limit for one in comparisons for limit in one.applied):
        if limit.name not in worst or _badness(limit) > _badness(worst[limit.name]):
            worst[limit.name] = limit
    for name, limit in worst.items():
        yield Gate(
            name=name,
            subject=output,
            measured=limit.measured,
            limit=limit.limit,
            unit=_UNITS.get(name, ""),
            sense="at least" if name in _AT_LEAST else "at most",
            verdict="passed" if limit.passed else "refused",
        )


def _badness(limit: AppliedLimit) -> tuple[bool, float]:
    """Return a key that sorts the results of one limit, the worst last. A failed one without a value is the worst."""
    if limit.measured is None or math.isnan(limit.measured):
        return not limit.passed, -math.inf if limit.passed else math.inf
    if limit.name in _AT_LEAST:
        return not limit.passed, limit.limit - limit.measured
    return not limit.passed, limit.measured / limit.limit if limit.limit else limit.measured


def _latency_gates(latency: LatencyReport) -> list[Gate]:
    """Return the gates of the latency. A speedup that is uncertain, although above its limit, is a warning."""
    found = list(latency_gates(latency, LatencyBudget.from_dict(latency.budget)))
    if not all(is_settled(batch, latency) for batch in _served(latency)):
        found = [
            gate.replace(verdict="warning") if (gate.name, gate.verdict) == ("speedup", "passed") else gate
            for gate in found
        ]
    if not latency.passed and all(gate.verdict in ("passed", "warning") for gate in found):
        found.append(Gate(name="latency", subject="all batch sizes", verdict="refused"))
    return found


def _served(latency: LatencyReport) -> list[BatchLatency]:
    return [batch for batch in latency.batches if batch.batch_size == latency.budget.get("batch_size")]


def _count(name: str, subject: str, count: int, unit: str, *, passed: bool) -> Gate:
    return Gate(
        name=name,
        subject=subject,
        measured=count,
        limit=0,
        unit=unit,
        sense="at most",
        verdict="passed" if passed else "refused",
    )


def _refused_gate(report: ReleaseReport) -> str | None:
    """Return the first gate that refused the model as a sentence, or None."""
    of_latency = ("speedup", "p95_ms", "provider", "latency", "champion_speed")
    refused = [gate for gate in report.gates if gate.verdict == "refused"]
    # An unsettled speedup refuses where nothing else does.
    refused = refused or [gate for gate in report.gates if gate.verdict == "not settled" and gate.name in of_latency]
    if not refused:
        return None
    if refused[0].name in _EXPLAINED:
        return f"{_bare(report.reasons[0]).split(';')[0]}{_others(len(report.reasons) - 1)}"
    return f"{gate_sentence(refused[0])}{_others(sum(gate.name != 'parity' for gate in refused) - 1)}"


def _others(count: int) -> str:
    return f" (and {count} more)" if count > 0 else ""


def gate_sentence(gate: Gate) -> str:
    """Return the failure of a gate as the rest of a sentence, without a full stop."""
    title, measured = TITLES.get(gate.name, gate.name), measured_text(gate)
    if gate.name == "invented_inputs":
        return f"the comparison on invented inputs has {measured}"
    if gate.name == "speedup" and (gate.low or 0.0) >= (gate.limit or 0.0) and gate.verdict == "warning":
        return f"the speed is uncertain, {measured} at {gate.subject}"
    if gate.name == "speedup" and gate.verdict == "not measured":
        return "the latency was not measured"
    if gate.name == "speedup" and gate.verdict == "not settled":
        few = (gate.low or 0.0) >= (gate.limit or 0.0)
        reason = "too few rounds were measured" if few else f"{measured} contains the limit {three_digits(gate.limit)}x"
        return f"the speed at {gate.subject} is not settled, {reason}"
    if gate.name == "champion_speed" and gate.verdict == "not settled":
        return f"the {title} is not settled, {measured} at {gate.subject} against {limit_text(gate)}"
    subject = f" at {gate.subject}" if gate.name in ("speedup", "p95_ms", "champion_speed") else f" of {gate.subject!r}"
    subject = "" if gate.subject == "file" else subject
    if gate.limit is None:
        return f"the {title}{subject} did not pass"
    direction = "above" if gate.sense == "at most" else "below"
    limit = limit_text(gate).removeprefix(gate.sense).strip()
    if measured == limit and gate.measured is not None:
        # Three digits do not show the difference.
        measured = f"{gate.measured:.6g}"
    return f"the {title}{subject} is {measured}, {direction} the limit {limit}"


def _reason(report: ReleaseReport, refusal: Refused | None) -> str:
    if refusal is not None and report.reasons == (str(refusal),):
        return f"{refusal.subject} {refusal.problem}"
    return f"{_bare(report.reasons[0])}{_others(len(report.reasons) - 1)}" if report.reasons else "no reason is given"


def _bare(reason: str) -> str:
    """Return a reason without the name of its report."""
    return re.sub(r"^(parity|latency|check [\w-]+): ", "", reason)


def _figures(report: ReleaseReport) -> Iterator[str]:
    artifact, benchmark = report.artifact, report.benchmark
    if artifact is None or benchmark is None:
        return
    dtypes = {spec.dtype for spec in (*artifact.inputs, *artifact.outputs) if "float" in spec.dtype}
    exact = _SHORT_DTYPES.get(min(dtypes)) if len(dtypes) == 1 else None
    yield (exact or "exact") if artifact.precision.is_exact else str(artifact.precision)
    yield size_text(artifact.size_bytes)
    errors = [worst.mae for worst in benchmark.parity.worst_per_output().values() if worst.mae is not None]
    if errors:
        yield f"MAE {max(errors):.0e}"
    if (latency := benchmark.latency) is None:
        return
    for served in _served(latency):
        plain = speedup_text(served.speedup, served.speedup_low, served.speedup_high)
        bound = f"at least {three_digits(served.speedup_low)}x"
        yield f"{plain if is_settled(served, latency) else bound} at batch {served.batch_size}"


def _advice(report: ReleaseReport, gate: Gate) -> str:
    is_uncertain = gate.verdict == "not settled" or (
        gate.verdict == "warning" and (gate.low or 0.0) >= (gate.limit or 0.0)
    )
    if gate.name == "speedup" and is_uncertain:
        return "Release again on a quieter host, or measure longer with the parameter measure_max_s"
    if gate.name in ("speedup", "p95_ms"):
        return "Release again with tuning, or with another latency limit"
    if gate.name.startswith("champion"):
        return "Compare the figures of both in the report. Release again with another champion_margin, or without auto"
    if gate.name in ("provider", "latency"):
        return "Read the reasons, correct the worker, and release again"
    if gate.name.startswith("runtime_"):
        return "Export with an older opset, or remove this version from the parameter target_runtimes"
    if gate.name == "check":
        findings = report.check.findings if report.check else ()
        fix = next((finding.fix for finding in findings if finding.severity == "error" and finding.fix), None)
        return f"Correct it with {fix}" if fix else "Correct the model, and train or log it again"
    if gate.name == "invented_inputs":
        return "Check the outputs on the inputs that the report lists"
    at = report.benchmark.parity.divergence if report.benchmark else None
    if at is not None and at.node is not None:
        module = f" of the module {at.module!r}" if at.module else ""
        return f"Look at the node {at.node!r} ({at.op_type}){module}: the difference begins there"
    return "Compare the outputs in the folder reproduction of the training run, or release again with other limits"


def _lower_article(text: str) -> str:
    return text[0].lower() + text[1:] if text.startswith(("The ", "A ", "An ", "Nothing ")) else text


def _sentence(text: str) -> str:
    """Return a text on one line without Markdown's code marks, with a full stop at its end."""
    line = shorten(text.replace("`", "'"), _SENTENCE_CHARACTERS)
    return line if line.endswith((".", "…", "!", "?")) else f"{line}."
