"""Rounds of a measurement: one block of timed calls of each runner, one after the other."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from onnx_release.errors import LatencyRefused
from onnx_release.latency.host import CpuWait
from onnx_release.latency.statistics import Times
from onnx_release.limits import CALLS_PER_ROUND_MAX, CPU_WAIT_SHARE_MAX, LATENCY_QUANTILES, MEASURE_BLOCK_S
from onnx_release.records import SideLatency
from onnx_release.runners import Runner
from onnx_release.samples.sample import Sample
from onnx_release.trained.arrays import Arrays


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Timed calls of one runner in one round.

    `wall_s` has the wall time of each call. `cpu_s` is the process's CPU time per call, over all threads.
    `cpu_wait_share` is the part of the block that the threads of another process waited for a CPU.
    """

    wall_s: tuple[float, ...]
    cpu_s: float
    cpu_wait_share: float | None = None


@runtime_checkable
class SelfTiming(Protocol):
    """Runner whose calls run, and are timed, in another process."""

    def time_block(self, inputs: Arrays, calls: int, until: float) -> Block:
        """Time a block of calls.

        Raises:
            TimeUp: a call would begin after the time `until` of `time.perf_counter`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class Round:
    """One block of each runner, in the order of the runners.

    `cpu_wait_share` is the part of the round that this process's threads waited for a CPU; None if it is not counted.
    """

    blocks: tuple[Block, ...]
    cpu_wait_share: float | None

    @property
    def is_quiet(self) -> bool:
        """True if the times are the models' own. A round counts as quiet where the kernel does not count waiting."""
        return self.cpu_wait_share is None or self.cpu_wait_share <= CPU_WAIT_SHARE_MAX


class TimeUp(Exception):
    """End of the measurement before the end of a round, which a busy host has made longer than the last one."""


def calls_per_block(warmup: Sequence[Round]) -> list[int]:
    """Return each runner's number of calls in a block, so that the blocks of all take about the same time."""
    counts = [int(np.ceil(MEASURE_BLOCK_S / max(fastest, 1e-9))) for fastest in fastest_s(warmup)]
    return [max(1, min(CALLS_PER_ROUND_MAX, count)) for count in counts]


def fastest_s(rounds: Sequence[Round]) -> list[float]:
    """Return the seconds of each runner's fastest call."""
    return [min(min(block.wall_s) for block in blocks) for blocks in zip(*(one.blocks for one in rounds), strict=True)]


def run_round(
    runners: Sequence[Runner], sample: Sample, calls: Sequence[int], first: int, *, until: float = math.inf
) -> Round:
    """Time one block of each runner, one after the other.

    Args:
        runners: the runners in the order of the returned blocks.
        sample: the input of every call.
        calls: timed calls per block, one number for each runner.
        first: the position of the runner that starts; the others follow in order.
        until: the time of `time.perf_counter` after which no call begins.
    """
    wait = CpuWait()
    places = [(first + step) % len(runners) for step in range(len(runners))]
    blocks = {place: _time_block(runners[place], sample, calls[place], until) for place in places}
    shares = [wait.share(), *(block.cpu_wait_share for block in blocks.values())]
    return Round(
        blocks=tuple(blocks[place] for place in range(len(runners))),
        cpu_wait_share=max((share for share in shares if share is not None), default=None),
    )


def _time_block(runner: Runner, sample: Sample, calls: int, until: float) -> Block:
    if isinstance(runner, SelfTiming):
        return runner.time_block(sample.inputs, calls, until)
    # A model may write into its input. The copy protects the other side and the next block.
    inputs = {name: array.copy() for name, array in sample.inputs.items()}
    # This call is not timed: it refills the caches and threads after the other side.
    _require_values(runner, runner.run(inputs))
    walls = []
    cpu_begin = time.process_time()
    for _ in range(calls):
        begin = time.perf_counter()
        if begin > until:
            raise TimeUp
        outputs = runner.run(inputs)
        walls.append(time.perf_counter() - begin)
    cpu_s = (time.process_time() - cpu_begin) / calls
    _require_values(runner, outputs)
    return Block(wall_s=tuple(walls), cpu_s=cpu_s)


def _require_values(runner: Runner, outputs: Arrays) -> None:
    """Read every value, so a lazy output is computed, and refuse outputs without values."""
    if not outputs or not all(array.tobytes() for array in outputs.values()):
        raise LatencyRefused(
            f"The output of {runner.name}",
            "has no values, so its latency cannot be measured",
            "Check the model's outputs on the sample.",
            code="no_output_values",
        )


def wall_times(blocks: Sequence[Block]) -> Times:
    """Return the wall times in s, of shape (rounds, calls per round)."""
    return np.array([block.wall_s for block in blocks], dtype=np.float64)


def summarize(blocks: Sequence[Block], batch_size: int) -> SideLatency:
    """Return one side's percentiles and throughput over all timed calls, and its median CPU time per round."""
    wall = wall_times(blocks)
    return SideLatency(
        p50_ms=float(np.median(wall)) * 1e3,
        p95_ms=float(np.quantile(wall, 0.95)) * 1e3,
        cpu_p50_ms=float(np.median([block.cpu_s for block in blocks])) * 1e3,
        throughput_per_s=batch_size / float(wall.mean()),
        quantiles_ms=tuple(float(value) * 1e3 for value in np.quantile(wall, LATENCY_QUANTILES)),
    )
