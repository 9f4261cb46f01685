"""Latency verdict: the speedup interval and the 95th percentile against the budget."""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from typing import Literal

from onnx_release.errors import LatencyRefused
from onnx_release.limits import CPU_WAIT_SHARE_MAX, LatencyBudget, MeasurePlan
from onnx_release.records import BatchLatency, Gate, LatencyReport
from onnx_release.records.gates import Verdict

_ROUNDS_MIN = 10
_CONFIDENCE_MAX = 0.99

_WORST_FIRST: tuple[Literal["refused", "warning", "not settled"], ...] = ("refused", "warning", "not settled")


def require_valid_latency_options(budget: LatencyBudget, plan: MeasurePlan) -> None:
    """Refuse numbers that nothing can be measured by or compared with.

    Raises:
        LatencyRefused: `invalid_latency_options`; the message names every invalid number.
    """
    rules = {
        f"batch_size is {budget.batch_size}, not 1 or more": budget.batch_size >= 1,
        f"speedup_min is {budget.speedup_min}, not above 0": 0 < budget.speedup_min < math.inf,
        f"speedup_goal is {budget.speedup_goal}, not above 0": 0 < budget.speedup_goal < math.inf,
        f"p95_max_ms is {budget.p95_max_ms}, not above 0": budget.p95_max_ms is None or budget.p95_max_ms > 0,
        f"threads is {plan.threads}, not 1 or more": plan.threads is None or plan.threads >= 1,
        f"warmup_rounds is {plan.warmup_rounds}, not 0 or more": plan.warmup_rounds >= 0,
        # Fewer rounds have no interval of the confidence that several looks need.
        f"rounds_min is {plan.rounds_min}, not {_ROUNDS_MIN} or more": plan.rounds_min >= _ROUNDS_MIN,
        f"measure_min_s is {plan.measure_min_s}, not 0 or more": 0 <= plan.measure_min_s < math.inf,
        f"measure_max_s is {plan.measure_max_s}, not above 0": 0 < plan.measure_max_s < math.inf,
        f"reported_max_s is {plan.reported_max_s}, not above 0": 0 < plan.reported_max_s < math.inf,
        f"confidence is {plan.confidence}, not from 0.5 to {_CONFIDENCE_MAX}": 0.5
        <= plan.confidence
        <= _CONFIDENCE_MAX,
        f"interval_width_max is {plan.interval_width_max}, not above 0": plan.interval_width_max > 0,
    }
    if wrong := [text for text, valid in rules.items() if not valid]:
        raise LatencyRefused(
            "The latency parameters",
            f"contain invalid numbers: {'; '.join(wrong)}",
            "Correct them in the parameters of the release.",
            code="invalid_latency_options",
        )


def evaluate_latency(measured: LatencyReport, budget: LatencyBudget) -> LatencyReport:
    """Compare the measured latencies with the budget.

    `budget.on_miss` can turn a missed limit into a warning. A serving batch size that was not measured and another
    execution provider are always failures.

    Args:
        measured: the measurements and their conditions, without a verdict.
        budget: the limits at the serving batch size.

    Returns:
        The report with its budget, verdict, failures and warnings.
    """
    found = latency_gates(measured, budget)
    missed = sorted(
        (gate for gate in found if gate.verdict != "passed"), key=lambda gate: gate.verdict == "not settled"
    )
    invalid = [_miss(gate, measured, budget) for gate in missed if _is_invalid(gate)]
    misses = [_miss(gate, measured, budget) for gate in missed if not _is_invalid(gate)]
    warn = budget.on_miss != "refuse"
    failures = [*invalid, *([] if warn else misses)]
    verdicts = {gate.verdict for gate in found}
    verdict = "refused" if invalid else next((one for one in _WORST_FIRST if one in verdicts), "passed")
    served = _served(measured, budget)
    explained = {budget.batch_size} if verdict != "passed" else set()
    return measured.replace(
        passed=not failures,
        verdict=verdict,
        goal_reached=verdict == "passed" and served is not None and served.speedup_low >= budget.speedup_goal,
        budget=budget.to_dict(),
        failures=tuple(failures),
        warnings=(*(misses if warn else ()), *_remarks(measured.batches, explained)),
    )


