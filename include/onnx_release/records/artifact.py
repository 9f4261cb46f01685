"""Records of an exported artifact: files, export attempts, findings and tuning."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from onnx_release.records.base import Record
from onnx_release.records.measures import Measures
from onnx_release.records.tensors import TensorSpec
from onnx_release.text import bounded


class FileDigest(Record):
    """File of a folder: its path in the folder (``/``-separated), and the sha256 and the number of its bytes."""

    path: str
    sha256: str
    size_bytes: int


_Text = Annotated[str, AfterValidator(bounded)]


class Finding(Record):
    """Finding of a check. An ``error`` refuses the model; a ``warning`` or an ``info`` does not.

    Attributes:
        severity: The weight of the finding.
        code: The stable name of the finding.
        message: The finding as a sentence.
        fix: Code for the training script, or a parameter of the release, that removes the finding.
    """

    severity: Literal["error", "warning", "info"]
    code: str
    message: _Text
    fix: _Text | None = None


class ExportAttempt(Record):
    """Attempt of the export with one strategy.

    Attributes:
        strategy: The name of the strategy.
        outcome: ``taken``, ``failed`` (it wrote nothing), or ``unfit`` (its file is wrong).
        reason: The reason of an outcome other than ``taken``.
        wall_s: The duration in seconds.
    """

    strategy: str
    outcome: Literal["taken", "failed", "unfit"]
    reason: str | None = None
    wall_s: float = 0.0


class Precision(StrEnum):
    """Number format of a model. ``exact`` is the trained model with its own dtypes."""

    EXACT = "exact"
    FLOAT16 = "float16"
    INT8 = "int8"

    @property
    def is_exact(self) -> bool:
        """True for the trained model with its own dtypes."""
        return self is Precision.EXACT


class TuneVariant(Record):
    """Variant of the model in a tuning, with its outcome.

    Attributes:
        name: The name of the variant.
        precision: Its number format.
        outcome: ``reference`` (PyTorch), ``chosen``, ``passed`` (accepted, not chosen), ``slower`` (eliminated),
            ``refused`` (by the acceptance test), ``failed`` (not built, or it does not run), ``skipped`` (not built).
        reason: The reason of the outcome.
        speedup: The median time of the plain export over its own, with an interval from `speedup_low` to
            `speedup_high`.
        p50_ms: The median of the time per call in ms; `p95_ms` is the 95th percentile.
        rounds: The number of measured rounds.
        measures: The worst measures over all outputs and samples.
        task_metrics: The metrics on the evaluation sample, by output.
        size_bytes: The size of model and external data.
        build_s: The duration of building and comparing in seconds.
        session_options: The session options of this variant.
    """

    name: str
    precision: Precision
    outcome: Literal["reference", "chosen", "passed", "slower", "refused", "failed", "skipped"]
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
    """Result of one tuning.

    Attributes:
        sha256: The sha256 of the plain export.
        chosen: The name of the chosen variant.
        variants: Every variant, also the skipped ones.
        batch_size: The serving batch size, at which all were measured.
        threads: The threads of each session.
        confidence: The confidence of the speedup intervals.
        max_s: The time limit in seconds.
        wall_s: The duration in seconds, without `waited_s`.
        waited_s: The time for which the tuning waited for the lock of its host.
        precision_limits: The parity limits of the reduced precisions.
        task_metric: The name of the metric on the evaluation sample, by output.
        notes: The restrictions of the search.
    """

    sha256: str
    chosen: str
    variants: tuple[TuneVariant, ...]
    batch_size: int
    threads: int
    confidence: float
    max_s: float
    wall_s: float
    waited_s: float = 0.0
    precision_limits: dict[str, Any] = Field(default_factory=dict)
    task_metric: dict[str, str] = Field(default_factory=dict)
    notes: tuple[str, ...] = ()


class OnnxArtifact(Record):
    """Exported model folder: ``model.onnx``, external data of a large model, and the files of its MLflow package.

    Attributes:
        staging_uri: The staged folder; None for a folder that only the current process uses. A release report never
            contains it.
        trained_sha256: The digest of the trained model's files.
        sha256: The digest of the folder (see `artifact.digests`); every later record repeats it.
        size_bytes: The size of all files.
        files: The digest of each file.
        opset: The version of ONNX's own operators.
        ir_version: The version of the ONNX file format.
        inputs: The inputs of the graph.
        outputs: The outputs of the graph.
        strategy: The export strategy that wrote the file.
        trained_format: The storage format of the trained model.
        device: The device of the export.
        providers: The execution providers of the package, with which it is tested.
        export_batch_size: The batch size of the exporter's example.
        export_wall_s: The duration of the export in seconds.
        tool_versions: The versions of the packages that exported the model.
        attempts: Every strategy of the export, in order.
        findings: Findings about the trained model and its export.
        precision: The number format of the model.
        variant: The chosen candidate of the tuning; None for the plain export.
        session_options: The session options of the package, by MLflow's names in ``onnx_session_options``.
        tuning: The result of the tuning, also when it chose the plain export.
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
    variant: str | None = None
    session_options: dict[str, Any] = Field(default_factory=dict)
    tuning: TuneReport | None = None
