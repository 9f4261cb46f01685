"""A release's step with a clock on what it is made of: ``python -m bench.profile_steps STEP SIZE TRAINED FOLDER``.

The steps are those of `bench.release_steps` and the upload of `bench.upload_steps`; ``fetch_back`` is what the
registration does before MLflow may name the objects. A span's time and peak are its own, without those of the spans
within it.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from importlib import import_module
from io import StringIO
from pathlib import Path
from typing import Any

from bench.marking import memory_bytes, reset_peak
from bench.release_steps import STEPS, Case

REST = "the rest"
# What a clock is put on, as it is looked up when it is called.
SPANS = {
    "export": {
        "onnx_release.export.export_model:load_trained": "map the weights, look for NaN and infinity",
        "onnx_release.export.verify:ExportVerifier.__init__": "run PyTorch at two batch sizes",
        "torch.export:export": "trace the model (torch.export)",
        "onnx_release.export.strategies:_convert_with_dynamo": "translate and optimise the graph (torch.onnx)",
        "onnx_release.export.graph_cleanup:save_model": "write graph and weights, folded ones put in order",
        "onnx_release.export.verify:ExportVerifier.__call__": "run it in ONNX Runtime (own process) while hashing",
    },
    "check": {
        "onnx_release.check.static_checks:verify_folder": "hold the folder against its record",
        "onnx.checker:check_model": "onnx.checker, by path",
        "onnx.shape_inference:infer_shapes": "shape inference, strict",
    },
    "compare": {
        "onnx_release.benchmark.benchmark_model:compare_artifact": "samples, verdict and all that is not below",
        "onnx_release.benchmark.setup:require_bytes": "hold the folder against its record",
        "onnx_release.benchmark.setup:load_trained": "map the weights, look for NaN and infinity",
        "onnx_release.parity.compare_model:Comparison.run_reference": "run PyTorch on every sample",
        "onnx_release.benchmark.setup:BenchmarkSetup.candidate": "open the session of ONNX Runtime",
        "onnx_release.parity.compare_model:Comparison.run_candidate": "run ONNX Runtime on every sample, and compare",
    },
    "upload": {
        "airflow_onnx.storage.s3:require_bucket": "make the client, look for the bucket",
        "onnx_release.artifact.digests:verify_folder": "hold the folder against its record",
        "airflow_onnx.storage.s3:put": "put the files and verify them",
    },
    "fetch_back": {
        "airflow_onnx.storage.s3:fetch": "download the objects into a fresh folder",
        "onnx_release.check.smoke_test:require_bytes": "hash every byte",
        "onnx_release.check.smoke_test:smoke_test": "run it in ONNX Runtime",
    },
}


@dataclass
class Span:
    """What one piece of the work took: its own seconds on the clock and on CPUs, and its own peak above imports."""

    what: str
    wall_s: float = 0.0
    cpu_s: float = 0.0
    peak_bytes: int = 0


class Clock:
    """Charges time and memory to the innermost span that is open."""

    def __init__(self) -> None:
        self.spans: dict[str, Span] = {}
        self._open = [REST]
        self._imports_bytes = memory_bytes(os.getpid(), "VmRSS")
        reset_peak()
        self._since = (time.perf_counter(), time.process_time())

    def charge(self) -> None:
        """Put what went by since the last call on the span that is open now."""
        now = (time.perf_counter(), time.process_time())
        span = self.spans.setdefault(self._open[-1], Span(self._open[-1]))
        span.wall_s += now[0] - self._since[0]
        span.cpu_s += now[1] - self._since[1]
        span.peak_bytes = max(span.peak_bytes, memory_bytes(os.getpid(), "VmHWM") - self._imports_bytes)
        reset_peak()
        self._since = (time.perf_counter(), time.process_time())

    @contextmanager
    def span(self, what: str) -> Iterator[None]:
        """Open a span within the one that is open."""
        self.charge()
        self._open.append(what)
        try:
            yield
        finally:
            self.charge()
            self._open.pop()

    def put_on(self, target: str, what: str) -> None:
        """Open a span whenever this function is called: ``module:name`` or ``module:Class.name``."""
        module, _, path = target.partition(":")
        owner: Any = import_module(module)
        *classes, name = path.split(".")
        for each in classes:
            owner = getattr(owner, each)
        function: Callable[..., Any] = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **keywords: Any) -> Any:
            with self.span(what):
                return function(*arguments, **keywords)

        setattr(owner, name, timed)


def _work(step: str, case: Case) -> Callable[[], object]:
    """Import what the step needs, and return the step."""
    if step in STEPS:
        import_module("examples.localization")
        return lambda: STEPS[step](case)
    # The tasks import these when they first need them.
    for module in ("airflow.providers.amazon.aws.hooks.s3", "airflow_onnx.operators.upload", "boto3.s3.transfer"):
        import_module(module)
    from bench import upload_steps

    if step == "upload":
        return lambda: upload_steps.put_as_task(case.folder)
    import_module("airflow_onnx.operators.register")
    return lambda: upload_steps.fetch_back(case.folder)


def _main(step: str, case: Case) -> None:
    work = _work(step, case)
    targets = SPANS[step]
    for target in targets:
        import_module(target.partition(":")[0])
    said = StringIO()
    import_s = time.process_time()
    clock = Clock()
    for target, what in targets.items():
        clock.put_on(target, what)
    with redirect_stdout(said):
        work()
    clock.charge()
    # In the order of the work; what is left over comes last.
    order = [*targets.values(), REST]
    spans = [vars(clock.spans[what]) for what in order if what in clock.spans]
    wall_s = sum(span["wall_s"] for span in spans)
    print(json.dumps({"spans": spans, "wall_s": wall_s, "peak_bytes": 0, "imports_bytes": 0, "import_s": import_s}))


if __name__ == "__main__":
    _main(sys.argv[1], Case(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
