"""An artifact into the object store: ``python -m bench.upload_steps WAY FOLDER``; an export has filled the folder.

``operator`` is the release's own task, with a stand-in for Airflow's task instance alone; ``boto3`` is boto3's own
`upload_file` of the same files. ``clean`` removes what either has put. The environment says where the store is, see
`bench.store`.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bench.marking import Marked
from bench.release_steps import ARTIFACT, Case
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
from stack.minio import REGION, S3_CONFIG

MODEL_NAME = "bench"
_STORED = "stored.json"
_SHARED: dict[str, Any] = {
    "trained": TrainedModel(training_run_id="run", model_uri="models:/m-1", run_name="bench").to_dict(),
    "model_name": MODEL_NAME,
}


def _client() -> Any:
    import boto3
    from botocore.config import Config

    return boto3.client("s3", endpoint_url=os.environ["S3_URL"], region_name=REGION, config=Config(**S3_CONFIG))


def _operator(folder: Path) -> None:
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: F401 - the task imports it when it first needs it

    from airflow_onnx.operators.upload import OnnxUploadToS3Operator  # noqa: F401 - as above

    marked = Marked()
    with marked.work():
        stored = put_as_task(folder)
    marked.report(size_bytes=stored["size_bytes"])


def put_as_task(folder: Path) -> dict[str, Any]:
    """Run the release's own task, and return what it hands on."""
    from airflow_onnx.operators.upload import OnnxUploadToS3Operator

    artifact = Case("", folder, folder).artifact()
    operator = OnnxUploadToS3Operator(
        task_id="upload",
        bucket=os.environ["S3_BUCKET"],
        artifact=artifact.to_dict() | {"staging_uri": (folder / ARTIFACT).as_uri()},
        check=CheckReport(sha256=artifact.sha256, passed=True, findings=()).to_dict(),
        benchmark=_passed(artifact).to_dict(),
        **_SHARED,
    )
    run = SimpleNamespace(dag_id="release_onnx", run_id="bench", start_date=datetime.now(UTC), conf={})
    context = {"dag_run": run, "ti": SimpleNamespace(xcom_push=lambda key, value: None)}
    stored = operator.execute(cast("Any", context))
    (folder / _STORED).write_text(json.dumps(stored))
    return stored


def fetch_back(folder: Path) -> None:
    """Do what the registration does with the objects that `put_as_task` put, before MLflow may name them."""
    from airflow_onnx.operators.register import MlflowRegisterOnnxOperator

    uploaded = S3Object.from_dict(json.loads((folder / _STORED).read_text()))
    operator = MlflowRegisterOnnxOperator(task_id="register", artifact=None, uploaded=None, **_SHARED)
    operator._fetched_back(Case("", folder, folder).artifact(), uploaded)


def _passed(artifact: OnnxArtifact) -> BenchmarkReport:
    """Return a verdict on the artifact: all that the upload asks of one is whose it is, and that it is good."""
    side = SideLatency(p50_ms=1.0, p95_ms=1.0, cpu_p50_ms=1.0, throughput_per_s=1.0)
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


def _boto3(folder: Path) -> None:
    client, onnx = _client(), folder / ARTIFACT
    marked = Marked()
    with marked.work():
        for file in sorted(onnx.rglob("*")):
            if file.is_file():
                client.upload_file(str(file), os.environ["S3_BUCKET"], f"{MODEL_NAME}/{file.relative_to(onnx)}")
    marked.report()


def _clean(_: Path) -> None:
    client, bucket = _client(), os.environ["S3_BUCKET"]
    marked = Marked()
    for page in client.get_paginator("list_objects_v2").paginate(Bucket=bucket):
        for item in page.get("Contents", []):
            client.delete_object(Bucket=bucket, Key=item["Key"])
    marked.report()


_WAYS: dict[str, Callable[[Path], None]] = {"operator": _operator, "boto3": _boto3, "clean": _clean}


if __name__ == "__main__":
    _WAYS[sys.argv[1]](Path(sys.argv[2]))
