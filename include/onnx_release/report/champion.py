"""Gates of a candidate against the champion, and the verdict on their comparison."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_release.records import ChampionComparison, ChampionLatency, Gate, LatencyReport, Verdict
from onnx_release.report.numbers import limit_text, measured_text, three_digits

_ROUNDS_MIN = 10


def champion_speed(champion: ChampionLatency) -> str:
    """Return the speed relative to the champion as text. An interval around 1 shows no difference."""
    low, high = three_digits(champion.speed_low), three_digits(champion.speed_high)
    if champion.speed_low <= 1.0 <= champion.speed_high:
        return f"no difference shown, {low} to {high} times as fast"
    verdict = "faster" if champion.speed_low > 1.0 else "slower"
    return f"{verdict}: {three_digits(champion.speed)} times as fast [{low}, {high}]"


def champion_gates(compared: ChampionComparison, latency: LatencyReport) -> tuple[Gate, ...]:
    """Return the gates of speed, size and task metric against the champion. An impossible comparison has one gate."""
    worse: Verdict = "refused" if compared.on_worse == "refuse" else "warning"
    if compared.problem:
        return (Gate(name="champion", subject=f"version {compared.version}", verdict=worse),)
    return tuple(_gates(compared, latency, worse))


def judge_champion(compared: ChampionComparison, latency: LatencyReport) -> ChampionComparison:
    """Return the comparison with its failures and warnings.

    A candidate that is worse fails with `on_worse` = ``refuse``, and a speed that is not settled with `on_unsettled`.
    """
    failures: list[str] = []
    warnings: list[str] = []
    for gate in champion_gates(compared, latency):
        if gate.verdict == "passed":
            continue
        place = {"champion_speed": f" at {gate.subject}", "champion_metric": f" of {gate.subject}"}.get(gate.name, "")
        text = f"the {gate.name.removeprefix('champion_')}{place} is {measured_text(gate)}, not {limit_text(gate)}"
        if compared.problem:
            text = f"it was not measured: {compared.problem}"
        unsettled = gate.verdict == "not settled"
        fails = compared.on_unsettled == "refuse" if unsettled else gate.verdict == "refused"
        remark = ", and not settled" if unsettled else ""
        (failures if fails else warnings).append(f"against version {compared.version}, {text}{remark}")
    return compared.replace(passed=not failures, failures=tuple(failures), warnings=tuple(warnings))


def _gates(compared: ChampionComparison, latency: LatencyReport, worse: Verdict) -> Iterator[Gate]:
    batch_size = latency.budget.get("batch_size")
    served = next((one for one in latency.batches if one.batch_size == batch_size), None)
    subject = f"batch {batch_size}"
    if served is None or served.champion is None:
        yield Gate(name="champion_speed", subject=subject, verdict=worse)
    else:
        yield _speed_gate(served.champion, served.rounds, compared, subject).replace(
            **({"verdict": worse} if served.champion.speed_high < 1.0 - compared.margin else {})
        )
    ratio = compared.size_bytes / max(1, compared.champion_size_bytes or 1)
    limit = 1.0 + compared.margin
    yield Gate(
        name="champion_size", subject="file", measured=ratio, limit=limit, unit="x", sense="at most",
        verdict="passed" if ratio <= limit else worse,
    )  # fmt: skip
    for metric in compared.metrics:
        kept = metric.loss is not None and metric.loss <= compared.metric_loss_max
        yield Gate(
            name="champion_metric", subject=metric.output, measured=metric.loss, limit=compared.metric_loss_max,
            sense="at most", verdict="passed" if kept else worse,
        )  # fmt: skip


def _speed_gate(champion: ChampionLatency, rounds: int, compared: ChampionComparison, subject: str) -> Gate:
    limit = 1.0 - compared.margin
    settled = rounds >= _ROUNDS_MIN and champion.speed_low >= limit
    return Gate(
        name="champion_speed", subject=subject, measured=champion.speed, low=champion.speed_low,
        high=champion.speed_high, limit=limit, unit="x", sense="at least",
        verdict="passed" if settled else "not settled",
    )  # fmt: skip
