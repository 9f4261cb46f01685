"""Cost of a verification beside reading the same bytes, and the rate of many small ones."""

from __future__ import annotations

from collections.abc import Iterator

from bench.figure import Figure, Result, Setting, part, progress
from bench.models import LARGE, TINY
from bench.servers import mlflow_servers, object_store, store_environment
from bench.sides import Side, Step, in_detail, interleave, ratio
from onnx_release.latency.host import usable_cpus

OVER_READ = Figure("verify_over_read", at_most=1.5)
RATE = Figure("verify_rate", "versions/min")
VERSIONS, VERSIONS_REHEARSAL = 200, 4
# The default of the factory of the DAG.
AT_ONCE = 2


@part("verify", 5, OVER_READ, RATE)
def measure(setting: Setting) -> Iterator[Result]:
    """Verify a large version from the store in turn with a download that is hashed, then many small versions.

    The sides import before their work. The rate contains the start and the imports of every task.
    """
    folder = str(setting.models.exported(LARGE))
    with object_store() as env:
        stored = Step("bench.verification_steps:store", (folder,), env).run()
        sides = [
            Side(name=name, steps=lambda name=name: [_step(name, stored, env)])  # type: ignore[misc] # a default
            for name in ("verify", "read")
        ]
        costs = interleave(sides, setting.rounds)
    value, spread = ratio(costs["verify"], costs["read"])
    detail = {
        "size_bytes": stored["size_bytes"],
        "imports_s": {name: [one.steps[0]["import_s"] for one in runs] for name, runs in costs.items()},
        "runs": in_detail(costs),
    }
    yield OVER_READ.result(value, detail, spread, n=setting.rounds)
    yield _rate(setting)


def _step(name: str, stored: dict[str, str], env: dict[str, str]) -> Step:
    return Step(f"bench.verification_steps:{name}", (stored["uri"], stored["sha256"]), env)


def _rate(setting: Setting) -> Result:
    """Verify versions with the mapped tasks of the DAG, each in a fresh process, two at the same time."""
    count = setting.choose(VERSIONS, VERSIONS, VERSIONS_REHEARSAL)
    folder = str(setting.models.exported(TINY))
    with mlflow_servers(1) as (context,):
        env = store_environment(context)
        stored = Step("bench.verification_steps:store", (folder,), env).run()
        arguments = (stored["uri"], stored["sha256"], str(count))
        tasks = Step("bench.verification_steps:register", arguments, env).run()["tasks"]
        done = Step("bench.verification_steps:tasks", (str(tasks), str(AT_ONCE)), env).run()
    reports, wall_s = done["tasks"], done["wall_s"]
    passed = sum(report["passed"] for report in reports)
    progress(f"{passed} of {count} versions passed in {wall_s:.1f} s")
    detail = {
        "versions": count, "tasks": tasks, "at_once": AT_ONCE, "cpus": usable_cpus(), "wall_s": wall_s,
        "size_bytes": stored["size_bytes"], "tasks_s": [report["wall_s"] for report in reports],
        "imports_s": [report["import_s"] for report in reports],
    }  # fmt: skip
    return RATE.result(60 * count / wall_s, detail, condition=passed == count)
