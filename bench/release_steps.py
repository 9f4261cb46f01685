"""The steps of a release, each a process of its own, as Airflow runs them.

``python -m bench.release_steps STEP SIZE TRAINED FOLDER``: `TRAINED` is a file of weights or the folder of a pt2
program, `FOLDER` takes the artifact and its record.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.marking import Marked
from bench.models import FACTORY, INPUT_SPEC
from onnx_release.records import OnnxArtifact
from onnx_release.trained.model_factory import FactoryOptions

ARTIFACT, RECORD = "onnx", "artifact.json"
BATCH_SIZES = (1, 8, 32)
# Of a model that fills the memory, PyTorch's activations at 32 rows would be measured instead of the weights.
BATCH_SIZES_OF_HUGE = (1, 3)


@dataclass(frozen=True, slots=True)
class Case:
    """What is released, and where to."""

    size: str
    trained: Path
    folder: Path

    @property
    def source(self) -> dict[str, Any]:
        """What the release is told of weights that lie alone; a pt2 program says it itself."""
        if self.trained.is_dir():
            return {}
        factory = FactoryOptions(path=FACTORY, allowed=("examples",), kwargs={"size": self.size})
        return {"factory": factory, "input_spec": INPUT_SPEC}

    @property
    def onnx(self) -> Path:
        """The artifact's folder."""
        return self.folder / ARTIFACT

    def artifact(self) -> OnnxArtifact:
        """Return the artifact's record."""
        return OnnxArtifact.from_dict(json.loads((self.folder / RECORD).read_text()))


def _export(case: Case) -> None:
    from examples import localization  # noqa: F401 - the factory's module is one of the imports
    from onnx_release.export.export_model import ExportStepOptions, export_trained

    marked = Marked()
    with marked.work():
        artifact = export_trained(case.trained, case.onnx, ExportStepOptions(device="cpu", **case.source))
    (case.folder / RECORD).write_text(json.dumps(artifact.to_dict()))
    attempts = [attempt.to_dict() for attempt in artifact.attempts]
    marked.report(
        artifact_bytes=artifact.size_bytes,
        strategy=artifact.strategy,
        attempts=attempts,
        without_load_and_package_s=artifact.export_wall_s,
    )


def _load(case: Case) -> None:
    """Load what the training run left, as the export does first."""
    from examples import localization  # noqa: F401 - as above
    from onnx_release.trained.input_spec import parse_input_spec
    from onnx_release.trained.load import load_trained
    from onnx_release.trained.mlflow_model import read_trained

    marked = Marked()
    with marked.work():
        package = read_trained(case.trained, parse_input_spec(case.source.get("input_spec")))
        load_trained(package, allow_pickle=False, factory=case.source.get("factory"))
    marked.report()


def _check(case: Case) -> None:
    from onnx_release.check.static_checks import CheckOptions, check_artifact

    marked = Marked()
    with marked.work():
        report = check_artifact(case.onnx, case.artifact(), CheckOptions())
    _require(report.passed, report.to_dict())
    marked.report(passed=report.passed)


def _compare(case: Case) -> None:
    from examples import localization  # noqa: F401 - as above
    from onnx_release.benchmark.benchmark_model import compare_artifact
    from onnx_release.benchmark.setup import BenchmarkOptions

    marked = Marked()
    sizes = BATCH_SIZES_OF_HUGE if case.size == "huge" else BATCH_SIZES
    with marked.work():
        options = BenchmarkOptions(batch_sizes=sizes, **case.source)
        report = compare_artifact(case.trained, case.onnx, case.artifact(), options)
    _require(report.passed, list(report.failures))
    runs = {(compared.sample, compared.batch_size) for compared in report.comparisons}
    worst = max(compared.measures.mae or 0.0 for compared in report.comparisons)
    marked.report(passed=report.passed, mae=worst, samples_compared=len(runs))


def _require(passed: bool, why: object) -> None:
    if not passed:
        raise SystemExit(f"The reference model is refused: {why}")


STEPS: dict[str, Callable[[Case], None]] = {"export": _export, "load": _load, "check": _check, "compare": _compare}


if __name__ == "__main__":
    STEPS[sys.argv[1]](Case(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4])))
