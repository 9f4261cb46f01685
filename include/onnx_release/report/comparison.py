"""Comparison of two released models: the facts of their reports, and their speeds."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from onnx_release.records import BatchLatency, ChampionComparison, LatencyReport, ReleaseReport
from onnx_release.report.numbers import size_text, three_digits

_HIDDEN_SHARE = 0.01
# A wider range of times and speedups is not a measurement.
_RANGE_MAX = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """One line of a comparison."""

    name: str
    before: str
    after: str
    verdict: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """Two released models.

    Attributes:
        sentence: The answer to the question if the later one is faster.
        trust: The reason why the answer can be trusted, or cannot.
        is_comparable: False for models with other inputs or outputs.
        rows: The values that differ.
        equal: The names of the values that do not.
    """

    sentence: str
    trust: str
    is_comparable: bool
    rows: tuple[Difference, ...]
    equal: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """Time per call of the earlier version over that of the later one, with an interval.

    Above 1 the later version is faster. The numbers come from reports and are not trusted.
    """

    value: float
    low: float
    high: float
    is_settled: bool = True

    @property
    def verdict(self) -> str:
        """One of ``faster``, ``slower``, ``no difference shown`` and ``not settled``."""
        if not self.is_settled or not 0 < self.low <= self.value <= self.high < math.inf:
            return "not settled"
        if self.low <= 1 <= self.high:
            return "no difference shown"
        return "faster" if self.low > 1 else "slower"

    @property
    def text(self) -> str:
        """The number with its interval, empty for a measurement that is not settled."""
        if self.verdict == "not settled":
            return ""
        low, high = _digits(self.low), _digits(self.high)
        return f"{_digits(self.value)} times as fast [{low}, {high}]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Speed:
    """Times per call at one batch size, as the median in ms, and their ratio."""

    batch_size: int
    before_ms: float
    after_ms: float
    ratio: Ratio


@dataclass(frozen=True, slots=True, kw_only=True)
class Speeds:
    """Speeds at every batch size that both models were measured at.

    Attributes:
        rows: The speeds, the smallest batch size first.
        served: The serving batch size, if it is known.
        is_together: True for measurements in the same rounds.
    """

    rows: tuple[Speed, ...]
    served: int | None
    is_together: bool


def compare(before: ReleaseReport, after: ReleaseReport, names: tuple[str, str], speeds: Speeds) -> Comparison:
    """Compare two reports.

    Args:
        before: The report of the earlier model.
        after: The report of the later one.
        names: The names of both.
        speeds: Their speeds: `reported_speeds` or `measured_speeds`.
    """
    one, other = names
    facts = _facts(before), _facts(after)
    rows = [
        Difference(name=name, before=text, after=facts[1][name], verdict=_change(before, after, name))
        for name, text in facts[0].items()
        if name in facts[1]
    ]
    is_comparable = all(facts[0][side] == facts[1][side] for side in ("inputs", "outputs"))
    shown = speeds.rows if is_comparable else ()
    if not is_comparable:
        sentence, trust = f"{one} and {other} are not the same model.", "Their inputs or outputs differ."
    elif not shown:
        sentence, trust = f"The speed of {one} or {other} was not measured.", ""
    else:
        # Without the serving batch size the smallest one counts.
        served = next((speed for speed in shown if speed.batch_size == speeds.served), shown[0])
        sentence = _answer(one, other, served.batch_size, served.ratio)
        trust = _trust(before, after, one, is_together=speeds.is_together)
    return Comparison(
        sentence=sentence,
        trust=trust,
        is_comparable=is_comparable,
        rows=(*map(_speed_row, shown), *(row for row in rows if row.before != row.after)),
        equal=tuple(row.name for row in rows if row.before == row.after),
    )


def _answer(one: str, other: str, batch_size: int, ratio: Ratio) -> str:
    if ratio.verdict == "not settled":
        return f"A measurement is not settled: it shows no difference between {one} and {other}."
    if ratio.verdict == "no difference shown":
        return f"No difference in speed is shown: {other} is {ratio.text} at batch {batch_size}."
    return f"{other} is {ratio.verdict} than {one}: {ratio.text} at batch {batch_size}."


def _latency(report: ReleaseReport) -> LatencyReport | None:
    return report.benchmark.latency if report.benchmark else None


def _batches(report: ReleaseReport) -> dict[int, BatchLatency]:
    latency = _latency(report)
    return {batch.batch_size: batch for batch in latency.batches} if latency else {}


def _champion(after: ReleaseReport, version: int) -> ChampionComparison | None:
    """Return the comparison with a version in the same rounds, if the release made one."""
    found = after.benchmark.champion if after.benchmark else None
    return found if found and not found.problem and found.version == version else None


def reported_speeds(before: ReleaseReport, after: ReleaseReport, version: int) -> Speeds:
    """Return the speeds in the reports of two releases.

    Args:
        before: The report of the earlier version.
        after: The report of the later version. It has the times of both if the earlier one was its champion.
        version: The number of the earlier version.
    """
    earlier, later = _batches(before), _batches(after)
    latency = _latency(after)
    served = latency.budget.get("batch_size") if latency else None
    if _champion(after, version):
        together = tuple(
            Speed(
                batch_size=size,
                before_ms=times.times.p50_ms,
                after_ms=batch.candidate.p50_ms,
                ratio=Ratio(value=times.speed, low=times.speed_low, high=times.speed_high, is_settled=batch.conclusive),
            )
            for size, batch in sorted(later.items())
            if (times := batch.champion)
        )
        if together:
            return Speeds(rows=together, served=served, is_together=True)
    apart = tuple(
        Speed(
            batch_size=size,
            before_ms=earlier[size].candidate.p50_ms,
            after_ms=later[size].candidate.p50_ms,
            ratio=_apart(earlier[size], later[size]),
        )
        for size in sorted(set(earlier) & set(later))
    )
    return Speeds(rows=apart, served=served, is_together=False)


def measured_speeds(batches: Iterable[BatchLatency], served: int | None) -> Speeds:
    """Return the speeds of a measurement with the earlier model as the reference, the later one as the candidate."""
    rows = tuple(
        Speed(
            batch_size=batch.batch_size,
            before_ms=batch.reference.p50_ms,
            after_ms=batch.candidate.p50_ms,
            ratio=Ratio(
                value=batch.speedup, low=batch.speedup_low, high=batch.speedup_high, is_settled=batch.conclusive
            ),
        )
        for batch in batches
    )
    return Speeds(rows=rows, served=served, is_together=True)


def _apart(before: BatchLatency, after: BatchLatency) -> Ratio:
    """Return the ratio of two separate measurements. Each median is as uncertain as the speedup of its release."""
    used = [
        value
        for batch in (before, after)
        for value in (batch.candidate.p50_ms, batch.speedup, batch.speedup_low, batch.speedup_high)
    ]
    if not (min(used) > 0 and max(used) / min(used) < _RANGE_MAX):
        return Ratio(value=1.0, low=1.0, high=1.0, is_settled=False)
    value = before.candidate.p50_ms / after.candidate.p50_ms
    low, high = (
        math.exp(math.hypot(*(math.log(edge / batch.speedup) for edge, batch in edges)))
        for edges in (
            ((before.speedup_low, before), (after.speedup_low, after)),
            ((before.speedup_high, before), (after.speedup_high, after)),
        )
    )
    return Ratio(value=value, low=value / low, high=value * high, is_settled=before.conclusive and after.conclusive)


def _trust(before: ReleaseReport, after: ReleaseReport, one: str, *, is_together: bool) -> str:
    if is_together:
        return "Both were measured in the same rounds on the same host."
    hosts = [(latency.host.cpu_model, latency.threads) for latency in map(_latency, (before, after)) if latency]
    kind = "on different hosts" if len(set(hosts)) > 1 else "at different times"
    return (
        f"They were measured {kind}, so a small difference means little. Give {one} the alias champion and release the "
        "later training run again with promotion = approve: then both are measured in the same rounds."
    )


def _speed_row(speed: Speed) -> Difference:
    return Difference(
        name=f"time per call, batch {speed.batch_size}",
        before=f"{_digits(speed.before_ms)} ms",
        after=f"{_digits(speed.after_ms)} ms",
        verdict=f"{speed.ratio.verdict}: {speed.ratio.text}".removesuffix(": "),
    )


def _digits(number: float | None) -> str:
    return "" if number is None or not math.isfinite(number) else three_digits(number)


def _facts(report: ReleaseReport) -> dict[str, str]:
    """Return the compared values as texts, by their names."""
    artifact, check = report.artifact, report.check
    if artifact is None:
        return {"inputs": "", "outputs": ""}
    found = {
        side: ", ".join(f"{one.name} {one.dtype} [{', '.join(map(str, one.shape))}]" for one in specs)
        for side, specs in (("inputs", artifact.inputs), ("outputs", artifact.outputs))
    }
    found |= {"size": size_text(artifact.size_bytes), "precision": str(artifact.precision)}
    found |= {"opset": str(artifact.opset), "export": str(artifact.strategy), "variant": artifact.variant or "none"}
    found["nodes"] = str(check.node_count) if check and check.node_count else ""
    found["worst MAE"] = _digits(_mae(report))
    return found


def _mae(report: ReleaseReport) -> float | None:
    worst = report.benchmark.parity.worst_per_output().values() if report.benchmark else ()
    return max((one.mae for one in worst if one.mae is not None), default=None)


def _change(before: ReleaseReport, after: ReleaseReport, name: str) -> str:
    """Return the change of a size in percent, empty for other values."""
    if name != "size" or not before.artifact or not after.artifact or not before.artifact.size_bytes:
        return ""
    share = after.artifact.size_bytes / before.artifact.size_bytes - 1
    return f"{100 * share:+.0f} %" if abs(share) >= _HIDDEN_SHARE else "less than 1 %"
