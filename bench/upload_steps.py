"""Steps that put an exported folder into the object store of the environment, see `bench.servers.object_store`."""

from __future__ import annotations

import json
import os
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bench.models import ARTIFACT
from bench.release_steps import Case
from bench.step import Meter
from onnx_release.latency.host import describe_host
from onnx_release.records import (
    BatchLatency,
    BenchmarkReport,
    CheckReport,
    LatencyReport,
    OnnxArtifact,
    ParityReport,
    S3Object,
    SideLatency,
    TrainedModel,
)
from onnx_release.scratch import scratch_folder
from stack.minio import REGION, S3_CONFIG

MODEL_NAME = "bench"
_STORED = "stored.json"
_SHARED: dict[str, Any] = {
    "trained_model": TrainedModel(
        training_run_id="0" * 32, model_uri="models:/m-1", run_name="bench", model_name=MODEL_NAME
    ).to_dict(),
}


def client() -> Any:
    """Return boto3's client for the store."""
    import boto3
    from botocore.config import Config

    return boto3.client("s3", endpoint_url=os.environ["S3_URL"], region_name=REGION, config=Config(**S3_CONFIG))


def operator(meter: Meter, folder: str) -> dict[str, Any]:
    """Run the upload task of a release."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: F401 - the task imports it on first use

    from airflow_onnx.operators.upload import OnnxUploadToS3Operator  # noqa: F401 - as above

    with meter.work():
        stored = upload(Path(folder))
    return {"size_bytes": stored["size_bytes"]}


def boto3(meter: Meter, folder: str) -> None:
    """Upload the same files with boto3's `upload_file`."""
    s3, onnx = client(), Path(folder, ARTIFACT)
    with meter.work():
        for file in sorted(onnx.rglob("*")):
            if file.is_file():
                s3.upload_file(str(file), os.environ["S3_BUCKET"], f"{MODEL_NAME}/{file.relative_to(onnx)}")


def clear(meter: Meter) -> None:
    """Delete all objects of the bucket."""
    s3, bucket = client(), os.environ["S3_BUCKET"]
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            s3.delete_object(Bucket=bucket, Key=item["Key"])


def upload(folder: Path) -> dict[str, Any]:
    """Execute the upload operator with a stand-in for Airflow's task instance, and return its record."""
    from airflow_onnx.operators.upload import OnnxUploadToS3Operator

    artifact = Case("", folder, folder).artifact()
    task = OnnxUploadToS3Operator(
        task_id="upload",
        bucket=os.environ["S3_BUCKET"],
        artifact=artifact.to_dict() | {"staging_uri": (folder / ARTIFACT).as_uri()},
        check=CheckReport(sha256=artifact.sha256, passed=True, findings=()).to_dict(),
        benchmark=passed_report(artifact).to_dict(),
        **_SHARED,
    )
    now = datetime.now(UTC)
    run = SimpleNamespace(dag_id="release_onnx", run_id="bench", start_date=now, conf={})
    ti = SimpleNamespace(
        xcom_push=lambda key, value: None, task=task, task_id=task.task_id, start_date=now, try_number=1, max_tries=0,
        map_index=-1, dag_id=run.dag_id, run_id=run.run_id,
    )  # fmt: skip
    context = {"dag_run": run, "ti": ti, "task": task}
    stored = task.execute(cast("Any", context))
    (folder / _STORED).write_text(json.dumps(stored))
    return stored


def fetch_back(folder: Path) -> None:
    """Fetch and run the uploaded objects as the registration does."""
    from airflow_onnx.operators.register import MlflowRegisterOnnxOperator

    uploaded = S3Object.from_dict(json.loads((folder / _STORED).read_text()))
    task = MlflowRegisterOnnxOperator(task_id="register", artifact=None, uploaded=None, **_SHARED)
    with scratch_folder() as scratch:
        task.verified_report(Case("", folder, folder).artifact(), uploaded, scratch)


def passed_report(artifact: OnnxArtifact) -> BenchmarkReport:
    """Return a passed report of the artifact; the upload reads only sha256 and verdict."""
    side = SideLatency(p50_ms=1.0, p95_ms=1.0, cpu_p50_ms=1.0, throughput_per_s=1.0, quantiles_ms=(1.0,) * 9)
    batch = BatchLatency(
        batch_size=1,
        reference=side,
        candidate=side,
        speedup=1.0,
        speedup_low=1.0,
        speedup_high=1.0,
        confidence=0.95,
        rounds=1,
        calls_per_round=1,
        measured_s=1.0,
        conclusive=True,
    )
    latency = LatencyReport(
        sha256=artifact.sha256,
        passed=True,
        verdict="passed",
        batches=(batch,),
        budget={},
        threads=1,
        device="cpu",
        providers_requested=artifact.providers,
        providers_active=artifact.providers,
        host=describe_host(),
    )
    parity = ParityReport(
        sha256=artifact.sha256, passed=True, comparisons=(), batch_sizes=(1,), unseen_batch_sizes=(1,), limits={}
    )
    return BenchmarkReport(sha256=artifact.sha256, passed=True, parity=parity, latency=latency)
