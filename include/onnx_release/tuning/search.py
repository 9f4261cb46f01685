"""Search for the fastest accepted variant, within a time limit."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from onnx_release.errors import Refused, Transient
from onnx_release.latency.host_lock import HostLock
from onnx_release.limits import ELIMINATION_MAX_S, MODEL_FILE, TUNE_BUILD_SHARE
from onnx_release.records import Precision, TuneVariant
from onnx_release.runners import Runner
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.text import shorten
from onnx_release.tuning.acceptance import AcceptanceTest
from onnx_release.tuning.build import VariantBuilder
from onnx_release.tuning.memory import available_bytes, session_bytes
from onnx_release.tuning.options import TuneOptions
from onnx_release.tuning.race import Race, Timing, find_slower, select_fastest
from onnx_release.tuning.variants import PLAIN_EXPORT, SkippedVariant, Variant, with_fewer_threads

_log = logging.getLogger(__name__)
PYTORCH = "PyTorch"
# Longest reason in a log line. The report has all of it.
_REASON_MAX_CHARACTERS = 100
# The final takes at least this long, so the report has times.
_FINAL_MIN_S = 1.0
# Calls of the plain export in the shortest elimination: three rounds of two runners, each with an untimed call.
_ELIMINATION_CALLS_MIN = 12


@dataclass(slots=True)
class TimeLimit:
    """Time limit of one tuning, in seconds. The time that it waits for the host's lock does not count."""

    max_s: float
    lock: HostLock = field(default_factory=HostLock)
    began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_s(self) -> float:
        """The time since the start."""
        return time.perf_counter() - self.began - self.lock.waited_s

    @property
    def left_s(self) -> float:
        """The time until the limit."""
        return max(0.0, self.max_s - self.elapsed_s)

    def allows_build(self, expected_s: float) -> bool:
        """Return True if a build of this duration leaves enough time for the race."""
        return self.elapsed_s + expected_s <= self.max_s * TUNE_BUILD_SHARE


@dataclass(frozen=True, slots=True, kw_only=True)
class AcceptedVariant:
    """A variant that passed the acceptance test, with its folder and the size of its files."""

    variant: Variant
    folder: Path
    size_bytes: int


