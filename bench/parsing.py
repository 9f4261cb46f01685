"""What the DAG parser spends on this project's DAG files."""

from __future__ import annotations

import statistics
import tempfile
from collections.abc import Iterator

from bench.results import Result
from bench.setting import Setting
from bench.sides import Side, Step, Taken, by_turns
from onnx_release.latency.host import describe_host
from stack.layout import REPO

GOAL_S = 0.5
SDK = "airflow.sdk"
DAGS = ("release_onnx", "watch_training")


def measure(setting: Setting) -> Iterator[Result]:
    """`dag_parse_s`: seconds to load the slower DAG file in a fresh process, above those of importing `airflow.sdk`."""
    with tempfile.TemporaryDirectory(prefix="bench-") as home:
        env = {"AIRFLOW_HOME": home}
        # The first process of an Airflow's home writes its configuration, and its first import the byte code.
        sides = [_side(what, env) for what in (SDK, *DAGS)]
        by_turns(sides, 1)
        taken = by_turns(sides, setting.rounds)
    above = {dag: [_s(one) - _s(sdk) for one, sdk in zip(taken[dag], taken[SDK], strict=True)] for dag in DAGS}
    medians = {dag: statistics.median(differences) for dag, differences in above.items()}
    slowest = max(medians, key=lambda dag: medians[dag])
    value = medians[slowest]
    yield Result(
        name="dag_parse_s",
        value=value,
        unit="s",
        goal=f"<= {GOAL_S:g}",
        met=value <= GOAL_S,
        n=setting.rounds,
        spread=(min(above[slowest]), max(above[slowest])),
        detail={
            "value_of": slowest,
            "above_sdk_s": above,
            "sdk_s": [_s(one) for one in taken[SDK]],
            "heavy_modules": sorted({name for dag in DAGS for one in taken[dag] for name in one.steps[0]["heavy"]}),
            "host": describe_host().to_dict(),
        },
    )


def _side(what: str, env: dict[str, str]) -> Side:
    target = what if what == SDK else str(REPO / "dags" / f"{what}.py")
    return Side(name=what, steps=lambda: [Step("bench.parsing_steps", (target,), env)])


def _s(taken: Taken) -> float:
    return taken.wall_s
