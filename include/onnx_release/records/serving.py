"""Records about the use of an artifact: other versions of ONNX Runtime, and layouts of model servers."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from onnx_release.records.artifact import FileDigest
from onnx_release.records.base import Record
from onnx_release.records.measures import Measures


class RuntimeReport(Record):
    """Artifact in one version of ONNX Runtime, compared with PyTorch's outputs under the limits of the parity.

    Attributes:
        sha256: The sha256 of the artifact.
        version: The version of ONNX Runtime.
        loads: True if this version opens the model.
        passed: True if every sample that decides ran, and every output kept its limits.
        compared: The number of compared outputs, over all samples.
        worst: The worst measures by output.
        failures: The reasons against the artifact.
        warnings: Differences on samples that do not decide.
    """

    sha256: str
    version: str
    loads: bool = False
    passed: bool = False
    compared: int = 0
    worst: dict[str, Measures] = Field(default_factory=dict)
    failures: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


class ServingLayout(Record):
    """Uploaded folder in the layout of a model server.

    Attributes:
        layout: The model server.
        uri: The folder of a model repository, or the manifest.
        name: The name of the model in the server.
        files: The files with their paths below the folder of all layouts.
    """

    layout: Literal["triton", "kserve"]
    uri: str
    name: str
    files: tuple[FileDigest, ...] = ()
