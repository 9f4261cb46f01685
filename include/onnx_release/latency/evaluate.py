"""What measured speeds mean for a release: the budget's verdict, and what a reader has to know beside it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from onnx_release.errors import Refused
from onnx_release.limits import CPU_WAIT_SHARE_MAX, LatencyBudget, MeasurePlan
from onnx_release.records import BatchLatency, HostInfo, LatencyReport

_ROUNDS_LEAST = 10

Verdict = Literal["goal", "met", "missed", "inconclusive"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under which conditions both sides were timed."""

    sha256: str
    threads: int
    device: str
    providers_requested: tuple[str, ...]
    providers_active: tuple[str, ...]
    host: HostInfo


def require_sane(budget: LatencyBudget, plan: MeasurePlan) -> None:
    """Raise `Refused` naming every number that no measurement could be made or judged by."""
    rules = {
        f"batch_size is {budget.batch_size}, not 1 or more": budget.batch_size >= 1,
        f"speedup_min is {budget.speedup_min}, not above 0": 0 < budget.speedup_min < math.inf,
        f"speedup_goal is {budget.speedup_goal}, not above 0": 0 < budget.speedup_goal < math.inf,
        f"p95_max_ms is {budget.p95_max_ms}, not above 0": budget.p95_max_ms is None or budget.p95_max_ms > 0,
        f"threads is {plan.threads}, not 1 or more": plan.threads is None or plan.threads >= 1,
        f"warmup_rounds is {plan.warmup_rounds}, not 0 or more": plan.warmup_rounds >= 0,
        # A bootstrap over fewer rounds claims intervals that are far too narrow.
        f"rounds_min is {plan.rounds_min}, not {_ROUNDS_LEAST} or more": plan.rounds_min >= _ROUNDS_LEAST,
        f"measure_min_s is {plan.measure_min_s}, not 0 or more": 0 <= plan.measure_min_s < math.inf,
        f"measure_max_s is {plan.measure_max_s}, not above 0": 0 < plan.measure_max_s < math.inf,
        f"reported_max_s is {plan.reported_max_s}, not above 0": 0 < plan.reported_max_s < math.inf,
        f"confidence is {plan.confidence}, not from 0.5 to below 1": 0.5 <= plan.confidence < 1,
        f"bootstrap_samples is {plan.bootstrap_samples}, not 100 or more": plan.bootstrap_samples >= 100,
        f"interval_width_max is {plan.interval_width_max}, not above 0": plan.interval_width_max > 0,
    }
    if wrong := [text for text, holds in rules.items() if not holds]:
        raise Refused("The latency parameters", "; ".join(wrong), "Correct them in the release's parameters.")


def evaluate_latency(batches: Sequence[BatchLatency], budget: LatencyBudget, conditions: Conditions) -> LatencyReport:
    """Hold what was measured against the budget; only what the budget may excuse becomes a warning under ``warn``."""
    served = next((batch for batch in batches if batch.batch_size == budget.batch_size), None)
    verdict, misses = _judge_served(served, budget)
    invalid = _invalid(served, budget, conditions)
    warn = budget.on_miss == "warn"
    failures = [*invalid, *([] if warn else misses)]
    warnings = [*(misses if warn else []), *_remarks(batches, verdict, budget)]
    return LatencyReport(
        sha256=conditions.sha256,
        passed=not failures,
        verdict="missed" if invalid else verdict,
        batches=tuple(batches),
        budget=budget.to_dict(),
        threads=conditions.threads,
        device=conditions.device,
        providers_requested=conditions.providers_requested,
        providers_active=conditions.providers_active,
        host=conditions.host,
        failures=tuple(failures),
        warnings=tuple(warnings),
    )


def _judge_served(served: BatchLatency | None, budget: LatencyBudget) -> tuple[Verdict, list[str]]:
    if served is None:
        return "missed", []
    what = f"speedup at batch {served.batch_size} is {_interval(served)}"
    p95_ms = served.onnxruntime.p95_ms
    misses = []
    if budget.p95_max_ms is not None and not p95_ms <= budget.p95_max_ms:
        misses.append(f"p95 at batch {served.batch_size} is {p95_ms:.3g} ms, above {budget.p95_max_ms:g} ms")
    if not served.speedup_high >= budget.speedup_min:
        misses.append(f"{what}, below the required {budget.speedup_min:g}")
    if misses:
        return "missed", misses
    # A wide interval whose low end is above the limit answers the question; how wide it is stands in the remarks.
    if served.rounds < _ROUNDS_LEAST or not served.speedup_low >= budget.speedup_min:
        why = _why_inconclusive(served)
        return "inconclusive", [f"{what}: inconclusive against the required {budget.speedup_min:g}, {why}"]
    return ("goal" if served.speedup_low >= budget.speedup_goal else "met"), []


def _why_inconclusive(served: BatchLatency) -> str:
    after = f"after {served.rounds} rounds in {served.measured_s:.3g} s"
    if served.rounds < _ROUNDS_LEAST:
        return f"with fewer than {_ROUNDS_LEAST} rounds {after}; raise measure_max_s"
    return f"which the interval straddles {after}; measure on a quieter host, or raise measure_max_s"


def _invalid(served: BatchLatency | None, budget: LatencyBudget, conditions: Conditions) -> list[str]:
    """Return why the measurement itself does not count, whatever the budget's policy."""
    found = []
    if served is None:
        found.append(f"the serving batch size {budget.batch_size} was not measured")
    requested, active = conditions.providers_requested, conditions.providers_active
    if requested[:1] != active[:1]:
        found.append(f"ONNX Runtime ran on {', '.join(active) or 'nothing'}, not on {', '.join(requested)} as asked")
    return found


def _remarks(batches: Sequence[BatchLatency], verdict: Verdict, budget: LatencyBudget) -> list[str]:
    """Return what makes a figure less than it looks; none of it changes a verdict."""
    told = {budget.batch_size} if verdict in ("inconclusive", "missed") else set()
    remarks = [
        f"batch {b.batch_size}: the speedup {_interval(b)} is uncertain after {b.rounds} rounds in {b.measured_s:.3g} s"
        for b in batches
        if not b.conclusive and b.batch_size not in told
    ]
    remarks += [
        f"batch {b.batch_size}: the process waited {b.cpu_wait_share:.0%} of its time for a CPU; "
        "that slows PyTorch more, so the speedup flatters ONNX Runtime: measure again on a quiet host"
        for b in batches
        if b.cpu_wait_share is not None and b.cpu_wait_share > CPU_WAIT_SHARE_MAX
    ]
    return remarks


def _interval(batch: BatchLatency) -> str:
    return f"{batch.speedup:.2f} [{batch.speedup_low:.2f}, {batch.speedup_high:.2f}]"
