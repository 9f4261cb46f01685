"""Cost of the measurement of latency: the time until its decision, its arithmetic, and its longest duration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from bench import cpu
from bench.figure import Figure, Result, Setting, part, progress
from bench.sides import Step, median_and_range
from stack import children
from stack.environment import clean_environment
from stack.layout import REPO

FIRST_ROUNDS, TIMES_FIRST_MAX = 30, 8.0
DECIDE = Figure("decide_small_s", "s", condition=f"<= {TIMES_FIRST_MAX:g} x its {FIRST_ROUNDS} first rounds")
INTERVAL = Figure("interval_cost", "", at_most=0.02)
OVERRUN = Figure("measure_max_overrun", at_most=1.1)
REPEATS = 3
# Milliseconds of a call of PyTorch's side and ONNX Runtime's: equal, or 20 times apart.
PAIRS = ("0.05:0.05", "1:0.05", "5:5", "5:0.25", "0.25:5", "500:500", "500:25")
MAX_S, MAX_REHEARSAL_S = 8.0, 2.0
# A rehearsal has too little time for a round of the others.
PAIRS_OF_REHEARSAL = PAIRS[:3]


@part("decide", 4, DECIDE, INTERVAL, OVERRUN)
def measure(setting: Setting) -> Iterator[Result]:
    """Time the decision about a small model, and measurements that end with their time, on a quiet and a busy host."""
    repeats = min(setting.rounds, REPEATS)
    decided = []
    for number in range(repeats):
        folder = setting.folder / str(number)
        folder.mkdir()
        decided.append(Step("bench.timing_steps:decide", (str(folder), str(FIRST_ROUNDS))).run())
        progress(
            f"decided in {decided[-1]['wall_s']:.1f} s, its first rounds took {decided[-1]['first_rounds_s']:.2f} s"
        )
    value, spread = median_and_range([one["wall_s"] for one in decided])
    times_first, _ = median_and_range([one["wall_s"] / one["first_rounds_s"] for one in decided])
    detail = {"times_its_first_rounds": times_first, "runs": decided}
    yield DECIDE.result(value, detail, spread, n=repeats, condition=times_first <= TIMES_FIRST_MAX)

    max_s = setting.choose(MAX_S, MAX_S, MAX_REHEARSAL_S)
    arguments = (str(max_s), *setting.choose(PAIRS, PAIRS, PAIRS_OF_REHEARSAL))
    cases = []
    for busy in (False, True):
        with _load() if busy else ExitStack():
            found = Step("bench.timing_steps:overrun", arguments).run()["cases"]
        cases += [one | {"busy_host": busy} for one in found]
        progress(f"longest of {max_s:g} s on a {'busy' if busy else 'quiet'} host: {max(_walls(found)):.2f} s")
    measured = [(one["arithmetic_s"], one["measured_s"]) for one in (*decided, *cases)]
    shares = [arithmetic_s / measured_s for arithmetic_s, measured_s in measured]
    detail = {"shares_of_the_decisions": shares[:repeats], "shares_of_the_cases": shares[repeats:]}
    yield INTERVAL.result(max(shares), detail | {"see": OVERRUN.name}, (min(shares), max(shares)), n=len(shares))
    overruns = [seconds / max_s for seconds in _walls(cases)]
    detail = {"measure_max_s": max_s, "cases": cases}
    yield OVERRUN.result(max(overruns), detail, (min(overruns), max(overruns)), n=len(overruns))


def _walls(cases: list[dict[str, float]]) -> list[float]:
    return [case["measured_s"] for case in cases]


@contextmanager
def _load() -> Iterator[None]:
    """Occupy every CPU with another process during the block."""
    argv = [sys.executable, "-c", "while True: pass"]
    with ExitStack() as stack:
        for _ in range(cpu.cpus()):
            stack.enter_context(children.child(argv, clean_environment(), REPO))
        yield