@dataclass(slots=True, kw_only=True)
class Search:
    """State of one search.

    `records` are the results so far, by name and in the order of the report. `accepted` are the variants that can still
    be chosen. `notes` are the limitations of the search.
    """

    builder: VariantBuilder
    acceptance: AcceptanceTest
    race: Race
    options: TuneOptions
    time_limit: TimeLimit
    records: dict[str, TuneVariant] = field(default_factory=dict)
    accepted: dict[str, AcceptedVariant] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self, planned: Iterable[Variant | SkippedVariant]) -> AcceptedVariant | None:
        """Return the chosen variant, or None if the plain export is chosen."""
        self.records[PYTORCH] = TuneVariant(
            name=PYTORCH, precision=Precision.EXACT, outcome="reference", task_metrics=self.acceptance.task_metrics
        )
        if self.acceptance.blocked:
            self.notes.append(
                f"no variant was tried, because PyTorch itself fails: {'; '.join(self.acceptance.blocked)}"
            )
            return None
        self._try(PLAIN_EXPORT)
        if self.accepted.pop(PLAIN_EXPORT.name, None) is None:
            self.notes.append("no variant was tried, as the plain export fails the acceptance test")
            return None
        for item in planned:
            if isinstance(item, SkippedVariant):
                self._skip(item, item.reason)
            else:
                self._try_in_time(item)
        chosen = self._choose() if self.accepted else None
        self._update(chosen.variant.name if chosen else PLAIN_EXPORT.name, outcome="chosen")
        return chosen

    def _try_in_time(self, variant: Variant) -> None:
        """Try a variant, and try a refused quantization again in its careful form."""
        expected_s = self.builder.expected_s(variant)
        if not self.time_limit.allows_build(expected_s):
            self._skip(
                variant,
                f"no time: it takes about {expected_s:.0f} s after {self.time_limit.elapsed_s:.0f} s, and "
                f"{TUNE_BUILD_SHARE:.0%} of tune_max_s {self.time_limit.max_s:g} s are for builds; raise tune_max_s",
            )
            return
        self._try(variant)
        refused = self.records[variant.name].outcome == "refused"
        if refused and variant.precision is Precision.INT8 and not variant.careful:
            self._try_in_time(replace(variant, name=f"{variant.name}-careful", careful=True))

    def _skip(self, variant: Variant | SkippedVariant, reason: str) -> None:
        self.records[variant.name] = TuneVariant(
            name=variant.name, precision=variant.precision, outcome="skipped", reason=reason
        )

    def _try(self, variant: Variant) -> None:
        """Build and test a variant, and record the result."""
        began = time.perf_counter()
        _log.info(
            "Variant %s: build, at %.0f of %.0f s.", variant.name, self.time_limit.elapsed_s, self.time_limit.max_s
        )
        record = TuneVariant(
            name=variant.name,
            precision=variant.precision,
            outcome="passed",
            session_options=variant.session_options,
        )
        try:
            folder = self.builder.build(variant)
            size = sum(file.stat().st_size for file in folder.glob(f"{MODEL_FILE}*"))
            with self._open(variant, folder) as runner:
                result = self.acceptance.run(runner, self.options.benchmark.limits_for(variant.precision))
        except (Refused, Transient) as error:
            if isinstance(error, Transient) and Precision.EXACT not in self.options.precisions:
                # Without the plain export as a result, a fault of the worker would refuse the model.
                raise
            record = record.replace(outcome="failed", reason=f"{error.subject} {error.problem}")
        else:
            record = record.replace(
                outcome="refused" if result.reasons else "passed",
                reason="; ".join(result.reasons),
                measures=result.measures,
                task_metrics=result.task_metrics,
                size_bytes=size,
            )
        self.records[variant.name] = record.replace(build_s=round(time.perf_counter() - began, 3))
        cause = f": {shorten(record.reason, _REASON_MAX_CHARACTERS)}" if record.reason else ""
        _log.info("Variant %s: %s%s", variant.name, record.outcome, cause)
        if record.outcome == "passed":
            self.accepted[variant.name] = AcceptedVariant(variant=variant, folder=folder, size_bytes=size)
        elif variant.has_own_file:
            shutil.rmtree(self.builder.scratch / variant.name, ignore_errors=True)

    def _open(self, variant: Variant, folder: Path) -> OnnxRuntimeRunner:
        setup = self.builder.setup
        options = OnnxRuntimeOptions(
            threads=setup.threads,
            providers=setup.artifact.providers,
            session_options=variant.session_options,
        )
        return OnnxRuntimeRunner(folder / MODEL_FILE, options)

    def _choose(self) -> AcceptedVariant | None:
        """Time the accepted variants and return the fastest; None if none is clearly faster than the plain export."""
        with self._open(PLAIN_EXPORT, self.builder.setup.folder) as baseline:
            eliminations = self._eliminate(baseline)
            own = {name: timing for name, timing in eliminations.items() if name in self.accepted}
            for name, reason in find_slower(own).items():
                self._drop(name, f"slower: {reason}")
            timings = self._run_final(baseline, eliminations) if self.accepted else {}
        if timings and not all(timing.has_enough_rounds for timing in timings.values()):
            self.notes.append(
                f"the final had too few rounds, so the eliminations decide; tune_max_s is {self.time_limit.max_s:g}"
            )
            timings = {name: timing for name, timing in eliminations.items() if name in timings}
        for name, timing in timings.items():
            self._record_timing(name, timing)
        ranks = {name: accepted.variant.rank for name, accepted in self.accepted.items()}
        fastest = select_fastest(timings, ranks)
        for name in self.accepted.keys() & timings.keys() - {fastest}:
            timing = timings[name]
            if not timing.has_enough_rounds:
                reason = f"{timing.rounds} rounds are too few for a comparison: {timing.speedup_text}"
            elif not timing.is_faster:
                reason = f"not clearly faster than the plain export: {timing.speedup_text}"
            else:
                reason = f"not the fastest, or as fast as {fastest}, which is more exact or simpler"
            self._update(name, reason=reason)
        return self.accepted[fastest] if fastest else None

    def _eliminate(self, baseline: Runner) -> dict[str, Timing]:
        """Return the timings of PyTorch and of each variant that is not clearly slower than the plain export.

        PyTorch is last: it is only compared with, and a slow one must not use the variants' time.
        """
        timings = self._eliminate_each(baseline, dict(self.accepted))
        timings |= self._try_fewer_threads(baseline, timings)
        if self._has_time():
            with self.builder.setup.reference() as reference:
                timings |= self._time_pair(baseline, PYTORCH, reference, left=1)
        return timings

    def _has_time(self) -> bool:
        """Return True if an elimination of the fewest rounds can end in time, at the plain export's latency."""
        p50_ms = self.records[PLAIN_EXPORT.name].p50_ms or 0.0
        return self.time_limit.left_s > _ELIMINATION_CALLS_MIN * p50_ms / 1e3

    def _eliminate_each(self, baseline: Runner, accepted: dict[str, AcceptedVariant]) -> dict[str, Timing]:
        timings: dict[str, Timing] = {}
        for done, (name, one) in enumerate(accepted.items()):
            if not _fit_in_memory([one]):
                self._drop(name, "no memory for it and the plain export", outcome="skipped")
            elif not self._has_time():
                self._drop(
                    name, f"no time to compare it within tune_max_s {self.time_limit.max_s:g}", outcome="skipped"
                )
            else:
                with self._open(one.variant, one.folder) as runner:
                    found = self._time_pair(baseline, name, runner, left=len(accepted) - done)
                if found[name].is_slower:
                    self._drop(name, f"slower than the plain export: {found[name].speedup_text}")
                else:
                    timings |= found
        return timings

    def _try_fewer_threads(self, baseline: Runner, timings: dict[str, Timing]) -> dict[str, Timing]:
        """Try the fastest other model with fewer threads. A small product ends before more threads have started."""
        models = [name for name in timings if name in self.accepted and self.accepted[name].variant.has_own_file]
        setup = self.builder.setup
        if not models or setup.device != "cpu":
            return {}
        fastest = max(models, key=lambda name: timings[name].speedup.value)
        tried = []
        for variant in with_fewer_threads(self.accepted[fastest].variant, setup.threads):
            if self.time_limit.left_s > self.records[fastest].build_s and self._has_time():
                self._try(variant)
                tried.append(variant.name)
            else:
                self._skip(variant, f"no time for it within tune_max_s {self.time_limit.max_s:g}")
        return self._eliminate_each(baseline, {name: self.accepted[name] for name in tried if name in self.accepted})

    def _time_pair(self, baseline: Runner, name: str, runner: Runner, *, left: int) -> dict[str, Timing]:
        """Time one runner with the plain export, in its share of the time; half of the time is for the final.

        Args:
            baseline: the plain export.
            name: the name of the runner.
            runner: the open runner.
            left: the number of runners that are not timed yet.
        """
        seconds = min(ELIMINATION_MAX_S, self.time_limit.left_s / 2 / (left + 1))
        found = self.race.run_elimination({PLAIN_EXPORT.name: baseline, name: runner}, seconds)
        for timed, timing in found.items():
            self._record_timing(timed, timing)
        return found

    def _run_final(self, baseline: Runner, eliminations: dict[str, Timing]) -> dict[str, Timing]:
        """Time the plain export and all accepted variants in the same rounds.

        PyTorch takes part unless it is clearly slower than the plain export.
        """
        finalists: list[AcceptedVariant] = []
        for name in sorted(self.accepted, key=lambda name: -eliminations[name].speedup.value):
            if _fit_in_memory([*finalists, self.accepted[name]]):
                finalists.append(self.accepted[name])
            else:
                self._drop(name, "no memory for it and the faster variants in the final", outcome="skipped")
        seconds = max(_FINAL_MIN_S, min(self.time_limit.left_s, self.race.plan.measure_max_s))
        _log.info("Final of %d variants, at most %.0f s.", len(finalists), seconds)
        with ExitStack() as opened:
            runners: dict[str, Runner] = {PLAIN_EXPORT.name: baseline}
            if PYTORCH in eliminations and not eliminations[PYTORCH].is_slower:
                runners[PYTORCH] = opened.enter_context(self.builder.setup.reference())
            for one in finalists:
                runners[one.variant.name] = opened.enter_context(self._open(one.variant, one.folder))
            return self.race.run_final(runners, seconds)

    def _record_timing(self, name: str, timing: Timing) -> None:
        _log.info("Variant %s: speedup %s.", name, timing.speedup_text)
        self.records[name] = self.records[name].replace(
            speedup=timing.speedup.value,
            speedup_low=timing.speedup.low,
            speedup_high=timing.speedup.high,
            p50_ms=timing.side.p50_ms,
            p95_ms=timing.side.p95_ms,
            rounds=timing.rounds,
        )

    def _drop(self, name: str, reason: str, outcome: Literal["slower", "skipped"] = "slower") -> None:
        self._update(name, outcome=outcome, reason=reason)
        self.accepted.pop(name, None)

    def _update(self, name: str, **changes: str) -> None:
        self.records[name] = self.records[name].replace(**changes)


def _fit_in_memory(variants: list[AcceptedVariant]) -> bool:
    available = available_bytes()
    return available is None or sum(session_bytes(one.size_bytes) for one in variants) <= available
