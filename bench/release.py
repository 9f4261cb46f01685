"""Cost of an export, a release and an upload beside shorter scripts of the same purpose."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.figure import Figure, Result, Setting, part, progress
from bench.models import LARGE
from bench.servers import clear_store, object_store
from bench.sides import Side, Step, cost_of, in_detail, interleave, median_and_range, peak, peak_of, ratio, wall

EXPORT_WALL = Figure("export_wall_ratio", at_most=0.55)
EXPORT_PEAK = Figure("export_peak_over_model", at_most=0.35)
RELEASE_WALL = Figure("release_wall_ratio", at_most=0.55)
RELEASE_PEAK = Figure("release_peak_over_model", at_most=2.2)
ORIGINAL_WALL = Figure("release_vs_original", at_most=0.75)
ORIGINAL_PEAK = Figure("release_vs_original_peak", at_most=0.6)
OVERHEAD = Figure("artifact_overhead", at_most=1.01)
UPLOAD = Figure("upload_ratio", at_most=1.0)
# Steps of a release before its upload.
STEPS = ("export", "check", "compare")


@part("export", 3, EXPORT_WALL, EXPORT_PEAK)
def export(setting: Setting) -> Iterator[Result]:
    """Compare the whole export step with torch's bare exporter.

    Ours reads the file of weights and ends with the packaged, hashed folder, after a trial in ONNX Runtime. The bare
    exporter starts with the model in memory; the time to make it is reported and not counted.
    """
    size, weights = setting.models.size(LARGE), setting.models.weights(LARGE)
    arguments = (size, str(weights), str(setting.folder))

    def side(name: str, step: str, *trained: str) -> Side:
        folder = setting.folder / name

        def steps() -> list[Step]:
            folder.mkdir()
            return [Step(step, (size, *trained, str(folder)))]

        return Side(name=name, steps=steps, reset=lambda: shutil.rmtree(folder, ignore_errors=True))

    ours = side("ours", "bench.release_steps:export", str(weights))
    costs = interleave([ours, side("bare", "bench.peer_steps:bare_export")], setting.rounds)
    model_bytes = weights.stat().st_size
    progress("export of a pt2 program, and loading alone")
    from_pt2 = side("pt2", "bench.release_steps:export", str(setting.models.package(LARGE))).run()
    loading = Step("bench.release_steps:load", arguments).run()
    value, spread = ratio(costs["ours"], costs["bare"])
    bare_s = statistics.median(map(wall, costs["bare"]))
    detail = {
        "model_bytes": model_bytes,
        "bare_peak_over_model": statistics.median(map(peak, costs["bare"])) / model_bytes,
        "ours_without_its_load": value - loading["wall_s"] / bare_s,
        "load_s": loading["wall_s"],
        "from_pt2": {
            "wall_ratio": from_pt2.wall_s / bare_s,
            "peak_over_model": from_pt2.peak_bytes / model_bytes,
            "steps": from_pt2.steps,
        },
        "runs": in_detail(costs),
    }
    yield EXPORT_WALL.result(value, detail, spread, n=setting.rounds)
    # The child runs ONNX Runtime: its peak is in the detail here, and counts in `release_peak_over_model`.
    steps = [one.steps[0] for one in costs["ours"]]
    children = [max((child["peak_bytes"] for child in step["children"]), default=0) for step in steps]
    detail = {"see": EXPORT_WALL.name, "child_over_model": statistics.median(children) / model_bytes}
    value, spread = median_and_range([step["peak_bytes"] / model_bytes for step in steps])
    yield EXPORT_PEAK.result(value, detail, spread, n=setting.rounds)


@part("release", 6, RELEASE_WALL, RELEASE_PEAK, ORIGINAL_WALL, ORIGINAL_PEAK, OVERHEAD)
def release(setting: Setting) -> Iterator[Result]:
    """Compare a release with a short script, and with the TorchScript way that it replaces."""
    size, weights = setting.models.size(LARGE), setting.models.weights(LARGE)
    with object_store() as env:
        sides = [_way(name, setting.folder / name, size, weights, env) for name in ("ours", "dynamo", "torchscript")]
        costs = interleave(sides, setting.rounds)
    ours, rounds = costs["ours"], setting.rounds
    # The short script uploads nothing.
    without_upload = [cost_of(one.steps[: len(STEPS)]) for one in ours]
    model_bytes = weights.stat().st_size
    by_step = dict(enumerate((*STEPS, "upload")))
    detail: dict[str, Any] = {"model_bytes": model_bytes, "runs": in_detail(costs)}
    detail["imports_s"] = {
        step: statistics.median(one.steps[n]["import_s"] for one in ours) for n, step in by_step.items()
    }
    value, spread = ratio(without_upload, costs["dynamo"])
    yield RELEASE_WALL.result(value, detail, spread, n=rounds)
    see = {"see": RELEASE_WALL.name}
    peaks = {
        step: statistics.median(peak_of(one.steps[n]) for one in ours) / model_bytes for n, step in by_step.items()
    }
    value, spread = median_and_range([peak(one) / model_bytes for one in without_upload])
    yield RELEASE_PEAK.result(value, see | {"by_step": peaks}, spread, n=rounds)
    value, spread = ratio(ours, costs["torchscript"])
    yield ORIGINAL_WALL.result(value, see | {"uploads": "both"}, spread, n=rounds)
    value, spread = ratio(ours, costs["torchscript"], peak)
    yield ORIGINAL_PEAK.result(value, see, spread, n=rounds)
    artifact_bytes, weights_bytes = ours[0].steps[0]["artifact_bytes"], _tensor_bytes(weights)
    yield OVERHEAD.result(
        artifact_bytes / weights_bytes, {"artifact_bytes": artifact_bytes, "weights_bytes": weights_bytes}
    )


def _way(name: str, folder: Path, size: str, weights: Path, env: dict[str, str]) -> Side:
    """Return one way to a model in the store."""

    def steps() -> Sequence[Step]:
        folder.mkdir()
        if name != "ours":
            return [Step(f"bench.peer_steps:by_{name}", (size, str(folder)), env)]
        arguments = (size, str(weights), str(folder))
        before = [Step(f"bench.release_steps:{step}", arguments) for step in STEPS]
        return [*before, Step("bench.upload_steps:operator", (str(folder),), env)]

    def reset() -> None:
        shutil.rmtree(folder, ignore_errors=True)
        clear_store(env)

    return Side(name=name, steps=steps, reset=reset)


def _tensor_bytes(path: Path) -> int:
    """Return the bytes of the tensors; a safetensors file starts with the length of its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


@part("upload", 2, UPLOAD)
def upload(setting: Setting) -> Iterator[Result]:
    """Compare the upload task with boto3's transfer of the same files."""
    folder = str(setting.models.exported(LARGE))
    with object_store() as env:

        def side(name: str) -> Side:
            return Side(
                name=name,
                steps=lambda: [Step(f"bench.upload_steps:{name}", (folder,), env)],
                reset=lambda: clear_store(env),
            )

        costs = interleave([side("operator"), side("boto3")], setting.rounds)
    value, spread = ratio(costs["operator"], costs["boto3"])
    ours = "the whole task: folder compared with its record, objects uploaded and verified, report uploaded"
    yield UPLOAD.result(value, {"ours": ours, "runs": in_detail(costs)}, spread, n=setting.rounds)
