"""Records: the immutable results of the release steps.

They travel as dicts in Airflow's XCom and in `report.json`. The tags of a model version come from them.
"""

from __future__ import annotations

from onnx_release.records.artifact import (
    ExportAttempt,
    FileDigest,
    Finding,
    OnnxArtifact,
    Precision,
    TuneReport,
    TuneVariant,
)
from onnx_release.records.base import Record
from onnx_release.records.contract import Contract
from onnx_release.records.gates import AliasMove, Gate, StepTime, Verdict
from onnx_release.records.measures import Measures
from onnx_release.records.release import ModelVersion, ReleaseReport, S3Object, TrainedModel
from onnx_release.records.reports import (
    AppliedLimit,
    BatchLatency,
    BenchmarkReport,
    ChampionComparison,
    ChampionLatency,
    ChampionMetric,
    CheckReport,
    ColumnParity,
    Divergence,
    HostInfo,
    LatencyReport,
    OutputParity,
    ParityReport,
    SideLatency,
)
from onnx_release.records.serving import RuntimeReport, ServingLayout
from onnx_release.records.tensors import TensorSpec

__all__ = [
    "AliasMove",
    "AppliedLimit",
    "BatchLatency",
    "BenchmarkReport",
    "ChampionComparison",
    "ChampionLatency",
    "ChampionMetric",
    "CheckReport",
    "ColumnParity",
    "Contract",
    "Divergence",
    "ExportAttempt",
    "FileDigest",
    "Finding",
    "Gate",
    "HostInfo",
    "LatencyReport",
    "Measures",
    "ModelVersion",
    "OnnxArtifact",
    "OutputParity",
    "ParityReport",
    "Precision",
    "Record",
    "ReleaseReport",
    "RuntimeReport",
    "S3Object",
    "ServingLayout",
    "SideLatency",
    "StepTime",
    "TensorSpec",
    "TrainedModel",
    "TuneReport",
    "TuneVariant",
    "Verdict",
]
