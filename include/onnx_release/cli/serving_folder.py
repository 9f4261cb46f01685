"""Options of an export for those who serve: layouts of model servers, and other versions of ONNX Runtime.

The layouts are in ``FOLDER-serving``, because the folder of the model contains exactly the tested files.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_release import limits
from onnx_release.cli import measuring
from onnx_release.errors import ParameterRefused, Refused
from onnx_release.records import OnnxArtifact, ServingLayout
from onnx_release.training_runs.names import validate_model_name

if TYPE_CHECKING:
    from onnx_release.serving.layouts import Layout
    from onnx_release.serving.runtime_environment import RuntimeEnvironment

_OWN_FILES = re.compile(r"triton/[^/]+/(config\.pbtxt|1/model\.onnx(\.data)?)|kserve/inference_service\.yaml")


def add_arguments(arguments: argparse.ArgumentParser) -> None:
    """Add the layouts and the versions of ONNX Runtime."""
    arguments.add_argument(
        "--target-runtime",
        metavar="VERSION",
        action="append",
        default=[],
        help="compare in this version of ONNX Runtime too, such as 1.20.1; may be repeated",
    )
    add_runtimes_folder(arguments)
    arguments.add_argument(
        "--serving-layout",
        choices=limits.SERVING_LAYOUTS,
        action="append",
        default=[],
        help="write FOLDER-serving for this model server; may be repeated",
    )
    arguments.add_argument(
        "--serving-uri", metavar="URI", default="", help="address that FOLDER-serving will have, for --serving-layout"
    )
    arguments.add_argument("--model-name", metavar="NAME", help="name in the model server; default: that of FOLDER")


def add_runtimes_folder(arguments: argparse.ArgumentParser) -> None:
    """Add the folder of the environments of other versions of ONNX Runtime."""
    arguments.add_argument(
        "--runtimes-folder",
        metavar="FOLDER",
        type=Path,
        help="folder with their environments; default: onnx-release/runtimes in the user's cache folder",
    )


def require_arguments(arguments: argparse.Namespace) -> None:
    """Refuse options that do not fit each other.

    Raises:
        CommandRefused: `wrong_argument`.
        ParameterRefused: A version of ONNX Runtime is not exact.
    """
    from onnx_release.serving.runtime_environment import require_versions

    require_versions(arguments.target_runtime)
    if arguments.target_runtime and arguments.no_latency:
        raise measuring.wrong_argument(
            "--target-runtime", "needs the measurement that --no-latency leaves out", "Give one of them."
        )
    if not arguments.serving_layout:
        return
    if not arguments.serving_uri and "kserve" in arguments.serving_layout:
        raise measuring.wrong_argument(
            "--serving-layout", "is kserve, whose manifest needs the address of the files", "Give --serving-uri."
        )
    try:
        validate_model_name(_model_name(arguments))
    except ParameterRefused as refusal:
        problem = f"is {_model_name(arguments)!r:.200}, which is not valid"
        raise measuring.wrong_argument("--model-name", problem, refusal.action) from refusal


def environments(arguments: argparse.Namespace) -> tuple[RuntimeEnvironment, ...]:
    """Return the environments of the versions of ONNX Runtime. One that is missing is made.

    Raises:
        RunnerRefused: `runtime_unavailable`.
        Transient: The package index does not answer.
    """
    if not arguments.target_runtime:
        return ()
    from onnx_release.serving.runtime_environment import prepare_environments

    return prepare_environments(arguments.target_runtime, runtimes_folder(arguments))


def runtimes_folder(arguments: argparse.Namespace) -> Path:
    """Return the folder of the environments."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder: Path = arguments.runtimes_folder or cache / "onnx-release" / "runtimes"
    return folder.resolve()


@dataclass(frozen=True, slots=True)
class ServingFolder:
    """Layouts of one export.

    Attributes:
        arguments: The arguments of the command.
        path: The folder of all layouts.
    """

    arguments: argparse.Namespace
    path: Path

    @classmethod
    def beside(cls, arguments: argparse.Namespace) -> ServingFolder:
        """Return the folder beside the output."""
        output: Path = arguments.output
        return cls(arguments, output.with_name(f"{output.name}-serving"))

    def require_servable(self, artifact: OnnxArtifact) -> None:
        """Refuse a model that a model server cannot serve.

        Raises:
            ServingRefused: `unsupported_dtype`.
        """
        self._plan(artifact)

    def write(self, folder: Path, artifact: OnnxArtifact) -> tuple[ServingLayout, ...]:
        """Write the layouts and return their records. An earlier folder is replaced.

        Args:
            folder: The folder of the model.
            artifact: Its record.
        """
        from onnx_release.artifact.digests import describe_folder, fresh_folder
        from onnx_release.serving.layouts import model_files

        layouts = self._plan(artifact)
        if not layouts:
            return ()
        with fresh_folder(self.path) as fresh:
            for layout in layouts:
                for path, text in layout.texts.items():
                    (fresh / path).parent.mkdir(parents=True, exist_ok=True)
                    (fresh / path).write_text(text, encoding="utf-8", newline="\n")
                if layout.copies:
                    (fresh / layout.copies).mkdir(parents=True)
                    for name in model_files(artifact):
                        shutil.copyfile(folder / name, fresh / layout.copies / name)
            files = describe_folder(fresh)
        address = self.arguments.serving_uri.rstrip("/") or self.path.name
        return tuple(
            ServingLayout(
                layout=layout.layout,
                name=layout.name,
                uri=f"{address}/{layout.place}",
                files=tuple(file for file in files if file.path.startswith(f"{layout.layout}/")),
            )
            for layout in layouts
        )

    def is_own(self) -> bool:
        """Return True for a folder that has nothing but files of layouts."""
        from onnx_release.artifact.digests import describe_folder

        try:
            return all(_OWN_FILES.fullmatch(file.path) for file in describe_folder(self.path))
        except Refused:
            return False

    def _plan(self, artifact: OnnxArtifact) -> Sequence[Layout]:
        from onnx_release.serving.layouts import plan_layouts

        arguments = self.arguments
        if not arguments.serving_layout:
            return ()
        largest = max(measuring.batch_sizes(arguments.batch_sizes))
        name, uri = _model_name(arguments), arguments.serving_uri.rstrip("/")
        return plan_layouts(arguments.serving_layout, artifact, name, uri, largest)


def _model_name(arguments: argparse.Namespace) -> str:
    return str(arguments.model_name or arguments.output.name)
