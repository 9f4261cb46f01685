"""What the release's export costs beside torch's own exporter."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from bench.models import LARGE
from bench.results import Result, say
from bench.setting import Setting
from bench.sides import Side, Step, Taken, by_turns, in_detail, peak, ratio, run_step
from onnx_release.latency.host import describe_host

WALL_GOAL, PEAK_GOAL = 0.75, 0.35


def measure(setting: Setting) -> Iterator[Result]:
    """`export_wall_ratio` and `export_peak_over_model`, from the same runs.

    Ours is the release's whole step, from the file of weights to the packaged and hashed folder, its trial in ONNX
    Runtime included. The bare exporter is given the model in memory: making it is reported, and not counted.
    """
    size, weights = setting.models.size(LARGE), setting.models.weights(LARGE)
    ours, bare = _side("ours", size, setting.folder, weights), _side("bare", size, setting.folder)
    taken = by_turns([ours, bare], setting.rounds)
    model_bytes = weights.stat().st_size
    say("the same from a pt2 program, and the loading alone")
    from_pt2 = _side("pt2", size, setting.folder, setting.models.package(LARGE)).run()
    loading = run_step(Step("bench.release_steps", ("load", size, str(weights), str(setting.folder))))
    wall, wall_spread = ratio(taken["ours"], taken["bare"])
    bare_s = statistics.median(one.wall_s for one in taken["bare"])
    detail = {
        "model_bytes": model_bytes,
        "bare_peak_over_model": statistics.median(map(peak, taken["bare"])) / model_bytes,
        "ours_without_its_load": wall - loading["wall_s"] / bare_s,
        "load_s": loading["wall_s"],
        "from_pt2": {
            "wall_ratio": from_pt2.wall_s / bare_s,
            "peak_over_model": from_pt2.peak_bytes / model_bytes,
            "steps": from_pt2.steps,
        },
        "runs": in_detail(taken),
        "host": describe_host().to_dict(),
    }
    yield Result(
        name="export_wall_ratio",
        value=wall,
        unit="x",
        goal=f"<= {WALL_GOAL:g}",
        met=wall <= WALL_GOAL,
        n=setting.rounds,
        spread=wall_spread,
        detail=detail,
    )
    # The process that it starts runs ONNX Runtime; its peak is in the detail, and counts for the release's.
    peaks = [one.steps[0]["peak_bytes"] / model_bytes for one in taken["ours"]]
    value = statistics.median(peaks)
    yield Result(
        name="export_peak_over_model",
        value=value,
        unit="x",
        goal=f"<= {PEAK_GOAL:g}",
        met=value <= PEAK_GOAL,
        n=setting.rounds,
        spread=(min(peaks), max(peaks)),
        detail={
            "see": "export_wall_ratio",
            "child_over_model": _child_peak(taken["ours"]) / model_bytes,
            "host": describe_host().to_dict(),
        },
    )


def _child_peak(runs: Sequence[Taken]) -> float:
    """Return the median peak of the largest process that the export starts, in bytes."""
    return statistics.median(
        max((child["peak_bytes"] for child in one.steps[0]["children"]), default=0) for one in runs
    )


def _side(name: str, size: str, root: Path, trained: Path | None = None) -> Side:
    folder = root / name

    def steps() -> list[Step]:
        folder.mkdir()
        if trained is None:
            return [Step("bench.bare_export", (size, str(folder)))]
        return [Step("bench.release_steps", ("export", size, str(trained), str(folder)))]

    return Side(name=name, steps=steps, reset=lambda: shutil.rmtree(folder, ignore_errors=True))
