"""The export doctor as a command, without Airflow: ``python -m airflow_onnx.cli.doctor MODEL``.

MODEL is a URI of MLflow's (``runs:/…``, ``models:/…``; the server is MLFLOW_TRACKING_URI's) or a path. The model is
loaded, exported to a folder that is removed at the end, checked, and compared with PyTorch; nothing is timed, uploaded
or registered. Exit status: 0 when it could be released as far as that goes, 1 when it would be refused, 2 for misuse.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.errors import Refused
from onnx_release.records import Finding

if TYPE_CHECKING:
    from onnx_release.export.export_model import ExportStepOptions
    from onnx_release.records import OnnxArtifact


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine one model, print what was found, and return the exit status."""
    asked = _parser().parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="onnx-release-") as scratch:
        findings = list(_examine(asked, Path(scratch)))
    if asked.json:
        sys.stdout.write(json.dumps([finding.to_dict() for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.writelines(_text(finding) for finding in findings)
    return int(any(finding.severity == "error" for finding in findings))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m airflow_onnx.cli.doctor",
        description="Say what would keep a PyTorch model from its release as ONNX.",
    )
    parser.add_argument("model", help="runs:/…, models:/…, a model folder, or a file of a model or of weights")
    parser.add_argument("--allow-pickle", action="store_true", help="load pickles, which run their author's code")
    parser.add_argument("--factory", default="", help="package.module:name of what makes the model, for weights alone")
    parser.add_argument("--factory-kwargs", default="{}", type=json.loads, help="its arguments, as a JSON object")
    parser.add_argument("--input-spec", default="", help='as JSON: [{"name": "x", "dtype": "float32", "shape": …}]')
    parser.add_argument("--opset", type=int, help="the ONNX opset to write")
    parser.add_argument("--json", action="store_true", help="print the findings as JSON")
    return parser


def _examine(asked: argparse.Namespace, scratch: Path) -> Iterator[Finding]:
    from onnx_release.export.diagnostics import refusal_finding
    from onnx_release.run_step import export

    try:
        options = _options(asked)
        trained = _fetched(asked.model, scratch / "trained")
        artifact = export(trained, scratch / "onnx", options)
        message = f"by {artifact.strategy}, opset {artifact.opset}, {artifact.size_bytes / 1e6:.1f} MB"
        yield Finding(severity="info", code="exported", message=message)
        yield from artifact.findings
        yield from _tested(trained, scratch / "onnx", artifact, options)
    except Refused as refusal:
        yield refusal_finding(refusal)


def _options(asked: argparse.Namespace) -> ExportStepOptions:
    from onnx_release.export.export_model import ExportStepOptions
    from onnx_release.trained.model_factory import FactoryOptions

    factory = None
    if asked.factory:
        # Whoever types the command vouches for the package that it names.
        package = asked.factory.partition(":")[0].partition(".")[0]
        factory = FactoryOptions(path=asked.factory, allowed=(package,), kwargs=asked.factory_kwargs)
    return ExportStepOptions(
        opset=asked.opset,
        device="cpu",
        allow_pickle=asked.allow_pickle,
        factory=factory,
        input_spec=asked.input_spec or None,
    )


def _tested(trained: Path, folder: Path, artifact: OnnxArtifact, options: ExportStepOptions) -> Iterator[Finding]:
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.check.static_checks import CheckOptions, check_artifact
    from onnx_release.run_step import compare

    yield from (f for f in check_artifact(folder, artifact, CheckOptions()).findings if f.severity != "info")
    judged = BenchmarkOptions(allow_pickle=options.allow_pickle, factory=options.factory, input_spec=options.input_spec)
    parity = compare(trained, folder, artifact, judged)
    for failure in parity.failures:
        yield Finding(severity="error", code="parity", message=failure)
    if at := parity.divergence:
        where = f"the difference begins at node '{at.node}' ({at.op_type}) of module '{at.module}'"
        yield Finding(severity="info", code="divergence", message=f"{where}. {at.note}".strip())
    if parity.passed:
        sizes = ", ".join(map(str, parity.batch_sizes))
        yield Finding(severity="info", code="parity", message=f"equal to PyTorch at batch sizes {sizes}")


def _fetched(model: str, folder: Path) -> Path:
    if not model.startswith(("runs:/", "models:/")):
        path = Path(model)
        if not path.exists():
            raise Refused(f"model {model!r:.200}", "is neither there nor a URI", "Give a path, runs:/… or models:/….")
        return path
    from mlflow.artifacts import download_artifacts
    from mlflow.exceptions import MlflowException

    folder.mkdir()
    try:
        return Path(download_artifacts(artifact_uri=model, dst_path=str(folder)))
    except MlflowException as error:
        raise Refused(
            f"model {model}", f"cannot be fetched: {error}", "Check the URI and MLFLOW_TRACKING_URI."
        ) from error


def _text(finding: Finding) -> str:
    fix = f"\n         {finding.fix}" if finding.fix else ""
    return f"{finding.severity:<8} {finding.code}: {finding.message}{fix}\n"


if __name__ == "__main__":
    raise SystemExit(main())
