"""Records of a whole release: training run, report, uploaded folder and model version."""

from __future__ import annotations

from typing import Final, Literal

from pydantic import Field, field_validator

from onnx_release.records.artifact import FileDigest, OnnxArtifact
from onnx_release.records.base import Record
from onnx_release.records.gates import Gate, StepTime
from onnx_release.records.reports import BenchmarkReport, CheckReport
from onnx_release.records.serving import ServingLayout

# Another layout of `report.json` gets another version; `report.release_report` reads only this one.
SCHEMA_VERSION: Final = 1


class TrainedModel(Record):
    """PyTorch model of a finished training run.

    Attributes:
        training_run_id: The id of the run in MLflow.
        model_uri: The resolved URI: ``models:/m-…`` (a logged model of MLflow 3) or ``runs:/<run id>/<path>`` (a model
            of MLflow 2, or a file of weights).
        model_id: The id of the logged model.
        run_name: The name of the run.
        experiment_id: The id of the run's experiment, else empty.
        ended_at_ms: The end of the run, in milliseconds since 1970.
        logged_model_name: The name of the logged model in the run, else None.
        chosen: The reason for this model of the run.
        model_name: The name of the registered model; None until it is found.
        skipped: The logged models that come before it, each with the reason why it is not released.
    """

    training_run_id: str
    model_uri: str
    model_id: str | None = None
    run_name: str | None = None
    experiment_id: str = ""
    ended_at_ms: int | None = None
    logged_model_name: str | None = None
    chosen: str | None = None
    model_name: str | None = None
    skipped: tuple[str, ...] = ()


class ReleaseReport(Record):
    """Evidence of one release: the content of `report.json` beside the model and in the training run.

    `report.release_report.build_report` makes every report, also that of a refusal.

    Attributes:
        schema_version: The version of the layout.
        status: The verdict on the artifact; its version and alias are only in MLflow.
        headline: The result in one plain sentence.
        next_step: The advice for a person in one plain sentence; empty when nothing is to do.
        reasons: The reasons of a refusal.
        reason_code: The code of the refusal that ended the release.
        gates: Every measured value that has a limit; few or none for a refusal before the measurements.
        steps: The durations of the tasks, that of the last one until the report was made.
        trained_model: The PyTorch model.
        artifact: The exported model; None when there is none.
        check: The static checks; None when they did not run.
        benchmark: Parity and latency; None when they were not measured.
        dag_run_url: The address of the DAG run in Airflow.
        serving: The layouts of model servers that were uploaded on request.
    """

    schema_version: Literal[1] = SCHEMA_VERSION
    status: Literal["accepted", "refused"]
    headline: str
    next_step: str = ""
    reasons: tuple[str, ...] = ()
    reason_code: str | None = None
    gates: tuple[Gate, ...] = ()
    steps: tuple[StepTime, ...] = ()
    trained_model: TrainedModel
    artifact: OnnxArtifact | None = None
    check: CheckReport | None = None
    benchmark: BenchmarkReport | None = None
    dag_run_url: str | None = None
    serving: tuple[ServingLayout, ...] = ()

    @field_validator("artifact")
    @classmethod
    def _without_staging_uri(cls, artifact: OnnxArtifact | None) -> OnnxArtifact | None:
        # The staged folder is removed after the release, and its address is internal to the deployment.
        return artifact and artifact.replace(staging_uri=None)


class S3Object(Record):
    """Uploaded folder. Every object under `uri` was verified: it has the bytes of its entry in `files`.

    `layouts` are those of model servers, in a folder beside it.
    """

    uri: str
    bucket: str
    prefix: str
    sha256: str
    size_bytes: int
    files: tuple[FileDigest, ...] = Field(default=())
    layouts: tuple[ServingLayout, ...] = ()


class ModelVersion(Record):
    """Version in MLflow's registry. Its source is the uploaded folder.

    `alias` is None until the version is promoted, and when the alias stays at another version for the reason in
    `alias_note`.
    """

    name: str
    version: int
    sha256: str
    source: str
    training_run_id: str
    alias: str | None = None
    alias_note: str | None = None
    created: bool = False
