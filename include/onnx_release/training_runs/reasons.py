"""Short codes of the reasons for a decision, with their meanings."""

from __future__ import annotations

from collections.abc import Iterator

from onnx_release.errors import Refused

FINISHED = "finished"
IN_PROGRESS = "in_progress"
RELEASED_BEFORE = "released_before"
RETIRED = "retired"
STILL_RUNNING = "still_running"
DELETED = "run_deleted"
NOT_FINISHED = "run_not_finished"
NOT_ROUTED = "not_routed"
# Followed by a slash and the code or the state of the earlier attempt.
TRIED_BEFORE = "tried_before"

_MEANINGS = {
    FINISHED: "The run has finished, with a PyTorch model.",
    IN_PROGRESS: "The release of the run is in progress.",
    RELEASED_BEFORE: "The run is released as a version.",
    RETIRED: "The version of the run was retired. Only a person releases it again.",
    STILL_RUNNING: "The training goes on.",
    NOT_ROUTED: "No route of the watch matches the experiment.",
    TRIED_BEFORE: "An earlier release did not succeed. Clear its DAG run, or trigger the release DAG manually.",
}


def meanings() -> dict[str, str]:
    """Return one sentence for each code: those of decisions, and of all refusals that this process has."""
    stages = list(_subclasses(Refused))
    return {code: text for stage in reversed(stages) for code, text in stage.codes.items()} | _MEANINGS


def _subclasses(stage: type[Refused]) -> Iterator[type[Refused]]:
    for sub in stage.__subclasses__():
        yield sub
        yield from _subclasses(sub)


def tried_before(code: str, status: str) -> str:
    """Return the code for a run with an earlier attempt.

    :param code: the run's tag with the code of the refusal. It is text of anybody.
    :param status: the run's tag with the state of the release.
    """
    earlier = code if code in meanings() else status if status in ("refused", "failed", "released") else "unknown"
    return f"{TRIED_BEFORE}/{earlier}"


def meaning(code: str) -> str:
    """Return one sentence for a code, or an empty text."""
    first, _, earlier = code.partition("/")
    if earlier in meanings():
        return f"Tried before: {meanings()[earlier]}"
    return meanings().get(first, "")
