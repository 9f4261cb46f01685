"""Comparison of two versions of one model, from the reports of their releases."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from airflow_onnx.ui import numbers
from onnx_release.records import BatchLatency, ChampionComparison, LatencyReport, ReleaseReport

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
    """Two versions of one model.

    :param sentence: the answer to the question if the later one is faster.
    :param trust: the reason why the answer can be trusted, or cannot.
    :param is_comparable: False for versions with other inputs or outputs.
    :param rows: the values that differ.
    :param equal: the names of the values that do not.
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
        low, high = numbers.digits(self.low), numbers.digits(self.high)
        return f"{numbers.digits(self.value)} times as fast [{low}, {high}]"


def compare(before: ReleaseReport, after: ReleaseReport, versions: tuple[int, int]) -> Comparison:
    """Compare the reports of two versions, the earlier one first."""
    one, other = (f"v{version}" for version in versions)
    facts = _facts(before), _facts(after)
    rows = [
        Difference(name=name, before=text, after=facts[1][name], verdict=_change(before, after, name))
        for name, text in facts[0].items()
        if name in facts[1]
    ]
    is_comparable = all(facts[0][side] == facts[1][side] for side in ("inputs", "outputs"))
    speeds, together = _speeds(before, after, versions[0])
    if not is_comparable:
        sentence, trust, speeds = f"{one} and {other} are not the same model.", "Their inputs or outputs differ.", []
    elif not speeds:
        sentence, trust = f"The speed of {one} or {other} was not measured.", ""
    else:
        served = _served(after, speeds)
        sentence = _answer(one, other, *served)
        trust = _trust(before, after, one, is_together=together)
    return Comparison(
        sentence=sentence,
        trust=trust,
        is_comparable=is_comparable,
        rows=(*_speed_rows(before, after, speeds, versions[0]), *(row for row in rows if row.before != row.after)),
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


def _speeds(before: ReleaseReport, after: ReleaseReport, version: int) -> tuple[list[tuple[int, Ratio]], bool]:
    """Return the ratio at each batch size, and True if both versions were measured in the same rounds."""
    batches = _batches(after)
    if _champion(after, version):
        together = [
            (size, Ratio(value=times.speed, low=times.speed_low, high=times.speed_high, is_settled=batch.conclusive))
            for size, batch in sorted(batches.items())
            if (times := batch.champion)
        ]
        if together:
            return together, True
    earlier = _batches(before)
    shared = sorted(set(earlier) & set(batches))
    return [(size, _apart(earlier[size], batches[size])) for size in shared], False


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


def _served(report: ReleaseReport, speeds: list[tuple[int, Ratio]]) -> tuple[int, Ratio]:
    """Return the ratio at the serving batch size, else at the smallest one."""
    latency = _latency(report)
    wanted = latency.budget.get("batch_size") if latency else None
    return next((pair for pair in speeds if pair[0] == wanted), speeds[0])


def _trust(before: ReleaseReport, after: ReleaseReport, one: str, *, is_together: bool) -> str:
    if is_together:
        return "Both were measured in the same rounds on the same host."
    hosts = [(latency.host.cpu_model, latency.threads) for latency in map(_latency, (before, after)) if latency]
    kind = "on different hosts" if len(set(hosts)) > 1 else "at different times"
    return (
        f"They were measured {kind}, so a small difference means little. Give {one} the alias champion and release the "
        "later training run again with promotion = approve: then both are measured in the same rounds."
    )


def _speed_rows(
    before: ReleaseReport, after: ReleaseReport, speeds: list[tuple[int, Ratio]], version: int
) -> Iterator[Difference]:
    earlier, later = _batches(before), _batches(after)
    is_together = _champion(after, version) is not None
    for size, ratio in speeds:
        batch = later[size]
        times = batch.champion.times if is_together and batch.champion else earlier[size].candidate
        yield Difference(
            name=f"time per call, batch {size}",
            before=f"{numbers.digits(times.p50_ms)} ms",
            after=f"{numbers.digits(batch.candidate.p50_ms)} ms",
            verdict=f"{ratio.verdict}: {ratio.text}".removesuffix(": "),
        )


def _facts(report: ReleaseReport) -> dict[str, str]:
    """Return the compared values as texts, by their names."""
    artifact, check = report.artifact, report.check
    if artifact is None:
        return {"inputs": "", "outputs": ""}
    found = {
        side: ", ".join(f"{one.name} {one.dtype} [{', '.join(map(str, one.shape))}]" for one in specs)
        for side, specs in (("inputs", artifact.inputs), ("outputs", artifact.outputs))
    }
    found |= {"size": numbers.size(artifact.size_bytes), "precision": str(artifact.precision)}
    found |= {"opset": str(artifact.opset), "export": str(artifact.strategy), "variant": artifact.variant or "none"}
    found["nodes"] = str(check.node_count) if check and check.node_count else ""
    found["worst MAE"] = numbers.digits(_mae(report))
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
