"""Profile of a release: wall time, CPU time and memory of the parts of each step, without the measurement of latency.

The steps are those of `bench.release_steps`, the upload, and ``fetch_back``: the registration's download and smoke
test. A span's figures exclude the spans within it.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from bench.figure import Figure, Result, Setting, part, progress
from bench.models import LARGE
from bench.servers import object_store
from bench.sides import Step
from bench.step import Meter, memory_bytes, reset_peak

PROFILE = Figure("release_profile_s", "s")
REST = "the rest"
# Timed functions by the name that their callers look up.
SPANS = {
    "export": {
        "onnx_release.export.export_model:load_unchecked": "map the weights",
        "onnx_release.export.verify:ExportVerifier.__init__": "run PyTorch at two batch sizes",
        "torch.export:export": "trace the model (torch.export)",
        "onnx_release.export.strategies:_convert_with_dynamo": "translate and optimise the graph (torch.onnx)",
        "onnx_release.export.graph_cleanup:save_model": "write graph and weights, folded ones put in order",
        "onnx_release.export.verify:ExportVerifier.__call__": "run it in ONNX Runtime, and more meanwhile",
    },
    "check": {
        "onnx.checker:check_model": "onnx.checker, by path",
        "onnx.shape_inference:infer_shapes": "shape inference, strict",
    },
    "compare": {
        "onnx_release.benchmark.benchmark_model:compare_artifact": "samples, verdict, and the remainder",
        "onnx_release.benchmark.setup:require_bytes": "compare the folder with its record",
        "onnx_release.benchmark.setup:load_trained": "map the weights, search NaN and infinity",
        "onnx_release.parity.compare_model:Comparison.run_reference": "run PyTorch on every sample",
        "onnx_release.benchmark.setup:BenchmarkSetup.candidate": "open the session of ONNX Runtime",
        "onnx_release.parity.compare_model:Comparison.run_candidate": "run ONNX Runtime on every sample, and compare",
    },
    "upload": {
        "airflow_onnx.storage.s3:require_bucket": "make the client, check the bucket",
        "onnx_release.artifact.digests:describe_folder": "compare the small files with their record",
        "airflow_onnx.storage.s3:put": "upload the files and verify them",
    },
    "fetch_back": {
        "airflow_onnx.storage.s3:fetch": "download the objects into a fresh folder",
        "onnx_release.check.smoke_test:require_bytes": "hash every byte",
        "onnx_release.check.smoke_test:smoke_test": "run it in ONNX Runtime",
    },
}


@part("profile", 2, PROFILE)
def measure(setting: Setting) -> Iterator[Result]:
    """Run the steps of a release once, each in a fresh process, with a clock on their parts."""
    weights, folder = setting.models.weights(LARGE), setting.folder / "profile"
    folder.mkdir()
    rows: list[dict[str, Any]] = []
    with object_store() as env:
        for name in SPANS:
            arguments = (name, setting.models.size(LARGE), str(weights), str(folder))
            found = Step("bench.profile:step", arguments, env).run()
            rows += [{"step": name, **row} for row in found["spans"]]
            progress(f"{name}: {found['wall_s']:.2f} s, imports {found['import_s']:.1f} s before it")
    detail = {"model_bytes": weights.stat().st_size, "rows": rows}
    yield PROFILE.result(sum(row["wall_s"] for row in rows), detail)


def as_table(detail: dict[str, Any]) -> str:
    """Return the rows as a Markdown table; the peak is a multiple of the model's bytes."""
    lines = ["| task | span | wall s | CPU s | peak, times the model |", "|---|---|---|---|---|"]
    for row in detail["rows"]:
        peak = row["peak_bytes"] / detail["model_bytes"]
        lines.append(f"| {row['step']} | {row['span']} | {row['wall_s']:.2f} | {row['cpu_s']:.2f} | {peak:.2f} |")
    return "\n".join(lines)


def step(meter: Meter, name: str, size: str, trained: str, folder: str) -> dict[str, Any]:
    """Run a step with a clock on its parts."""
    from bench import release_steps

    case = release_steps.case(size, trained, folder)
    if name in ("upload", "fetch_back"):
        # The tasks import these on first use.
        for module in ("airflow.providers.amazon.aws.hooks.s3", "airflow_onnx.operators.upload", "boto3.s3.transfer"):
            import_module(module)
        import_module("airflow_onnx.operators.register")
        from bench import upload_steps

        function = upload_steps.upload if name == "upload" else upload_steps.fetch_back
        work: Callable[[], object] = functools.partial(function, case.folder)
    else:
        work = functools.partial(getattr(release_steps, name), Meter(), size, trained, folder)
    for target in SPANS[name]:
        import_module(target.partition(":")[0])
    meter.start()
    clock = Clock()
    for target, span in SPANS[name].items():
        clock.attach(target, span)
    with meter.work():
        work()
    clock.charge()
    return {"spans": [vars(clock.spans[span]) for span in (*SPANS[name].values(), REST) if span in clock.spans]}


@dataclass
class Span:
    """Cost of a part of a step: seconds of the clock and of all CPUs, and the peak of memory above the imports."""

    span: str
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0


class Clock:
    """Clock that charges time and memory to the innermost open span."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self._open = [REST]
        self._imports_bytes = memory_bytes(os.getpid(), "VmRSS")
        reset_peak()
        self._since = (time.perf_counter(), time.process_time())

    def charge(self) -> None:
        """Charge the costs since the last call to the open span."""
        now = (time.perf_counter(), time.process_time())
        span = self.spans.setdefault(self._open[-1], Span(self._open[-1]))
        span.wall_s += now[0] - self._since[0]
        span.cpu_s += now[1] - self._since[1]
        span.peak_bytes = max(span.peak_bytes, memory_bytes(os.getpid(), "VmHWM") - self._imports_bytes)
        reset_peak()
        self._since = (time.perf_counter(), time.process_time())

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Open a span within the open one."""
        self.charge()
        self._open.append(name)
        try:
            yield
        finally:
            self.charge()
            self._open.pop()

    def attach(self, target: str, span: str) -> None:
        """Open a span at every call of a function, ``module:name`` or ``module:Class.name``."""
        module, _, path = target.partition(":")
        owner: Any = import_module(module)
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.span(span):
                return function(*arguments, **keywords)

        setattr(owner, name, timed)
