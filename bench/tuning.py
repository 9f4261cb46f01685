"""What a release gains that asks for int8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from bench.models import LARGE
from bench.results import NotMeasured, Result, say
from bench.setting import Setting
from bench.sides import Step, run_step
from bench.speed import latency, speedup
from onnx_release.limits import MODEL_FILE

GOAL, COSINE_GOAL = 2.0, 0.999
BATCHES = (1, 8)
_MAX_S, _REHEARSAL_S = 300, 20


def measure(setting: Setting) -> Iterator[Result]:
    """`speedup_int8_large_bN`: the winner of a tuning to int8 against eager PyTorch, measured as a release does.

    The goal is met only within a cosine of at least 0.999, on all that the release compares. The model's heads are
    fitted, and the tuning holds the mean absolute error of its positions, too.
    """
    models = setting.models
    out = setting.folder / "int8"
    longest_s = _REHEARSAL_S if models.rehearsal else _MAX_S
    trained, exported = models.fitted(LARGE), models.exported(LARGE, fitted=True)
    arguments = (models.size(LARGE), *map(str, (trained, exported, out, longest_s)))
    tuned = run_step(Step("bench.tune_steps", arguments))
    if not tuned["variant"]:
        tried = "; ".join(_told(one) for one in tuned["table"]["candidates"] if one["precision"] == "int8")
        raise NotMeasured(f"no int8 form passed and was faster than the plain export: {tried}")
    won = next(one for one in tuned["table"]["candidates"] if one["name"] == tuned["variant"])
    say(f"{tuned['variant']}: {tuned['size_bytes'] / 1e6:.0f} MB, least cosine {won['cosine']:.6f}")
    detail = {
        "variant": tuned["variant"],
        "least_cosine": won["cosine"],
        "sqnr_db": won["sqnr_db"],
        "positions_mae": won["task_metrics"],
        "tuning": tuned,
    }
    for batch in BATCHES:
        found = latency(setting, "fp32", LARGE, batch, GOAL, onnx=out / MODEL_FILE)
        yield speedup(f"speedup_int8_large_b{batch}", found, GOAL, detail, holds=won["cosine"] >= COSINE_GOAL)


def _told(candidate: dict[str, Any]) -> str:
    figures = [f"{name} {candidate[name]:.4g}" for name in ("speedup", "cosine") if candidate[name] is not None]
    return f"{candidate['name']} {candidate['outcome']} ({', '.join(filter(None, [*figures, candidate['reason']]))})"
