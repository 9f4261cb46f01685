"""What an upload costs that is verified byte by byte, beside one that is not."""

from __future__ import annotations

from collections.abc import Iterator

from bench.models import LARGE
from bench.results import Result
from bench.setting import Setting
from bench.sides import Side, Step, by_turns, in_detail, ratio
from bench.store import clean, store
from onnx_release.latency.host import describe_host

GOAL = 1.3


def measure(setting: Setting) -> Iterator[Result]:
    """`upload_ratio`: the upload task on the large model's folder over boto3's own transfer of the same files."""
    folder = str(setting.models.exported(LARGE))
    with store() as env:
        ours, peer = (
            Side(
                name=way,
                steps=lambda way=way: [Step("bench.upload_steps", (way, folder), env)],  # type: ignore[misc] # bound now
                reset=lambda: clean(env),
            )
            for way in ("operator", "boto3")
        )
        taken = by_turns([ours, peer], setting.rounds)
    value, spread = ratio(taken["operator"], taken["boto3"])
    yield Result(
        name="upload_ratio",
        value=value,
        unit="x",
        goal=f"<= {GOAL:g}",
        met=value <= GOAL,
        n=setting.rounds,
        spread=spread,
        detail={
            "ours": "the whole task: the folder held against its record, objects put and verified, the report put",
            "runs": in_detail(taken),
            "host": describe_host().to_dict(),
        },
    )
