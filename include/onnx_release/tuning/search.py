"""One tuning from its first candidate to its winner, within its time."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from onnx_release.errors import Refused
from onnx_release.latency.host_lock import HostLock
from onnx_release.limits import HEAT_MAX_S, MODEL_FILE, TUNE_BUILD_SHARE
from onnx_release.records import Precision, TuneCandidate
from onnx_release.runners import Runner
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.tuning.acceptance import AcceptanceTest
from onnx_release.tuning.build import CandidateBuilder
from onnx_release.tuning.candidates import PLAIN, PLAIN_EXPORT, Candidate, LeftOut, with_threads
from onnx_release.tuning.memory import available_bytes, session_bytes
from onnx_release.tuning.options import TuneOptions
from onnx_release.tuning.race import Race, Timing, outrun, winner, words

PYTORCH = "PyTorch"
# A final of less than this says nothing, and is held all the same, so that the report has figures.
_FINAL_LEAST_S = 1.0
# Calls of the plain export's length that the shortest heat takes: three rounds of two sides, with one call untimed.
_HEAT_CALLS_LEAST = 12


@dataclass(slots=True)
class Clock:
    """The time of one tuning, in seconds, without what it waits for others on its host."""

    max_s: float
    lock: HostLock = field(default_factory=HostLock)
    began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_s(self) -> float:
        """How long the tuning has gone on."""
        return time.perf_counter() - self.began - self.lock.waited_s

    @property
    def left_s(self) -> float:
        """How long it may go on."""
        return max(0.0, self.max_s - self.elapsed_s)

    def has_time_to_make(self, expected_s: float) -> bool:
        """Say whether something can be made and still leave the contest its share."""
        return self.elapsed_s + expected_s <= self.max_s * TUNE_BUILD_SHARE


@dataclass(slots=True, kw_only=True)
class Entry:
    """A candidate that passed its gate, with its folder."""

    candidate: Candidate
    folder: Path
    size_bytes: int


@dataclass(slots=True, kw_only=True)
class Search:
    """What is known so far: `records` of every contestant by name, in the order of the table, and who may still win."""

    workshop: CandidateBuilder
    gate: AcceptanceTest
    contest: Race
    options: TuneOptions
    clock: Clock
    records: dict[str, TuneCandidate] = field(default_factory=dict)
    entries: dict[str, Entry] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def run(self, planned: Iterable[Candidate | LeftOut]) -> Entry | None:
        """Return the winner, or None where the plain export stays."""
        self.records[PYTORCH] = TuneCandidate(
            name=PYTORCH, precision=Precision.EXACT, outcome="reference", task_metrics=self.gate.task_metrics
        )
        if self.gate.blocked:
            self.notes.append(f"nothing was tried, as PyTorch itself fails: {'; '.join(self.gate.blocked)}")
            return None
        self._try(PLAIN_EXPORT)
        if self.entries.pop(PLAIN, None) is None:
            self.notes.append("nothing was tried, as the plain export itself did not pass")
            return None
        for item in planned:
            self._consider(item)
        found = self._contest() if self.entries else None
        chosen = found.candidate.name if found else PLAIN
        self._note(chosen, outcome="chosen")
        return found

    def _consider(self, item: Candidate | LeftOut) -> None:
        if isinstance(item, LeftOut):
            self._leave_out(item.name, item)
        elif not self.clock.has_time_to_make(expected_s := self.workshop.expected_s(item)):
            self._leave_out(
                item.name,
                item,
                f"no time: it takes about {expected_s:.0f} s after {self.clock.elapsed_s:.0f} s, and "
                f"{TUNE_BUILD_SHARE:.0%} of tune_max_s {self.clock.max_s:g} s are for making; raise tune_max_s",
            )
        else:
            self._try(item)
            refused = self.records[item.name].outcome == "refused"
            if refused and item.precision == "int8" and not item.careful:
                self._consider(replace(item, name=f"{item.name}-careful", careful=True))

    def _leave_out(self, name: str, item: Candidate | LeftOut, reason: str = "") -> None:
        why = item.reason if isinstance(item, LeftOut) else reason
        self.records[name] = TuneCandidate(name=name, precision=item.precision, outcome="left out", reason=why)

    def _try(self, candidate: Candidate) -> None:
        """Make a candidate and let it through its gate, or write down why not."""
        began = time.perf_counter()
        record = TuneCandidate(
            name=candidate.name,
            precision=candidate.precision,
            outcome="passed",
            session_options=candidate.session_options,
        )
        try:
            folder = self.workshop.make(candidate)
            size = sum(file.stat().st_size for file in folder.glob(f"{MODEL_FILE}*"))
            with self._opened(candidate, folder) as runner:
                passage = self.gate.judge(runner, self.options.judge.limits_for(candidate.precision))
        except Refused as refusal:
            record = record.replace(outcome="failed", reason=f"{refusal.subject}: {refusal.problem}")
        else:
            outcome = record.replace(outcome="refused", reason="; ".join(passage.reasons))
            record = (outcome if passage.reasons else record).replace(
                measures=passage.measures,
                task_metrics=passage.task_metrics,
                size_bytes=size,
            )
        self.records[candidate.name] = record.replace(build_s=round(time.perf_counter() - began, 3))
        if record.outcome == "passed":
            self.entries[candidate.name] = Entry(candidate=candidate, folder=folder, size_bytes=size)
        elif candidate.kind != "session" and not candidate.shares:
            shutil.rmtree(self.workshop.scratch / candidate.name, ignore_errors=True)

    def _opened(self, candidate: Candidate, folder: Path) -> OnnxRuntimeRunner:
        subject = self.workshop.subject
        options = OnnxRuntimeOptions(
            threads=subject.threads,
            providers=subject.artifact.providers,
            session_options=candidate.session_options,
        )
        return OnnxRuntimeRunner(folder / MODEL_FILE, options)

    def _contest(self) -> Entry | None:
        with self._opened(PLAIN_EXPORT, self.workshop.subject.folder) as baseline:
            heats = self._heats(baseline)
            rivals = {name: timing for name, timing in heats.items() if name in self.entries}
            for name, reason in outrun(rivals).items():
                self._drop(name, f"slower: {reason}")
            timings = self._final(baseline, heats) if self.entries else {}
        if timings and not all(timing.trusted for timing in timings.values()):
            self.notes.append(f"the final had too few rounds, so the heats decided; tune_max_s is {self.clock.max_s:g}")
            timings = {name: timing for name, timing in heats.items() if name in timings}
        for name, timing in timings.items():
            self._time(name, timing)
        won = winner(timings, {name: entry.candidate.rank for name, entry in self.entries.items()})
        for name in self.entries.keys() & timings.keys() - {won}:
            self._note(name, reason=self._why_not(timings[name], won))
        return self.entries[won] if won else None

    def _why_not(self, timing: Timing, won: str | None) -> str:
        if not timing.trusted:
            return f"{timing.rounds} rounds are too few to tell: {words(timing)}"
        if not timing.faster:
            return f"not clearly faster than the plain export: {words(timing)}"
        return f"not the fastest, or level with {won}, which is more exact or simpler"

    def _heats(self, baseline: Runner) -> dict[str, Timing]:
        """Return the times of each candidate that is not clearly slower than the plain export, and of PyTorch.

        PyTorch comes last: it is there to be compared with, and a slow one must not take the candidates' time.
        """
        timings = self._heats_of(baseline, dict(self.entries))
        timings |= self._with_threads(baseline, timings)
        if self._has_time():
            with self.workshop.subject.reference() as torch:
                timings |= self._heat(baseline, PYTORCH, torch, left=1)
        return timings

    def _has_time(self) -> bool:
        """Say whether a heat of the fewest rounds would end in time, as far as the plain export's own pace tells."""
        p50_ms = self.records[PLAIN].p50_ms or 0.0
        return self.clock.left_s > _HEAT_CALLS_LEAST * p50_ms / 1e3

    def _heats_of(self, baseline: Runner, entries: dict[str, Entry]) -> dict[str, Timing]:
        timings: dict[str, Timing] = {}
        for done, (name, entry) in enumerate(entries.items()):
            if not self._fits([entry]):
                self._drop(name, "no memory for it beside the plain export", outcome="left out")
            elif not self._has_time():
                self._drop(name, f"no time for its heat within tune_max_s {self.clock.max_s:g}", outcome="left out")
            else:
                with self._opened(entry.candidate, entry.folder) as rival:
                    found = self._heat(baseline, name, rival, left=len(entries) - done)
                if found[name].slower:
                    self._drop(name, f"slower than the plain export in its heat: {words(found[name])}")
                else:
                    timings |= found
        return timings

    def _with_threads(self, baseline: Runner, heats: dict[str, Timing]) -> dict[str, Timing]:
        """Let the fastest other model run with fewer threads, too: a small product is done before they have begun."""
        models = [name for name in heats if name in self.entries and self.entries[name].candidate.kind != "session"]
        subject = self.workshop.subject
        if not models or subject.device != "cpu":
            return {}
        fastest = max(models, key=lambda name: heats[name].speedup.value)
        names = []
        for candidate in with_threads(self.entries[fastest].candidate, subject.threads):
            if self.clock.left_s > self.records[fastest].build_s and self._has_time():
                names.append(candidate.name)
                self._try(candidate)
            else:
                self._leave_out(candidate.name, candidate, f"no time for it within tune_max_s {self.clock.max_s:g}")
        return self._heats_of(baseline, {name: self.entries[name] for name in names if name in self.entries})

    def _heat(self, baseline: Runner, name: str, rival: Runner, *, left: int) -> dict[str, Timing]:
        """Time one against the plain export, in its share of the half of the time that heats may take."""
        seconds = min(HEAT_MAX_S, self.clock.left_s / 2 / (left + 1))
        found = self.contest.heat({PLAIN: baseline, name: rival}, seconds)
        for contestant, timing in found.items():
            self._time(contestant, timing)
        return found

    def _drop(self, name: str, reason: str, outcome: Literal["slower", "left out"] = "slower") -> None:
        self._note(name, outcome=outcome, reason=reason)
        self.entries.pop(name, None)

    def _final(self, baseline: Runner, heats: dict[str, Timing]) -> dict[str, Timing]:
        """Time the plain export and whoever is left, all alive at once; PyTorch too, unless it is clearly slower."""
        finalists: list[Entry] = []
        for name in sorted(self.entries, key=lambda name: -heats[name].speedup.value):
            if self._fits([*finalists, self.entries[name]]):
                finalists.append(self.entries[name])
            else:
                self._drop(name, "no memory for it beside faster ones in the final", outcome="left out")
        seconds = max(_FINAL_LEAST_S, min(self.clock.left_s, self.contest.plan.measure_max_s))
        with ExitStack() as alive:
            runners: dict[str, Runner] = {PLAIN: baseline}
            if PYTORCH in heats and not heats[PYTORCH].slower:
                runners[PYTORCH] = alive.enter_context(self.workshop.subject.reference())
            for entry in finalists:
                runners[entry.candidate.name] = alive.enter_context(self._opened(entry.candidate, entry.folder))
            return self.contest.final(runners, seconds)

    def _fits(self, entries: list[Entry]) -> bool:
        available = available_bytes()
        return available is None or sum(session_bytes(entry.size_bytes) for entry in entries) <= available

    def _time(self, name: str, timing: Timing) -> None:
        self.records[name] = self.records[name].replace(
            speedup=timing.speedup.value,
            speedup_low=timing.speedup.low,
            speedup_high=timing.speedup.high,
            p50_ms=timing.side.p50_ms,
            p95_ms=timing.side.p95_ms,
            rounds=timing.rounds,
        )

    def _note(self, name: str, **changes: str) -> None:
        self.records[name] = self.records[name].replace(**changes)
