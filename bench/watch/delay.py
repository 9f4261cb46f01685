"""Delay between the end of a training run and the start of its release, alone and in a burst."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime

from croniter import croniter  # type: ignore[import-untyped]

from airflow_onnx.defaults import WATCH_CRON, WATCH_POLL_S
from bench.figure import Figure, Result, Setting, part
from bench.servers import QUICK, embedded_stack
from bench.sides import median_and_range
from bench.watch.burst import Burst, with_two_slots
from bench.watch.training_runs import Watched, train_runs


def cron_interval_s() -> float:
    """Return the interval of the watch's schedule in seconds."""
    times = croniter(WATCH_CRON, datetime(2026, 1, 1, tzinfo=UTC))
    first, second = times.get_next(datetime), times.get_next(datetime)
    return float((second - first).total_seconds())


DELAY = Figure("run_to_release_s", "s", at_most=10.0, condition=f"all <= {cron_interval_s():g}")
WAIT = Figure("watch_wait_s", "s", at_most=5.0)
RATE = Figure("burst_rate", at_least=0.8)
# A second start of a run would happen within this time after a burst.
SETTLE_S = 30.0
# Runs that end one after the other, and runs that end at the same time.
# The last number: runs that end at the same time when the measuring pool has two slots.
USUAL, FULL, REHEARSAL = (5, 20, 8), (12, 20, 20), (1, 2, 1)


@part("watch", 11, DELAY, WAIT, RATE)
def measure(setting: Setting) -> Iterator[Result]:
    """Measure from the end of a training run, by its client's clock, to the start of its DAG run of `release_onnx`.

    Runs end one after the other, each on an idle stack; then many end within a second. A first run makes sure that the
    watch is active. While the many are released, more runs end, and the wait of the watch's task is measured.
    """
    singles, burst, again = setting.choose(USUAL, FULL, REHEARSAL)
    with embedded_stack() as context:
        watched = Watched(context)
        first, *alone = train_runs(context, range(1 + singles))
        together = train_runs(context, range(1 + singles, 1 + singles + burst))
        first_s = watched.delays([first])[0]
        watched.await_releases([first])
        alone_s = []
        for run in alone:
            alone_s += watched.delays([run])
            watched.await_releases([run])
        many = Burst(context, watched, together).measure()
        burst_s = many["delays_s"]
        time.sleep(SETTLE_S)
        two_slots = with_two_slots(context, watched, train_runs(context, range(100, 100 + again)))
        facts = watched.facts([first, *alone, *together])
    detail = {
        "singles": singles,
        "burst": burst,
        "in_full": list(FULL),
        "first_s": first_s,
        "singles_s": alone_s,
        "burst_max_s": max(burst_s),
        "burst_median_s": median_and_range(burst_s)[0],
        "cron_interval_s": cron_interval_s(),
        "poll_interval_s": WATCH_POLL_S,
        "release_params": QUICK,
    }
    in_time = max(*alone_s, *burst_s, first_s) <= cron_interval_s()
    value, spread = median_and_range(alone_s)
    condition = in_time and facts["each_started_once"]
    yield DELAY.result(value, detail | facts, spread, n=len(alone_s), condition=condition)
    waits = many["watch_waits_s"]
    yield WAIT.result(max(waits), many, (min(waits), max(waits)), n=len(waits))
    yield RATE.result(many["rate"], {"see": WAIT.name, "with_two_measuring_slots": two_slots}, n=burst)
