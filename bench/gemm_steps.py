"""A session beside the matrix products in it: ``python -m bench.gemm_steps ONNX BATCH ROUNDS``.

By turns: the session, then every shape of product by each library, each with every CPU. Each turn begins with calls
that are not timed: they pay for the caches, and for the threads of the one before that still spin.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime
import torch

from bench.gemm_shapes import Gemm, Products, products_of
from bench.marking import Marked
from bench.models import contract
from onnx_release.latency.host import usable_cpus
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.generate import make_samples

_WARM_UPS = 2
_CALLS_A_TURN, _WARM_S, _TIMED_S = 3, 0.05, 0.03


def products_by_library(gemm: Gemm, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return the product of these shapes by each library, ready to be called; as in a model, one side never changes."""
    generator = np.random.default_rng(0)
    left = generator.standard_normal((gemm.m, gemm.k), dtype=np.float32)
    right = generator.standard_normal((gemm.k, gemm.n), dtype=np.float32)
    out = np.empty((gemm.m, gemm.n), dtype=np.float32)
    left_t, right_t, out_t = (torch.from_numpy(array) for array in (left, right, out.copy()))
    path = folder / f"{gemm.m}x{gemm.k}x{gemm.n}.onnx"
    _save_product(gemm, right, path)
    runner = OnnxRuntimeRunner(path, OnnxRuntimeOptions(threads=usable_cpus()))
    return {
        "torch": lambda: torch.mm(left_t, right_t, out=out_t),
        "numpy": lambda: np.matmul(left, right, out=out),
        # The session packs its weights when it is opened, as it does those of a model.
        "onnxruntime": lambda: runner.run({"left": left}),
    }


def _save_product(gemm: Gemm, right: np.ndarray[Any, Any], path: Path) -> None:
    left = ir.Value(name="left", type=ir.TensorType(ir.DataType.FLOAT), shape=ir.Shape((gemm.m, gemm.k)))
    weight = ir.Value(name="right", const_value=ir.tensor(right, name="right"))
    node = ir.node("MatMul", [left, weight])
    node.outputs[0].name = "product"
    node.outputs[0].type, node.outputs[0].shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape((gemm.m, gemm.n))
    graph = ir.Graph([left], node.outputs, nodes=[node], initializers=[weight], opset_imports={"": 20})
    ir.save(ir.Model(graph, ir_version=10), path)


def profile(onnx: Path, inputs: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return which share of a session's time each kind of node takes, by ONNX Runtime's own profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(onnx), options, providers=["CPUExecutionProvider"])
    for _ in range(_WARM_UPS + 1):
        session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    taken: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            taken[event["args"]["op_name"]] += event["dur"]
    return {name: duration / taken.total() for name, duration in taken.most_common(8)}


def _measure(onnx: Path, batch_size: int, rounds: int, products: Products, folder: Path) -> dict[str, Any]:
    inputs = make_samples(contract().inputs, None, (batch_size,))[0].inputs
    shares = profile(onnx, inputs, folder)
    session_s: list[float] = []
    times: defaultdict[tuple[Gemm, str], list[float]] = defaultdict(list)
    with OnnxRuntimeRunner(onnx, OnnxRuntimeOptions(threads=usable_cpus())) as session:
        torch.set_num_threads(usable_cpus())
        ways = {gemm: products_by_library(gemm, folder) for gemm in products.gemms}
        for _ in range(rounds):
            session_s += _turn(lambda: session.run(inputs))
            for gemm, libraries in ways.items():
                for library, call in libraries.items():
                    times[gemm, library] += _turn(call)
    rows = []
    for gemm, count in sorted(products.gemms.items()):
        s = {library: statistics.median(times[gemm, library]) for library in ways[gemm]}
        gflop_per_s = {library: gemm.flop / 1e9 / value for library, value in s.items()}
        rows.append({"mkn": [gemm.m, gemm.k, gemm.n], "count": count, "best_s": min(s.values()), **gflop_per_s})
    return {"session_s": session_s, "shapes": rows, "session_time_by_node": shares}


def _turn(call: Callable[[], Any]) -> list[float]:
    # A product of a millisecond is over before the clock of the CPU has risen and the threads have settled.
    _calls(call, _WARM_S, 1)
    return _calls(call, _TIMED_S, _CALLS_A_TURN)


def _calls(call: Callable[[], Any], at_least_s: float, at_least: int) -> list[float]:
    taken: list[float] = []
    while sum(taken) < at_least_s or len(taken) < at_least:
        began = time.perf_counter()
        call()
        taken.append(time.perf_counter() - began)
    return taken


def _main(onnx: str, batch: str, rounds: str) -> None:
    products = products_of(Path(onnx), int(batch))
    marked = Marked()
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, marked.work():
        found = _measure(Path(onnx), int(batch), int(rounds), products, Path(folder))
    marked.report(flop=products.flop, grouped_flop=products.grouped_flop, **found)


if __name__ == "__main__":
    _main(*sys.argv[1:])
