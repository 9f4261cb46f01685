"""Records of a whole release: training run, report, uploaded folder and model version."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, field_validator

from onnx_release.records.artifact import FileDigest, OnnxArtifact
from onnx_release.records.base import Record
from onnx_release.records.reports import BenchmarkReport, CheckReport

# Another layout of `report.json` gets another version; `report.release_report` reads only this one.
SCHEMA_VERSION: Final = 1


class TrainedModel(Record):
    """A finished training run and the one PyTorch model of it that is to be released.

    `model_uri` is resolved: ``models:/m-…`` (an MLflow 3 logged model) or ``runs:/<run id>/<path>`` (a model of MLflow
    2, or a file of weights). `chosen` says why this one.
    """

    training_run_id: str
    model_uri: str
    model_id: str | None = None
    run_name: str = ""
    experiment_id: str = ""
    ended_at_ms: int | None = None
    chosen: str = ""


class ReleaseReport(Record):
    """The evidence of one release, as `report.json` holds it beside the model and in the training run.

    `status` is the verdict on the artifact; what became of it afterwards (version, alias) is MLflow's to tell.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["accepted", "refused"]
    reasons: tuple[str, ...] = ()
    model_name: str
    trained_model: TrainedModel
    artifact: OnnxArtifact | None = None
    check: CheckReport | None = None
    benchmark: BenchmarkReport | None = None
    dag_run_url: str = ""

    @field_validator("artifact")
    @classmethod
    def _without_staging_uri(cls, artifact: OnnxArtifact | None) -> OnnxArtifact | None:
        # The staged folder is removed after the release, and its address is internal to the deployment.
        return artifact and artifact.replace(staging_uri=None)


class S3Object(Record):
    """The uploaded folder: of every object under `uri` the store was found to hold the bytes that `files` says."""

    uri: str
    bucket: str
    prefix: str
    sha256: str
    size_bytes: int
    files: tuple[FileDigest, ...] = Field(default=())


class ModelVersion(Record):
    """A version in MLflow's registry whose source is the uploaded folder; `alias` is empty until it is promoted."""

    name: str
    version: int
    sha256: str
    source: str
    training_run_id: str
    alias: str = ""
    created: bool = False
