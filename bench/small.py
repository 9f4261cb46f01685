"""Release of a small model beside one script that does the same work on the same services."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from mlflow.exceptions import MlflowException

from bench import cpu
from bench.figure import Figure, Result, Setting, part, progress
from bench.servers import MODEL_NAME, QUICK, embedded_stack
from bench.sides import Cost, Step, in_detail, median_and_range, ratio
from bench.watch.airflow_runs import wait_for
from bench.watch.training_runs import RELEASE_MAX_S, Watched, train_runs
from stack.context import Context
from stack.minio import RELEASE_BUCKET
from stack.setup import client_environment

RATIO = Figure("release_small_ratio", at_most=1.6)
SECONDS = Figure("release_small_s", "s")
CPU = Figure("cpu_over_hand", at_most=1.8)
REPEATS = 4
ALIAS = "candidate"
POLL_S = 0.2
# The script times each batch size for so long.
TIMED_S, TIMED_REHEARSAL_S = 2.0, 0.2
# Airflow's records of the last task are complete, and its process has ended.
SETTLE_S = 2.0


@part("small", 5, RATIO, SECONDS, CPU)
def measure(setting: Setting) -> Iterator[Result]:
    """Release small models one by one with the default limits, in turn with the script.

    The time of a release begins at the end of the training run and ends when the alias is at its version. That of the
    script is the whole time of its process.
    """
    repeats = min(setting.rounds, REPEATS)
    parameters = {"model_name": MODEL_NAME}
    costs: dict[str, list[Cost]] = {"release": [], "script": []}
    with embedded_stack(setting.choose(parameters, parameters, QUICK)) as context:
        watched = Watched(context)
        first, *runs = train_runs(context, range(1 + repeats))
        sides: dict[str, Callable[[str], Cost]] = {
            "release": partial(_release, context, watched),
            "script": partial(_script, setting, context),
        }
        # Both write byte code and fill the caches of the files of their libraries.
        for side in sides.values():
            side(first)
        for number, run in enumerate(runs):
            for name in list(sides) if number % 2 == 0 else reversed(sides):
                cost = sides[name](run)
                costs[name].append(cost)
                progress(f"{name}: {cost.wall_s:.1f} s, {_cpu_s(cost):.1f} s of CPU time")
    detail = {"runs": in_detail(costs), "parameters": parameters, "script_times_each_batch_size_s": TIMED_S}
    value, spread = ratio(costs["release"], costs["script"])
    yield RATIO.result(value, detail, spread, n=repeats)
    see = {"see": RATIO.name}
    value, spread = median_and_range([one.wall_s for one in costs["release"]])
    yield SECONDS.result(value, see, spread, n=repeats)
    value, spread = ratio(costs["release"], costs["script"], _cpu_s)
    yield CPU.result(value, see, spread, n=repeats)


def _cpu_s(cost: Cost) -> float:
    return float(cost.steps[0]["cpu_s"])


def _release(context: Context, watched: Watched, run: str) -> Cost:
    """End a training run, wait for its alias, and return the costs of its tasks and the watch's."""
    client = watched.client
    before, began = cpu.services_s(context), time.time()
    client.set_terminated(run, end_time=int(1000 * began))

    def has_alias() -> bool:
        try:
            return bool(client.get_model_version_by_alias(MODEL_NAME, ALIAS).run_id == run)
        except MlflowException:
            return False  # The model or the alias does not exist yet.

    wait_for(f"the alias is not at a version of {run}", has_alias, RELEASE_MAX_S, poll_s=POLL_S)
    wall_s = time.time() - began
    watched.await_releases([run])
    time.sleep(SETTLE_S)
    used = cpu.difference(cpu.services_s(context), before)
    (row,) = watched.runs.releases([run])
    tasks = [task for task in watched.runs.release_tasks() if task["dag_run_id"] == row["dag_run_id"]]
    found: dict[str, Any] = {
        "cpu_s": used["tasks"],
        "services_cpu_s": used,
        "task_s": {task["task_id"]: task["duration"] for task in tasks},
    }
    return Cost(wall_s=wall_s, peak_bytes=0, steps=[found])


def _script(setting: Setting, context: Context, run: str) -> Cost:
    timed_s = setting.choose(TIMED_S, TIMED_S, TIMED_REHEARSAL_S)
    env = client_environment(context) | {"S3_URL": context.minio_url, "S3_BUCKET": RELEASE_BUCKET}
    step = Step("bench.hand_steps:release", (run, str(timed_s)), env)
    used_s, began = cpu.ended_children_s(), time.monotonic()
    found = step.run()
    wall_s = time.monotonic() - began
    return Cost(wall_s=wall_s, peak_bytes=0, steps=[found | {"cpu_s": cpu.ended_children_s() - used_s}])
