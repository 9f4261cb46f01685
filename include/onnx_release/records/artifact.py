"""Records of an exported artifact: files, export attempts, findings and tuning."""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

from pydantic import Field

from onnx_release.records.base import Record
from onnx_release.records.measures import Measures
from onnx_release.records.tensors import TensorSpec


class FileDigest(Record):
    """One file of a folder: its path in the folder (``/``-separated), the sha256 of its bytes, and their count."""

    path: str
    sha256: str
    size_bytes: int


class Finding(Record):
    """One thing a check saw. An ``error`` refuses the model; ``warning`` and ``info`` are for the reader.

    `fix` is the line that cures it, where there is one: code for the training script, or a parameter of the release.
    """

    severity: Literal["error", "warning", "info"]
    code: str
    message: str
    fix: str = ""


class ExportAttempt(Record):
    """One strategy of the export: ``taken``, ``failed`` (it wrote nothing), or ``unfit`` (what it wrote is wrong)."""

    strategy: str
    outcome: Literal["taken", "failed", "unfit"]
    reason: str = ""
    wall_s: float = 0.0


class Precision(StrEnum):
    """Number format that a model computes in. ``exact`` is the model as it was trained, with its own dtypes."""

    EXACT = "exact"
    FLOAT16 = "float16"
    INT8 = "int8"

    @property
    def is_exact(self) -> bool:
        """True for the model as it was trained."""
        return self is Precision.EXACT


class TuneCandidate(Record):
    """One contestant of the tuning, and what became of it.

    `outcome`: ``reference`` (PyTorch), ``chosen``, ``passed`` (fit, and not chosen), ``slower`` (dropped in a heat),
    ``refused`` (by its gate), ``failed`` (could not be made or run), ``left out`` (never tried); `reason` says why.
    `speedup` is the plain export's median time over its own, with its bootstrap interval. `measures` are the
    worst over all outputs and samples. `task_metrics` are those of the evaluation sample, by output. `build_s` is the
    time of building and comparing.
    """

    name: str
    precision: Precision
    outcome: Literal["reference", "chosen", "passed", "slower", "refused", "failed", "left out"]
    reason: str = ""
    speedup: float | None = None
    speedup_low: float | None = None
    speedup_high: float | None = None
    p50_ms: float | None = None
    p95_ms: float | None = None
    rounds: int = 0
    measures: Measures = Field(default_factory=Measures)
    task_metrics: dict[str, float] = Field(default_factory=dict)
    size_bytes: int | None = None
    build_s: float = 0.0
    session_options: dict[str, Any] = Field(default_factory=dict)


class TuneReport(Record):
    """Every candidate of one tuning, measured at the serving `batch_size`; `sha256` is the plain export's.

    `precision_limits` are those that reduced precisions were held to, `task_metric` says what the evaluation sample's
    metric is, by output, and `notes` what limited the search.
    """

    sha256: str
    chosen: str
    candidates: tuple[TuneCandidate, ...]
    batch_size: int
    threads: int
    confidence: float
    max_s: float
    wall_s: float
    precision_limits: dict[str, Any] = Field(default_factory=dict)
    task_metric: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class OnnxArtifact(Record):
    """An exported model folder: ``model.onnx``, its external data, and what MLflow needs to load them.

    `sha256` names the folder's bytes (see `artifact.folder_sha256`); every later record repeats it.
    `staging_uri` is the staged folder, and None for a folder that only the current process uses. A release report never
    contains it. `trained_sha256` is the digest of the trained model's files.

    `trained_format` is the trained model's storage format (``pt2``, ``pickle``, ``torchscript`` or ``state_dict``),
    `strategy` the export strategy that made the file and `attempts` every one that was tried, in order; `findings` are
    the export doctor's. `device` is where it was exported. `providers` are the execution providers that its package
    asks for, and that it is therefore tested with.

    `variant` names the tuning's candidate that these bytes are, and is empty for the plain export; `session_options`
    are those that its package asks for, under the names of MLflow's ``onnx_session_options``. `tuning` is what the
    tuning found, where there was one, whichever candidate it chose.
    """

    staging_uri: str | None = None
    trained_sha256: str | None = None
    sha256: str
    size_bytes: int
    files: tuple[FileDigest, ...]
    opset: int
    ir_version: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    strategy: str
    trained_format: Literal["pt2", "pickle", "torchscript", "state_dict"]
    device: str
    providers: tuple[str, ...]
    export_batch_size: int
    export_wall_s: float
    tool_versions: dict[str, str]
    attempts: tuple[ExportAttempt, ...] = ()
    findings: tuple[Finding, ...] = ()
    precision: Precision = Precision.EXACT
    variant: str = ""
    session_options: dict[str, Any] = Field(default_factory=dict)
    tuning: TuneReport | None = None
