"""Where the seconds and the bytes of one release go, step by step, without what a release measures itself."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.models import LARGE
from bench.results import Result, say
from bench.setting import Setting
from bench.sides import Step, run_step
from bench.store import store
from onnx_release.latency.host import describe_host


def measure(setting: Setting) -> Iterator[Result]:
    """`release_profile_s`: the wall time of the tasks that carry a release; `detail.rows` has what it is made of."""
    size, weights, folder = setting.models.size(LARGE), setting.models.weights(LARGE), setting.folder / "profile"
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    with store() as env:
        for step in ("export", "check", "compare", "upload", "fetch_back"):
            found = run_step(Step("bench.profile_steps", (step, size, str(weights), str(folder)), env))
            rows += [{"step": step, **row} for row in found["spans"]]
            say(f"{step}: {found['wall_s']:.2f} s, imports {found['import_s']:.1f} s before it")
    wall_s = sum(row["wall_s"] for row in rows)
    yield Result(
        name="release_profile_s",
        value=wall_s,
        unit="s",
        goal="",
        met=None,
        n=1,
        spread=(wall_s, wall_s),
        detail={"model_bytes": weights.stat().st_size, "rows": rows, "host": describe_host().to_dict()},
    )


def as_table(detail: dict[str, Any]) -> str:
    """Return the rows as Markdown: seconds, what of them was spent on a CPU, and the peak in times the model."""
    lines = ["| task | doing | wall s | CPU s | peak, times the model |", "|---|---|---|---|---|"]
    for row in detail["rows"]:
        peak = row["peak_bytes"] / detail["model_bytes"]
        lines.append(f"| {row['step']} | {row['what']} | {row['wall_s']:.2f} | {row['cpu_s']:.2f} | {peak:.2f} |")
    return "\n".join(lines)
