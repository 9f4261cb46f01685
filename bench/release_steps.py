"""Steps of a release, each in a separate process as Airflow runs them: ``STEP SIZE TRAINED FOLDER``.

`TRAINED` is a file of weights or the folder of a pt2 program. `FOLDER` contains the artifact and its record.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.models import ARTIFACT, EVALUATION, FACTORY, INPUT_SPEC, RECORD
from bench.step import Meter
from onnx_release.records import OnnxArtifact
from onnx_release.trained.model_factory import FactoryOptions

BATCH_SIZES = (1, 8, 32)
# With a model that fills the memory, 32 rows would measure PyTorch's activations instead of the weights.
BATCH_SIZES_OF_HUGE = (1, 3)


@dataclass(frozen=True, slots=True)
class Case:
    """Trained model of a release and the folder for its artifact."""

    size: str
    trained: Path
    folder: Path

    @property
    def source(self) -> dict[str, Any]:
        """Factory and input specification for weights; a pt2 program contains both."""
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


def case(size: str, trained: str, folder: str) -> Case:
    """Return the case of a step's arguments."""
    from examples import localization  # noqa: F401 - the factory's module counts as an import

    return Case(size, Path(trained), Path(folder))


def export(meter: Meter, *arguments: str) -> dict[str, Any]:
    """Export the trained model and write the artifact's record."""
    from onnx_release.export.export_model import ExportStepOptions, export_trained

    of = case(*arguments)
    with meter.work():
        artifact = export_trained(of.trained, of.onnx, ExportStepOptions(device="cpu", **of.source))
    (of.folder / RECORD).write_text(json.dumps(artifact.to_dict()))
    return {
        "artifact_bytes": artifact.size_bytes,
        "strategy": artifact.strategy,
        "attempts": [attempt.to_dict() for attempt in artifact.attempts],
        "without_load_and_package_s": artifact.export_wall_s,
    }


def load(meter: Meter, *arguments: str) -> None:
    """Load the trained model as the export does first."""
    from onnx_release.trained.input_spec import parse_input_spec
    from onnx_release.trained.load import load_trained
    from onnx_release.trained.mlflow_model import read_trained

    of = case(*arguments)
    with meter.work():
        package = read_trained(of.trained, parse_input_spec(of.source.get("input_spec")))
        load_trained(package, allow_pickle=False, factory=of.source.get("factory"))


def check(meter: Meter, *arguments: str) -> dict[str, Any]:
    """Run the static checks and the smoke test."""
    from onnx_release.check.static_checks import CheckOptions, check_artifact

    of = case(*arguments)
    with meter.work():
        report = check_artifact(of.onnx, of.artifact(), CheckOptions())
    _require(report.passed, report.to_dict())
    return {"passed": report.passed}


def compare(meter: Meter, *arguments: str) -> dict[str, Any]:
    """Compare ONNX Runtime with PyTorch on all samples of a release."""
    from onnx_release.benchmark.benchmark_model import compare_artifact
    from onnx_release.benchmark.setup import BenchmarkOptions

    of = case(*arguments)
    sizes = BATCH_SIZES_OF_HUGE if of.size == "huge" else BATCH_SIZES
    with meter.work():
        options = BenchmarkOptions(batch_sizes=sizes, **of.source)
        report = compare_artifact(of.trained, of.onnx, of.artifact(), options)
    _require(report.passed, list(report.failures))
    runs = {(compared.sample, compared.batch_size) for compared in report.comparisons}
    worst = max(compared.measures.mae or 0.0 for compared in report.comparisons)
    return {"passed": report.passed, "mae": worst, "samples_compared": len(runs)}


def tune(meter: Meter, size: str, trained: str, folder: str, out: str, max_s: str) -> dict[str, Any]:
    """Tune the artifact to int8 in at most `max_s` seconds; `out` receives the package of the fastest variant."""
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.limits import RUNTIME_DOMAIN
    from onnx_release.records import Precision
    from onnx_release.tuning.options import TuneOptions
    from onnx_release.tuning.tune_model import tune_artifact

    of = case(size, trained, folder)
    options = TuneOptions(
        benchmark=BenchmarkOptions(**of.source),
        precisions=(Precision.INT8,),
        max_s=float(max_s),
        evaluation=str(of.trained.with_name(EVALUATION)),
        allowed_domains=(RUNTIME_DOMAIN,),
    )
    with meter.work():
        tuned = tune_artifact(of.trained, of.onnx, of.artifact(), Path(out), options)
    assert tuned.tuning is not None  # noqa: S101 - a tuning always leaves its table
    return {
        "variant": tuned.variant,
        "size_bytes": tuned.size_bytes,
        "session_options": tuned.session_options,
        "table": tuned.tuning.to_dict(),
    }


def _require(passed: bool, reason: object) -> None:
    if not passed:
        raise SystemExit(f"The reference model is refused: {reason}")
