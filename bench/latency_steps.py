"""Step that times a pair of sides in one process, as a release does.

The pairs are ``fp32`` (eager PyTorch and ONNX Runtime), ``compile`` (torch.compile and ONNX Runtime), ``onnxruntime``
and ``torch`` (each compared with itself) and ``pt2`` (eager PyTorch and the exported program that a release may time).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from bench.models import OUTPUT_NAMES, contract, make
from bench.step import Meter
from onnx_release.latency.host import usable_cpus
from onnx_release.latency.measure import Sides, measure
from onnx_release.limits import LatencyBudget, MeasurePlan
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner, TorchModel
from onnx_release.samples.generate import make_samples
from onnx_release.samples.sample import Sample

# A side compared with itself must result in 1; every wide interval would contain that.
_SELF_WIDTH_MAX = 0.2
# A release may stop earlier, as soon as its limits are settled; a published value needs a narrow interval.
_MIN_S = 4.0
_SELF = ("onnxruntime", "torch", "pt2")


def time_pair(meter: Meter, pair: str, size: str, batch: str, onnx: str, limit: str, longest_s: str) -> dict[str, Any]:
    """Time a pair at a batch size; the empty `limit` or `longest_s` means none."""
    sample = make_samples(contract().inputs, None, (int(batch),))[0]
    plan = MeasurePlan(measure_min_s=_MIN_S)
    if pair in _SELF:
        plan = plan.replace(interval_width_max=_SELF_WIDTH_MAX)
    if longest_s:
        plan = plan.replace(measure_min_s=min(plan.measure_min_s, float(longest_s)), measure_max_s=float(longest_s))
    budget = LatencyBudget(speedup_min=float(limit), speedup_goal=float(limit)) if limit else None
    meter.start()
    began = time.perf_counter()
    with sides_of(pair, size, Path(onnx), sample) as sides:
        ready_s = time.perf_counter() - began
        with meter.work():
            measured = measure(sides, sample, plan, budget)
    return {"latency": measured.to_dict(), "ready_s": ready_s, "threads": usable_cpus()}


@contextmanager
def sides_of(pair: str, size: str, onnx: Path, sample: Sample) -> Iterator[Sides]:
    """Yield both sides of a pair, ready to run; `onnx` is a file for the pairs with ONNX Runtime."""
    if pair == "onnxruntime":
        with _session(onnx) as session:
            yield Sides(reference=session, candidate=session)
        return
    model = make(size)
    if pair == "compile":
        model.forward = torch.compile(model.forward, dynamic=False)  # type: ignore[method-assign] # it stays a module
    with _pytorch(model) as reference:
        if pair == "torch":
            yield Sides(reference=reference, candidate=reference)
        elif pair == "pt2":
            example = tuple(contract().tensors("cpu").values())
            program = torch.export.export(model, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
            with _pytorch(program) as exported:
                yield Sides(reference=reference, candidate=exported)
        else:
            with _session(onnx) as session:
                reference.run(sample.inputs)
                yield Sides(reference=reference, candidate=session)


def _pytorch(model: TorchModel) -> PyTorchRunner:
    names = contract().input_names
    return PyTorchRunner(model, PyTorchOptions(input_names=names, output_names=OUTPUT_NAMES, threads=usable_cpus()))


def _session(path: Path) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(path, OnnxRuntimeOptions(threads=usable_cpus()))
