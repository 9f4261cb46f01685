"""Trained model of a command: its arguments, its download, and the options of the export."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release.cli import mlflow_access
from onnx_release.cli.measuring import wrong_argument
from onnx_release.errors import CommandRefused, Refused
from onnx_release.training_runs import tags

if TYPE_CHECKING:
    from onnx_release.export.export_model import ExportStepOptions

# A deployment has settings for these, and the command has options.
_OPTIONS = {
    "pickle": "Log the model with serialization_format='pt2', or trust its code: --allow-pickle runs it in an isolated "
    "process.",
    "factory_not_allowed": "If you trust the package, allow it: --allow-package NAME.",
    "no_input_spec": "Describe its inputs: --input-spec "
    '\'[{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]\'. '
    "A file of weights also needs --factory package.module:name. Tags of the training run do the same.",
    "no_factory": "Name the function that makes the model: --factory package.module:name. "
    "A tag of the training run does the same.",
}


@dataclass(frozen=True, slots=True)
class TrainedSource:
    """Model of a command in a local path, and the options of its export."""

    path: Path
    options: ExportStepOptions


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the model and the options of its export."""
    arguments.add_argument("model", help="MLflow URI (runs:/…, models:/…), model folder, model file or weights file")
    arguments.add_argument(
        "--allow-pickle", action="store_true", help="load a pickle, which runs its code in an isolated process"
    )
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
        help='inputs of the model, or @FILE: [{"name": "x", "dtype": "float32", "shape": ["batch", 8]}]',
    )
    arguments.add_argument(
        "--allow-package",
        metavar="NAME",
        action="append",
        default=[],
        help="allow factories of this package, for a tag of the training run",
    )
    mlflow_source_argument(arguments)
    arguments.add_argument("--opset", type=int, help="ONNX opset; default: the exporter's")


def mlflow_source_argument(arguments: argparse.ArgumentParser) -> None:
    """Add the argument for files that MLflow does not serve itself."""
    arguments.add_argument(
        "--source",
        metavar="URI",
        action="append",
        default=[],
        help="trust files below this address, such as s3://bucket/, with the credentials of the environment",
    )


def open_source(arguments: argparse.Namespace, scratch: Path) -> TrainedSource:
    """Return the model. One with an MLflow URI is downloaded into `scratch`.

    Raises:
        CommandRefused: The model does not exist, or an argument or tag cannot be used.
        Transient: MLflow does not answer.
    """
    options = _export_options(arguments, *mlflow_access.training_run_tags_and_params(arguments.model))
    if arguments.model.startswith(mlflow_access.URIS):
        return TrainedSource(mlflow_access.download(arguments.model, scratch / "trained", arguments.source), options)
    path = Path(arguments.model)
    if not path.exists():
        raise CommandRefused(
            f"The model {arguments.model!r:.200}",
            "is neither an existing path nor an MLflow URI",
            "Give a path, runs:/… or models:/….",
            code="model_not_found",
        )
    return TrainedSource(path, options)


def for_command(refusal: Refused) -> Refused:
    """Return a refusal with the option of the command in place of the setting of a deployment."""
    option = _OPTIONS.get(refusal.code)
    if not option:
        return refusal
    problem = refusal.problem.removesuffix("; this deployment does not allow it").replace(
        "this deployment", "the command"
    )
    return type(refusal)(refusal.subject, problem, option, code=refusal.code)


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
        raise wrong_argument(
            f"--factory-kwargs, or the tag {tags.FACTORY_KWARGS},", "is not a JSON object", "Correct it."
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
        input_spec=_text("--input-spec", arguments.input_spec) or run_tags.get(tags.INPUT_SPEC) or None,
    )


def _text(name: str, value: str | None) -> str | None:
    """Return the value of an argument, or the content of the file that it names by ``@``."""
    if value is None or not value.startswith("@"):
        return value
    try:
        return Path(value[1:]).read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise wrong_argument(
            name, f"names the file {value[1:]!r:.200}, which cannot be read: {error}", "Correct its path."
        ) from error
