"""Command line of the export doctor, without Airflow: ``python -m airflow_onnx.cli.doctor MODEL``.

MODEL is a path or an MLflow URI (``runs:/…``, ``models:/…``). The environment variable ``MLFLOW_TRACKING_URI`` sets the
MLflow server. The tags and params of the training run count as in a release. The command exports the model to a
temporary folder, checks it and compares it with PyTorch. It measures no latency, and it uploads and registers nothing.

Exit codes:

- 0: no error was found. Latency excepted, a release would accept the model.
- 1: an error was found, or the model cannot be read. A release would refuse it.
- 2: the command line is wrong.
- 3: the command failed for a reason outside the model, such as too little memory. It can be tried again.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import textwrap
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from airflow_onnx.errors import TrackingRefused
from airflow_onnx.tracking import tags
from onnx_release.errors import Refused, Transient, shorten
from onnx_release.records import Finding
from onnx_release.scratch import scratch_folder

if TYPE_CHECKING:
    from onnx_release.export.export_model import ExportStepOptions
    from onnx_release.records import OnnxArtifact

_URIS = ("runs:/", "models:/")
_COLUMNS = 100
_INDENT = " " * 9


def main(arguments: Sequence[str] | None = None) -> int:
    """Examine one model, print the findings, and return the exit code."""
    options = parser().parse_args(arguments)
    try:
        with scratch_folder() as scratch:
            findings = list(_examine(options, scratch))
    except Transient as error:
        sys.stderr.write(f"{error}\n")
        return 3
    errors = [finding for finding in findings if finding.severity == "error"]
    if options.json:
        sys.stdout.write(json.dumps([finding.to_dict() for finding in findings], indent=2) + "\n")
    else:
        sys.stdout.writelines(_lines(finding) for finding in findings)
        count = f"{len(errors)} error{'s' if len(errors) > 1 else ''}"
        refused = f"A release would refuse this model: {count}."
        sys.stdout.write(f"\n{refused if errors else 'No error was found. Latency was not measured.'}\n")
    return int(bool(errors))


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    arguments = argparse.ArgumentParser(
        prog="python -m airflow_onnx.cli.doctor",
        description="Find the reasons why a PyTorch model cannot be released as ONNX.",
        epilog="Exit codes: 0 no error, 1 a release would refuse the model, 2 wrong command line, 3 try again.",
    )
    arguments.add_argument("model", help="MLflow URI (runs:/…, models:/…), model folder, model file or weights file")
    arguments.add_argument("--allow-pickle", action="store_true", help="load pickles: runs the training run's code")
    arguments.add_argument("--factory", metavar="MODULE:NAME", help="builds the model of a weights file")
    arguments.add_argument(
        "--factory-kwargs", metavar="JSON", default="{}", type=json.loads, help="arguments of the factory"
    )
    arguments.add_argument(
        "--weights-key", metavar="KEY", default="", help="the weights to take from a file with several networks"
    )
    arguments.add_argument(
        "--input-spec",
        metavar="JSON",
        help='inputs of the model: [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]',
    )
    arguments.add_argument(
        "--allow-package",
        metavar="NAME",
        action="append",
        default=[],
        help="allow factories of this package, for a tag",
    )
    arguments.add_argument("--opset", type=int, help="ONNX opset; default: the exporter's")
    arguments.add_argument("--json", action="store_true", help="print the findings as JSON")
    return arguments


def _examine(arguments: argparse.Namespace, scratch: Path) -> Iterator[Finding]:
    from onnx_release.export.diagnostics import refusal_finding
    from onnx_release.report.numbers import size_text
    from onnx_release.run_step import export

    try:
        options = _export_options(arguments, *_training_run(arguments.model))
        trained = _fetch(arguments.model, scratch / "trained")
        artifact = export(trained, scratch / "onnx", options)
        size = f"opset {artifact.opset}, {size_text(artifact.size_bytes)}"
        message = f"The strategy '{artifact.strategy}' wrote the ONNX model ({size})"
        yield Finding(severity="info", code="exported", message=message)
        yield from artifact.findings
        yield from _check_and_compare(trained, scratch / "onnx", artifact, options)
    except Refused as refusal:
        yield refusal_finding(refusal)


def _export_options(
    arguments: argparse.Namespace, run_tags: dict[str, str], run_params: dict[str, str]
) -> ExportStepOptions:
    """Return the options of the export. An argument of the command overrides the tag of the training run."""
    from onnx_release.export.export_model import ExportStepOptions
    from onnx_release.trained.model_factory import FactoryOptions

    # The user of the command trusts the packages that they name. A tag is anyone's.
    allowed = [*arguments.allow_package, (arguments.factory or "").partition(":")[0].partition(".")[0]]
    try:
        kwargs = arguments.factory_kwargs or json.loads(run_tags.get(tags.FACTORY_KWARGS) or "{}")
    except ValueError:
        kwargs = None
    if not isinstance(kwargs, dict):
        raise TrackingRefused(
            f"The tag {tags.FACTORY_KWARGS}", "is not a JSON object", "Correct the tag.", code="factory_kwargs"
        )
    factory = FactoryOptions(
        path=arguments.factory or run_tags.get(tags.FACTORY, ""),
        allowed=tuple(filter(None, allowed)),
        kwargs=kwargs,
        run_params=run_params,
        weights_key=arguments.weights_key or run_tags.get(tags.WEIGHTS_KEY, ""),
    )
    return ExportStepOptions(
        opset=arguments.opset,
        device="cpu",
        allow_pickle=arguments.allow_pickle,
        factory=factory,
        input_spec=arguments.input_spec or run_tags.get(tags.INPUT_SPEC) or None,
    )


def _training_run(model: str) -> tuple[dict[str, str], dict[str, str]]:
    """Return tags and params of the training run. Both are empty for a path or a registered version."""
    if not model.startswith(_URIS):
        return {}, {}
    with _mlflow_errors(model):
        from mlflow import MlflowClient

        client, run_id = MlflowClient(), None
        if found := re.match(r"runs:/([^/]+)/", model):
            run_id = found[1]
        elif found := re.fullmatch(r"models:/(m-[0-9a-zA-Z]+)", model):
            run_id = client.get_logged_model(found[1]).source_run_id
        data = client.get_run(run_id).data if run_id else None
    return (dict(data.tags), dict(data.params)) if data else ({}, {})


def _fetch(model: str, folder: Path) -> Path:
    """Return the path of a model; one with an MLflow URI is downloaded to `folder`."""
    if not model.startswith(_URIS):
        path = Path(model)
        if not path.exists():
            raise TrackingRefused(
                f"The model {model!r:.200}",
                "is neither an existing path nor an MLflow URI",
                "Give a path, runs:/… or models:/….",
                code="model_not_found",
            )
        return path
    folder.mkdir()
    with _mlflow_errors(model):
        from mlflow.artifacts import download_artifacts

        return Path(download_artifacts(artifact_uri=model, dst_path=str(folder)))


@contextmanager
def _mlflow_errors(model: str) -> Iterator[None]:
    # Both are read when MLflow is imported or called: no progress bars, and an outage is reported within seconds.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    from mlflow.exceptions import MlflowException

    subject, action = f"The model {model:.200}", "Check the URI and the environment variable MLFLOW_TRACKING_URI."
    try:
        yield
    except MlflowException as error:
        problem = f"cannot be read from MLflow: {shorten(error)}"
        if error.error_code in ("INTERNAL_ERROR", "TEMPORARILY_UNAVAILABLE"):
            raise Transient(subject, problem, action) from error
        raise TrackingRefused(subject, problem, action, code="model_not_found") from error
    except OSError as error:  # also the errors of the library `requests`
        raise Transient(subject, f"cannot be read: {shorten(error)}", action) from error


def _check_and_compare(
    trained: Path, folder: Path, artifact: OnnxArtifact, options: ExportStepOptions
) -> Iterator[Finding]:
    from onnx_release.benchmark.setup import BenchmarkOptions
    from onnx_release.check.static_checks import CheckOptions, check_artifact
    from onnx_release.run_step import compare

    yield from (f for f in check_artifact(folder, artifact, CheckOptions()).findings if f.severity != "info")
    benchmark = BenchmarkOptions(
        allow_pickle=options.allow_pickle, factory=options.factory, input_spec=options.input_spec
    )
    parity = compare(trained, folder, artifact, benchmark)
    for failure in parity.failures:
        yield Finding(severity="error", code="parity", message=failure)
    if origin := parity.divergence:
        node = f"The outputs first differ at node '{origin.node}' ({origin.op_type}) of module '{origin.module}'"
        yield Finding(severity="info", code="divergence", message=f"{node}. {origin.note}".strip())
    if parity.passed:
        sizes = ", ".join(map(str, parity.batch_sizes))
        message = f"ONNX Runtime and PyTorch agree at the batch sizes {sizes}"
        yield Finding(severity="info", code="parity", message=message)


def _lines(finding: Finding) -> str:
    """Return a finding as text. The fix of an error is a sentence; other fixes are code and are not wrapped."""
    wrap = textwrap.TextWrapper(_COLUMNS, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False)
    lines = wrap.wrap(f"{finding.severity:<8} {finding.code}: {finding.message}")
    if finding.fix:
        fix = f"{_INDENT}{finding.fix}"
        lines += wrap.wrap(fix) if finding.severity == "error" else [fix]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    raise SystemExit(main())
