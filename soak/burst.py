"""Load in small: releases that start at the same time, the plan of many old runs, and some hours of the watch."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

from onnx_release.training_runs import tags
from soak import old_runs, watch_day
from soak.case import Case
from soak.folders import Folders
from soak.rig import EXPERIMENT, Rig
from soak.scenario import Outcome, Scenario
from soak.statements import violations
from soak.usage import sampled
from stack.layout import REPO
from stack.release import WATCH_DAG_ID

_RELEASES = 12
_OLD_RUNS = 300
_POLLS = 1800
_EXAMPLES = 8
_OUTPUT_CHARACTERS = 600


def _at_once(rig: Rig, _random: random.Random) -> Outcome:
    """Trigger many releases by requests at the same time."""
    cases = [Case(rig, rig.take()) for _ in range(_RELEASES)]
    with sampled(rig.context) as usage:
        with ThreadPoolExecutor(_RELEASES) as pool:
            list(pool.map(Case.trigger, cases))
        for case in cases:
            case.await_end()
    states = {case.run_id: case.answer().get(tags.STATUS, "") for case in cases}
    ended = sum(state == "released" for state in states.values())
    found = violations(rig.places(Folders()), list(states), [case.model_name for case in cases])
    return Outcome(
        injected={"releases at the same time": _RELEASES}, survived=ended, violations=found,
        problem="" if ended == _RELEASES else f"not released: {states}",
        figures={"memory peak (MB)": round(usage.memory_peak_bytes() / 1e6)},
    )  # fmt: skip


def _plan(rig: Rig, _random: random.Random) -> Outcome:
    """Plan a backfill of many old runs."""
    path = f"/dags/{WATCH_DAG_ID}"
    rig.api.patch(path, {"is_paused": False})
    try:
        found = old_runs.plan(rig.context, _OLD_RUNS, "soak-old")
    finally:
        rig.api.patch(path, {"is_paused": True})
    ready = int(found["plan_totals"].get("release", 0))
    return Outcome(
        injected={"old runs in one plan": _OLD_RUNS}, survived=ready,
        problem="" if ready == _OLD_RUNS else f"the plan has {found['plan_totals']}",
        figures={"plan (s)": found["plan_task_s"]},
    )  # fmt: skip


def _watch(rig: Rig, _random: random.Random) -> Outcome:
    """Poll as a trigger of the watch does, with the clock moved."""
    found = watch_day.measure(rig.context, EXPERIMENT, _POLLS)
    return Outcome(
        injected={"polls of the watch": _POLLS}, problem="; ".join(watch_day.leaks(found)),
        figures={"simulated (h)": found["simulated_h"]},
    )  # fmt: skip


def _orders(rig: Rig, rng: random.Random) -> Outcome:
    """Run the state machine over releases, faults, approvals, deletions and garbage collections in a process."""
    seed = rng.randrange(2**32)
    argv = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", f"--hypothesis-seed={seed}"]
    argv += ["tests/edge/soak/test_state_machine.py"]
    kept = {name: text for name, text in os.environ.items() if not name.startswith("AIRFLOW__")}
    env = kept | {"SOAK_EXAMPLES": str(_EXAMPLES), "TMPDIR": str(rig.disk / "tmp")}
    done = subprocess.run(argv, cwd=REPO, env=env, capture_output=True, text=True, check=False)
    errors = [line[1:].strip() for line in done.stdout.splitlines() if line.startswith("E ")]
    problem = f"seed {seed}: {' · '.join(errors)[:_OUTPUT_CHARACTERS]}" if done.returncode else ""
    return Outcome(injected={"order of events": _EXAMPLES}, problem=problem)


SCENARIOS = [
    Scenario(name="many releases at the same time", kind="releases at the same time", run=_at_once, alone=True),
    Scenario(name="plan of old runs", kind="old runs in one plan", run=_plan),
    Scenario(name="hours of the watch", kind="polls of the watch", run=_watch),
    Scenario(name="orders of events", kind="order of events", run=_orders),
]
