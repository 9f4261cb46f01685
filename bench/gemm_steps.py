"""Step that times a session and the matrix products in it, in interleaved rounds.

Each round times the session and then every shape of product in each library, with every CPU. The first calls of a turn
are not timed: they fill the caches, and let spinning threads of the previous turn end.
"""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from bench.models import contract
from bench.step import Meter
from onnx_release.latency.host import usable_cpus
from onnx_release.runners.onnxruntime import OnnxRuntimeOptions, OnnxRuntimeRunner
from onnx_release.samples.generate import make_samples

_WARM_UPS = 2
_CALLS_PER_TURN, _WARM_S, _TIMED_S = 3, 0.05, 0.03

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True, order=True)
class Gemm:
    """Product of an (m, k) and a (k, n) matrix."""

    m: int
    k: int
    n: int

    @property
    def flop(self) -> int:
        """One multiplication and one addition per term."""
        return 2 * self.m * self.k * self.n


@dataclass(frozen=True, slots=True, kw_only=True)
class Products:
    """Number of products by shape, and the FLOPs of grouped convolutions, which are not products."""

    gemms: Counter[Gemm]
    grouped_flop: int

    @property
    def flop(self) -> int:
        """FLOPs of all products."""
        return sum(gemm.flop * count for gemm, count in self.gemms.items())


def products_of(path: Path, batch_size: int) -> Products:
    """Return the products of a model at a batch size, without reading its weights.

    A dense convolution is the product of its patches with its kernel.

    Raises:
        ValueError: The graph lacks the shapes of a product.
    """
    model = onnx.load(str(path), load_external_data=False)
    for value in (*model.graph.input, *model.graph.output):
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_value = batch_size
    # The exporter's shapes of inner values have the symbolic batch.
    del model.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    shapes: Shapes = {tensor.name: tuple(tensor.dims) for tensor in inferred.initializer}
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        shapes[value.name] = tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
    gemms: Counter[Gemm] = Counter()
    grouped_flop = 0
    for node in inferred.node:
        if node.op_type == "Conv" and _attributes(node).get("group", 1) != 1:
            (kernel, output) = _known(node, shapes, node.input[1], node.output[0])
            grouped_flop += 2 * math.prod(output) * math.prod(kernel[1:])
        else:
            gemms.update(_gemms(node, shapes))
    return Products(gemms=gemms, grouped_flop=grouped_flop)


def _gemms(node: onnx.NodeProto, shapes: Shapes) -> Iterator[Gemm]:
    if node.op_type == "MatMul":
        left, right = _known(node, shapes, *node.input)
        # A stack of matrices on the right side is one product per matrix.
        count = math.prod(right[:-2])
        yield from [Gemm(math.prod(left[:-1]) // count, left[-1], right[-1])] * count
    elif node.op_type == "Gemm":
        left, right = _known(node, shapes, *node.input[:2])
        attributes = _attributes(node)
        m, k = reversed(left) if attributes.get("transA") else left
        yield Gemm(m, k, right[0] if attributes.get("transB") else right[1])
    elif node.op_type == "Conv":
        kernel, output = _known(node, shapes, node.input[1], node.output[0])
        yield Gemm(output[0] * math.prod(output[2:]), math.prod(kernel[1:]), kernel[0])


def _attributes(node: onnx.NodeProto) -> dict[str, int]:
    return {attribute.name: attribute.i for attribute in node.attribute}


def _known(node: onnx.NodeProto, shapes: Shapes, *names: str) -> list[tuple[int, ...]]:
    found = [shapes.get(name, ()) for name in names]
    if not all(shape and all(shape) for shape in found):
        raise ValueError(f"{node.op_type} {node.name}: the graph has no shapes of {', '.join(names)}")
    return found


def products(meter: Meter, onnx_file: str, batch: str, rounds: str) -> dict[str, Any]:
    """Time a session and its products; return their times and the session's time by kind of node."""
    path, found = Path(onnx_file), products_of(Path(onnx_file), int(batch))
    inputs = make_samples(contract().inputs, None, (int(batch),))[0].inputs
    session_s: list[float] = []
    times: defaultdict[tuple[Gemm, str], list[float]] = defaultdict(list)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch, meter.work():
        shares = _time_by_node(path, inputs, Path(scratch))
        with OnnxRuntimeRunner(path, OnnxRuntimeOptions(threads=usable_cpus())) as session:
            torch.set_num_threads(usable_cpus())
            calls = {gemm: _by_library(gemm, Path(scratch)) for gemm in found.gemms}
            for _ in range(int(rounds)):
                session_s += _turn(lambda: session.run(inputs))
                for gemm, libraries in calls.items():
                    for library, call in libraries.items():
                        times[gemm, library] += _turn(call)
    rows = []
    for gemm, count in sorted(found.gemms.items()):
        s = {library: statistics.median(times[gemm, library]) for library in calls[gemm]}
        gflop_per_s = {library: gemm.flop / 1e9 / value for library, value in s.items()}
        rows.append({"mkn": [gemm.m, gemm.k, gemm.n], "count": count, "best_s": min(s.values()), **gflop_per_s})
    flop = {"flop": found.flop, "grouped_flop": found.grouped_flop}
    return {"session_s": session_s, "shapes": rows, "session_time_by_node": shares, **flop}


def _by_library(gemm: Gemm, folder: Path) -> dict[str, Callable[[], Any]]:
    """Return a call of the product for each library; as in a model, one side is constant."""
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
        # The session packs its weights when it opens, as for a whole model.
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


def _time_by_node(path: Path, inputs: dict[str, Any], folder: Path) -> dict[str, float]:
    """Return the share of a session's time by kind of node, from ONNX Runtime's profile."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = usable_cpus()
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    for _ in range(_WARM_UPS + 1):
        session.run(None, inputs)
    events = json.loads(Path(session.end_profiling()).read_text())
    time_us: Counter[str] = Counter()
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            time_us[event["args"]["op_name"]] += event["dur"]
    return {name: duration / time_us.total() for name, duration in time_us.most_common(8)}


def _turn(call: Callable[[], Any]) -> list[float]:
    # A product takes a millisecond; the CPU's clock and the threads need longer to settle.
    _calls(call, _WARM_S, 1)
    return _calls(call, _TIMED_S, _CALLS_PER_TURN)


def _calls(call: Callable[[], Any], min_s: float, min_calls: int) -> list[float]:
    times: list[float] = []
    while sum(times) < min_s or len(times) < min_calls:
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return times
