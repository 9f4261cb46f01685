"""Command of ``make load``: many releases at the same time, a long backfill, and a day of the watch.

``python -m soak.load [--releases N] [--old-runs N] [--polls N] [--json FILE]`` starts a stack of its own, and prints a
table. Exit status: 0 everything has ended and nothing has grown · 1 something has not.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from bench.figure import progress
from bench.servers import EXPERIMENT, MODEL_NAME, embedded_stack
from bench.watch import airflow_runs
from bench.watch.training_runs import Watched, train_runs
from soak import old_runs, watch_day
from soak.table import host
from soak.usage import TASKS, Usage, sampled
from stack.console import make_console
from stack.context import Context
from stack.release import DAG_ID

RELEASES, OLD_RUNS, POLLS = 50, 2000, 14_400
ALONE = 3
# On a busy host a release takes a minute.
_RELEASE_MAX_S = 120.0
_PARAMETERS = {"model_name": MODEL_NAME, "batch_sizes": [1, 3], "on_miss": "warn", "measure_max_s": 4.0}
_MB = 1_000_000
# Resident memory late in a backfill over that early in it.
_GROWTH_MAX = 1.2


def run(*, releases: int = RELEASES, old: int = OLD_RUNS, polls: int = POLLS) -> dict[str, Any]:
    """Measure everything on a stack of its own, which is removed at the end.

    :param releases: training runs that end at the same time; 0 leaves out this part, and likewise the others.
    :param old: finished training runs of one backfill.
    :param polls: polls of one trigger of the watch; 14,400 are a day.
    """
    began = time.monotonic()
    with embedded_stack(_PARAMETERS) as context:
        found: dict[str, Any] = {"host": host()}
        if releases:
            found["releases"] = _at_once(context, releases)
            progress(json.dumps(found["releases"]))
        if old:
            found["backfill"] = old_runs.measure(context, old)
            progress(json.dumps(found["backfill"]))
        if polls:
            found["watch"] = watch_day.measure(context, EXPERIMENT, polls)
    return found | {"wall_s": round(time.monotonic() - began, 1), "problems": list(problems(found))}


def problems(found: dict[str, Any]) -> Iterator[str]:
    """Yield a sentence for each release that has not succeeded, each speedup that differs, and all that has grown."""
    if (of_releases := found.get("releases")) is not None:
        if of_releases["states"] != {"success": of_releases["count"]}:
            yield f"of {of_releases['count']} releases: {of_releases['states']}"
        if differ := of_releases["settled_and_different"]:
            yield f"{len(differ)} settled speedups differ from those of releases alone: {differ[:3]}"
    if (backfill := found.get("backfill")) is not None:
        if backfill["plan_totals"].get("release") != backfill["runs"]:
            yield f"the plan of {backfill['runs']} runs has {backfill['plan_totals']}"
        if backfill["backfill_state"] != "running":
            yield f"the backfill has the state {backfill['backfill_state']}"
        for name, growth in backfill["growth"].items():
            if growth > _GROWTH_MAX:
                yield f"the memory of {name} has grown by a factor of {growth}"
    if (watch := found.get("watch")) is not None:
        yield from watch_day.leaks(watch)


def table(found: dict[str, Any]) -> Table:
    """Return the figures for a reader."""
    made = Table("load", "result", title=f"Load, {found['wall_s'] / 60:.0f} minutes", title_justify="left")
    made.box = box.SIMPLE_HEAD
    if (of_releases := found.get("releases")) is not None:
        disk = sum(of_releases["disk_peak_mb"].values())
        made.add_row("releases at the same time", f"{of_releases['count']} ended in {of_releases['wall_s']:.0f} s")
        made.add_row("states", str(of_releases["states"]))
        made.add_row("peak of memory, of disk", f"{of_releases['memory_peak_mb']} MB, {disk:.0f} MB")
        made.add_row("longest wait of a task", f"{max(of_releases['longest_wait_s'].values(), default=0):.0f} s")
        made.add_row("speedups alone", ", ".join(f"{one['speedup']}x" for one in of_releases["speedup_alone"]))
        low, median, high = of_releases["speedup_loaded"] or (0.0, 0.0, 0.0)
        made.add_row("under load: lowest, median, highest", f"{low}x, {median}x, {high}x")
        differ = len(of_releases["settled_and_different"])
        made.add_row("not settled · settled and different", f"{of_releases['not_settled']} · {differ}")
    if (backfill := found.get("backfill")) is not None:
        made.add_row("plan of old runs", f"{backfill['runs']} in {backfill['plan_task_s']:.0f} s")
        for name, growth in backfill["growth"].items():
            made.add_row(f"memory of {name} in a backfill", f"peak {backfill['peak_mb'][name]} MB, late/early {growth}")
    if (watch := found.get("watch")) is not None:
        before, after = watch["before"], watch["after"]
        made.add_row("watch", f"{watch['simulated_h']} h in {watch['wall_s']:.0f} s")
        for name in before:
            made.add_row(f"{name} after a tenth, at the end", f"{before[name]}, {after[name]}")
    return made


def _at_once(context: Context, count: int) -> dict[str, Any]:
    """Release some models one after the other, then many at the same time."""
    watched = Watched(context)
    alone = train_runs(context, range(ALONE))
    for run in alone:
        watched.delays([run])
        watched.await_releases([run])
    together = train_runs(context, range(ALONE, ALONE + count))
    with sampled(context) as usage:
        began = time.time()
        for run in together:
            watched.client.set_terminated(run, end_time=int(1000 * time.time()))
        _await(watched, together)
        wall_s = time.time() - began
    rows = watched.runs.releases(together)
    quiet = [one for row in watched.runs.releases(alone) if (one := _speedup(watched, row))]
    loaded = [one for row in rows if (one := _speedup(watched, row))]
    differ = [one for one in loaded if one["conclusive"] and not any(_overlap(one, other) for other in quiet)]
    return {
        "count": count,
        "wall_s": round(wall_s, 1),
        "states": airflow_runs.states(rows),
        "tried_again": sum(task["try_number"] > 1 for task in watched.runs.release_tasks()),
        "end_after_s": _spread([_time(row["end_date"]) - began for row in rows]),
        "longest_wait_s": _longest_waits(watched),
        "speedup_alone": quiet,
        "speedup_loaded": _spread([one["speedup"] for one in loaded]),
        "not_settled": sum(not one["conclusive"] for one in loaded),
        "settled_and_different": differ,
        **_usage(usage),
    }


def _await(watched: Watched, runs: Sequence[str]) -> None:
    printed_at = 0.0

    def all_ended() -> bool:
        nonlocal printed_at
        ended = airflow_runs.ended(watched.runs.releases(runs))
        if time.monotonic() - printed_at > 30.0:
            printed_at = time.monotonic()
            progress(f"{ended} of {len(runs)} releases have ended")
        return ended == len(runs)

    airflow_runs.wait_for("a release has not ended", all_ended, _RELEASE_MAX_S * len(runs), poll_s=3.0)


def _speedup(watched: Watched, row: dict[str, Any]) -> dict[str, Any] | None:
    """Return the speedup of a release at the serving batch size, with its interval."""
    report = watched.runs.api.xcom(DAG_ID, row["dag_run_id"], "parity_latency")
    latency = report and report["latency"]
    if not latency:
        return None
    size = latency["budget"]["batch_size"]
    batch = next(one for one in latency["batches"] if one["batch_size"] == size)
    found = {"speedup": batch["speedup"], "low": batch["speedup_low"], "high": batch["speedup_high"]}
    return {name: round(value, 2) for name, value in found.items()} | {"conclusive": batch["conclusive"]}


def _overlap(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return bool(one["low"] <= other["high"] and other["low"] <= one["high"])


def _longest_waits(watched: Watched) -> dict[str, float]:
    """Return the longest time between the queueing and the start of each task, in seconds."""
    found: dict[str, float] = {}
    for task in [*watched.runs.release_tasks(), *watched.runs.watch_tasks()]:
        if task["start_date"] and task["queued_when"]:
            wait_s = _time(task["start_date"]) - _time(task["queued_when"])
            found[task["task_id"]] = round(max(found.get(task["task_id"], 0.0), wait_s), 1)
    return found


def _usage(usage: Usage) -> dict[str, Any]:
    return {
        "memory_peak_mb": round(usage.memory_peak_bytes() / _MB),
        "memory_peak_by_part_mb": {name: round(usage.peak_bytes(name) / _MB) for name in (*usage.memory, TASKS)},
        "disk_peak_mb": {name: round(usage.peak_bytes(name) / _MB, 1) for name in usage.disk},
    }


def _spread(values: Sequence[float]) -> list[float]:
    """Return the smallest value, the median and the largest."""
    found = sorted(values)
    return [round(found[place], 2) for place in (0, len(found) // 2, -1)] if found else []


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


def main() -> int:
    """Run with the sizes of the command line and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m soak.load", description=__doc__.partition("\n")[0])
    parser.add_argument("--releases", type=int, default=RELEASES)
    parser.add_argument("--old-runs", type=int, default=OLD_RUNS)
    parser.add_argument("--polls", type=int, default=POLLS)
    parser.add_argument("--json", type=Path, help="file for the result")
    given = parser.parse_args()
    found = run(releases=given.releases, old=given.old_runs, polls=given.polls)
    if given.json:
        given.json.write_text(json.dumps(found, indent=2) + "\n")
    console = make_console()
    console.print(table(found))
    for problem in found["problems"]:
        console.print(f"Problem: {problem}", highlight=False, markup=False)
    return int(bool(found["problems"]))


if __name__ == "__main__":
    raise SystemExit(main())
