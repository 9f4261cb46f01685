"""What a release costs beside a script that does the same by hand, and beside the way that it replaces."""

from __future__ import annotations

import shutil
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bench.models import LARGE
from bench.results import Result
from bench.setting import Setting
from bench.sides import Side, Step, Taken, by_turns, highest_of, in_detail, peak, ratio, taken_by
from bench.store import clean, store
from onnx_release.latency.host import describe_host

PEAK_GOAL, HAND_GOAL, ORIGINAL_GOAL, ORIGINAL_PEAK_GOAL, OVERHEAD_GOAL = 2.2, 0.8, 0.9, 0.6, 1.01
_JUDGING = ("export", "check", "compare")


def measure(setting: Setting) -> Iterator[Result]:
    """All figures of a release, from the same runs; three ways by turns, the model in memory for all but ours."""
    size, weights = setting.models.size(LARGE), setting.models.weights(LARGE)
    with store() as env:
        ours, hand, original = (Way(name, size, setting.folder / name, weights, env) for name in _WAYS)
        taken = by_turns([ours.side(), hand.side(), original.side()], setting.rounds)
    judged = [_without_upload(one) for one in taken["ours"]]
    model_bytes = weights.stat().st_size
    detail = {"model_bytes": model_bytes, "runs": in_detail(taken), "host": describe_host().to_dict()}
    detail |= {"imports_s": {step: _median_of(taken["ours"], n, "import_s") for n, step in enumerate(_OURS)}}
    by_hand = ratio(judged, taken["hand"])
    yield _result("release_wall_ratio", by_hand, HAND_GOAL, setting.rounds, detail)
    see = {"see": "release_wall_ratio"}
    peaks = [peak(one) / model_bytes for one in judged]
    spread = (min(peaks), max(peaks))
    worst = {
        step: statistics.median(highest_of(one.steps[n]) for one in taken["ours"]) / model_bytes
        for n, step in enumerate(_OURS)
    }
    value = statistics.median(peaks)
    yield _result("release_peak_over_model", (value, spread), PEAK_GOAL, setting.rounds, see | {"by_step": worst})
    walls = ratio(taken["ours"], taken["original"])
    yield _result("release_vs_original", walls, ORIGINAL_GOAL, setting.rounds, see | {"uploads": "both"})
    heights = ratio(taken["ours"], taken["original"], peak)
    yield _result("release_vs_original_peak", heights, ORIGINAL_PEAK_GOAL, setting.rounds, see)
    artifact_bytes = taken["ours"][0].steps[0]["artifact_bytes"]
    whole = artifact_bytes / _weights_bytes(weights)
    more = {"artifact_bytes": artifact_bytes, "weights_bytes": _weights_bytes(weights)}
    yield _result("artifact_overhead", (whole, (whole, whole)), OVERHEAD_GOAL, 1, more)


class Way:
    """One way to a model in the store, in a folder of its own."""

    def __init__(self, name: str, size: str, folder: Path, weights: Path, env: dict[str, str]) -> None:
        self._name = name
        self._size = size
        self._folder = folder
        self._weights = weights
        self._env = env

    def side(self) -> Side:
        """Return it as a side of the comparison."""
        return Side(name=self._name, steps=self._steps, reset=self._reset)

    def _steps(self) -> Sequence[Step]:
        self._folder.mkdir()
        folder = str(self._folder)
        if self._name != "ours":
            return [Step("bench.hand_script", (_WAYS[self._name], self._size, folder), self._env)]
        arguments = (self._size, str(self._weights), folder)
        judging = [Step("bench.release_steps", (step, *arguments)) for step in _JUDGING]
        return [*judging, Step("bench.upload_steps", ("operator", folder), self._env)]

    def _reset(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
        clean(self._env)


_WAYS = {"ours": "", "hand": "dynamo", "original": "torchscript"}
_OURS = (*_JUDGING, "upload")


def _without_upload(taken: Taken) -> Taken:
    """Return the run as the hand script goes: it puts nothing anywhere."""
    return taken_by(taken.steps[: len(_JUDGING)])


def _median_of(runs: Sequence[Taken], step: int, field: str) -> float:
    return float(statistics.median(one.steps[step][field] for one in runs))


def _weights_bytes(path: Path) -> int:
    """Return the bytes of the tensors alone; a safetensors file begins with the length of its header."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")


def _result(
    name: str, found: tuple[float, tuple[float, float]], goal: float, rounds: int, detail: dict[str, Any]
) -> Result:
    value, spread = found
    return Result(
        name=name,
        value=value,
        unit="x",
        goal=f"<= {goal:g}",
        met=value <= goal,
        n=rounds,
        spread=spread,
        detail=detail,
    )
