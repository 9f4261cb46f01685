"""Two sides timed in one process, as a release times them.

``python -m bench.latency_steps PAIR SIZE BATCH ONNX [GOAL [S]]``: S is the longest measuring. PAIR is ``fp32`` (eager
PyTorch and ONNX Runtime), ``compile`` (torch.compile in place of eager), ``onnxruntime`` and ``torch`` (each against
itself) or ``pt2`` (eager against the exported program that a release may time in its place).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench.marking import Marked
from bench.models import OUTPUT_NAMES, contract, make
from onnx_release.latency.host import usable_cpus
from onnx_release.latency.measure import Sides, measure
from onnx_release.limits import MeasurePlan
from onnx_release.records import BatchLatency
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.runners.pytorch import PyTorchOptions, PyTorchRunner, TorchModel
from onnx_release.samples.generate import make_samples
from onnx_release.samples.sample import Sample

# A side that is held against itself must come out at 1: a wide interval would say so of anything.
_OWN_WIDTH_MAX = 0.2


def _torch(model: TorchModel) -> PyTorchRunner:
    names = contract().input_names
    return PyTorchRunner(model, PyTorchOptions(input_names=names, output_names=OUTPUT_NAMES, threads=usable_cpus()))


def _ort(path: Path) -> OnnxRuntimeRunner:
    return OnnxRuntimeRunner(path, OnnxRuntimeOptions(threads=usable_cpus()))


@contextmanager
def _fp32(size: str, onnx: Path, _: Sample) -> Iterator[Sides]:
    with _torch(make(size)) as eager, _ort(onnx) as session:
        yield Sides(reference=eager, candidate=session)


@contextmanager
def _compile(size: str, onnx: Path, sample: Sample) -> Iterator[Sides]:
    model = make(size)
    model.forward = torch.compile(model.forward, dynamic=False)  # type: ignore[method-assign] # it stays a module
    with _torch(model) as compiled, _ort(onnx) as session:
        compiled.run(sample.inputs)
        yield Sides(reference=compiled, candidate=session)


@contextmanager
def _own_onnxruntime(size: str, onnx: Path, _: Sample) -> Iterator[Sides]:
    with _ort(onnx) as session:
        yield Sides(reference=session, candidate=session)


@contextmanager
def _own_torch(size: str, onnx: Path, _: Sample) -> Iterator[Sides]:
    with _torch(make(size)) as eager:
        yield Sides(reference=eager, candidate=eager)


@contextmanager
def _pt2(size: str, onnx: Path, sample: Sample) -> Iterator[Sides]:
    module = make(size)
    example = tuple(contract().tensors("cpu"))
    program = torch.export.export(module, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
    with _torch(module) as eager, _torch(program) as exported:
        yield Sides(reference=eager, candidate=exported)


_PAIRS: dict[str, Callable[..., object]] = {
    "fp32": _fp32, "compile": _compile, "onnxruntime": _own_onnxruntime, "torch": _own_torch, "pt2": _pt2,
}  # fmt: skip
_OWN = ("onnxruntime", "torch", "pt2")


def _main(pair: str, size: str, batch: str, onnx: str, limit: str = "", longest_s: str = "") -> None:
    sample = make_samples(contract().inputs, None, (int(batch),))[0]
    plan = MeasurePlan().replace(interval_width_max=_OWN_WIDTH_MAX) if pair in _OWN else MeasurePlan()
    if longest_s:
        plan = plan.replace(measure_min_s=min(plan.measure_min_s, float(longest_s)), measure_max_s=float(longest_s))
    marked = Marked()
    measured: list[BatchLatency] = []
    began = time.perf_counter()
    with _PAIRS[pair](size, Path(onnx), sample) as sides:  # type: ignore[attr-defined] # each is one
        ready_s = time.perf_counter() - began
        with marked.work():
            measured.append(measure(sides, sample, plan, float(limit) if limit else None))
    marked.report(latency=measured[0].to_dict(), ready_s=ready_s, threads=usable_cpus())


if __name__ == "__main__":
    _main(*sys.argv[1:])