def latency_gates(measured: LatencyReport, budget: LatencyBudget) -> tuple[Gate, ...]:
    """Return the gates of the serving batch size. The gate of the execution provider is there only if it fails."""
    served = _served(measured, budget)
    subject = f"batch {budget.batch_size}"
    found = []
    active, requested = measured.providers_active, measured.providers_requested
    # ONNX Runtime falls back to another provider without an error; its latency is of no use then.
    if active[:1] != requested[:1]:
        found.append(Gate(name="provider", subject=", ".join(requested), verdict="refused"))
    if served is None:
        return (*found, Gate(name="speedup", subject=subject, verdict="not measured"))
    missed: Verdict = "warning" if budget.on_miss != "refuse" else "refused"
    settled = served.rounds >= _ROUNDS_MIN and served.speedup_low >= budget.speedup_min
    found.append(
        Gate(
            name="speedup",
            subject=subject,
            measured=served.speedup,
            low=served.speedup_low,
            high=served.speedup_high,
            limit=budget.speedup_min,
            unit="x",
            sense="at least",
            # A wide interval above the limit settles the comparison; a remark reports its width.
            verdict="passed" if settled else missed if not served.speedup_high >= budget.speedup_min else "not settled",
        )
    )
    if budget.p95_max_ms is not None:
        p95_ms = served.candidate.p95_ms
        verdict: Verdict = "passed" if p95_ms <= budget.p95_max_ms else missed
        found.append(
            Gate(
                name="p95_ms",
                subject=subject,
                measured=p95_ms,
                limit=budget.p95_max_ms,
                unit="ms",
                sense="at most",
                verdict=verdict,
            )
        )
    return tuple(found)


def _served(measured: LatencyReport, budget: LatencyBudget) -> BatchLatency | None:
    return next((batch for batch in measured.batches if batch.batch_size == budget.batch_size), None)


def _is_invalid(gate: Gate) -> bool:
    """Return True for a gate that refuses the model under every budget."""
    return gate.name == "provider" or gate.verdict == "not measured"


def _miss(gate: Gate, measured: LatencyReport, budget: LatencyBudget) -> str:
    """Return the text of a gate that did not pass."""
    served = _served(measured, budget)
    if gate.name == "provider":
        return f"ONNX Runtime ran on {', '.join(measured.providers_active) or 'nothing'}, not on {gate.subject}"
    if served is None:
        return f"the serving batch size {budget.batch_size} was not measured"
    if gate.name == "p95_ms":
        return f"p95 at {gate.subject} is {gate.measured:.3g} ms, above {gate.limit:g} ms"
    if gate.verdict != "not settled":
        found = f"{served.speedup:.2f} [{served.speedup_low:.2f}, {served.speedup_high:.2f}]"
        return f"speedup at {gate.subject} is {found}, below the required {budget.speedup_min:g}"
    duration = f"after {served.rounds} rounds in {served.measured_s:.3g} s"
    if served.rounds < _ROUNDS_MIN:
        reason = f"fewer than {_ROUNDS_MIN} rounds were measured ({duration}); raise measure_max_s"
    else:
        reason = f"the interval still contains it {duration}; lower speedup_min, or measure longer on a quieter host"
    ends = f"{served.speedup_low:.2f} to {served.speedup_high:.2f}"
    return f"speedup at {gate.subject} is {ends}, not settled against the required {budget.speedup_min:g}: {reason}"


def _remarks(batches: Sequence[BatchLatency], explained: Container[int]) -> list[str]:
    """Return the reasons to trust a measurement less. They do not change the verdict.

    Args:
        batches: the measurements.
        explained: batch sizes whose interval is part of the verdict.
    """
    remarks = [
        f"batch {b.batch_size}: the speedup is uncertain after {b.rounds} rounds in {b.measured_s:.3g} s, "
        f"{b.speedup_low:.2f} to {b.speedup_high:.2f}"
        for b in batches
        if not b.conclusive and b.batch_size not in explained
    ]
    remarks += [
        f"batch {b.batch_size}: the process waited {b.cpu_wait_share:.0%} of its time for a CPU; that slows PyTorch "
        "more and makes the speedup too high; measure again on a quiet host"
        for b in batches
        if b.cpu_wait_share is not None and b.cpu_wait_share > CPU_WAIT_SHARE_MAX
    ]
    return remarks
