"""A tuning as the task `tune` runs it: ``python -m bench.tune_steps SIZE TRAINED FOLDER OUT S``.

`TRAINED` are weights with a sample to evaluate on beside them, `FOLDER` is one that `bench.release_steps` has filled,
`OUT` takes the winner's package, S is the longest tuning.
"""

from __future__ import annotations

import sys
from pathlib import Path

from bench.marking import Marked
from bench.models import EVALUATION
from bench.release_steps import Case
from onnx_release.benchmark.setup import BenchmarkOptions
from onnx_release.limits import RUNTIME_DOMAIN
from onnx_release.records import Precision
from onnx_release.tuning.options import TuneOptions
from onnx_release.tuning.tune_model import tune_artifact


def _main(size: str, trained: str, folder: str, out: str, max_s: str) -> None:
    from examples import localization  # noqa: F401 - the factory's module is one of the imports

    case = Case(size, Path(trained), Path(folder))
    options = TuneOptions(
        judge=BenchmarkOptions(**case.source),
        precisions=(Precision.INT8,),
        max_s=float(max_s),
        evaluation=str(case.trained.with_name(EVALUATION)),
        allowed_domains=(RUNTIME_DOMAIN,),
    )
    marked = Marked()
    with marked.work():
        tuned = tune_artifact(case.trained, case.onnx, case.artifact(), Path(out), options)
    assert tuned.tuning is not None  # noqa: S101 - a tuning always leaves its table
    marked.report(
        variant=tuned.variant,
        size_bytes=tuned.size_bytes,
        session_options=tuned.session_options,
        table=tuned.tuning.to_dict(),
    )


if __name__ == "__main__":
    _main(*sys.argv[1:])
