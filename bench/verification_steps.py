"""Steps of the bench of the verification: an accepted release in the store, read, verified, and registered often."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from bench.models import ARTIFACT
from bench.release_steps import Case
from bench.step import Meter
from onnx_release.records import CheckReport, TrainedModel
from onnx_release.scratch import scratch_folder

MODEL_NAME = "bench-verified"


def store(meter: Meter, folder: str) -> dict[str, Any]:
    """Put an exported folder and an accepted report of it into the store."""
    from bench.upload_steps import client, passed_report
    from onnx_release.report.release_report import build_report, write_report

    of = Case("", Path(folder), Path(folder))
    artifact = of.artifact()
    check = CheckReport(sha256=artifact.sha256, passed=True, findings=())
    trained = TrainedModel(training_run_id="run", model_uri="models:/m-1", run_name="bench")
    s3, bucket, prefix = client(), os.environ["S3_BUCKET"], f"{MODEL_NAME}/{artifact.sha256}"
    with scratch_folder() as scratch, meter.work():
        report = write_report(scratch, build_report(trained, artifact, check, passed_report(artifact)))
        for path, local in ((one.path, Path(folder, ARTIFACT, one.path)) for one in artifact.files):
            s3.upload_file(str(local), bucket, f"{prefix}/{path}")
        s3.upload_file(str(report), bucket, f"{prefix}/{report.name}")
    return {"uri": f"s3://{bucket}/{prefix}", "sha256": artifact.sha256, "size_bytes": artifact.size_bytes}


def read(meter: Meter, uri: str, sha256: str) -> None:
    """Download the objects with boto3 and hash the files."""
    from bench.upload_steps import client

    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    with scratch_folder() as scratch, meter.work():
        s3 = client()
        for item in s3.list_objects_v2(Bucket=bucket, Prefix=f"{prefix}/")["Contents"]:
            local = scratch / item["Key"].removeprefix(f"{prefix}/")
            local.parent.mkdir(parents=True, exist_ok=True)
            s3.download_file(bucket, item["Key"], str(local))
            with local.open("rb") as file:
                hashlib.file_digest(file, "sha256")


def verify(meter: Meter, uri: str, sha256: str) -> None:
    """Verify the objects as a task of the DAG does, without MLflow."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: F401 - the task imports it on first use

    from airflow_onnx.tracking.released_versions import ReleasedVersion
    from airflow_onnx.verification.verify_version import Verifier
    from onnx_release.verification import verify_release  # noqa: F401 - as above

    version = ReleasedVersion(
        name=MODEL_NAME, version=1, sha256=sha256, source=uri, training_run_id="", created_at_ms=0
    )
    # MLflow is called for versions that are copies alone.
    verifier = Verifier(rest=cast("Any", None), s3_conn_id="minio_default", buckets=[os.environ["S3_BUCKET"]])
    with meter.work():
        report, _ = verifier.verify(version)
    if not report.passed:
        raise ValueError(report.reason)


def register(meter: Meter, uri: str, sha256: str, count: str) -> dict[str, Any]:
    """Register versions of the same objects."""
    from airflow_onnx.hooks.mlflow import MlflowHook
    from airflow_onnx.hooks.mlflow_rest import MlflowRest
    from onnx_release.training_runs import tags

    rows = [{"key": tags.VERSION_SHA256, "value": sha256}]
    with MlflowRest(MlflowHook("mlflow_default").server) as rest, meter.work():
        rest.call("POST", "registered-models/create", {"name": MODEL_NAME})
        for _ in range(int(count)):
            rest.call("POST", "model-versions/create", {"name": MODEL_NAME, "source": uri, "tags": rows})
    return {"tasks": len(_listed())}


def tasks(meter: Meter, count: str, at_once: str) -> dict[str, Any]:
    """Run the mapped tasks of a DAG run, each in a fresh process, some at the same time."""

    def run(number: int) -> dict[str, Any]:
        argv = [sys.executable, "-m", "bench.step", "bench.verification_steps:task", str(number)]
        done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
        found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
        return found

    with meter.work(), ThreadPoolExecutor(int(at_once)) as pool:
        reports = list(pool.map(run, range(int(count))))
    return {"tasks": reports}


def task(meter: Meter, number: str) -> dict[str, Any]:
    """Run one mapped task of the DAG, with a stand-in for Airflow's task instance."""
    from airflow.providers.amazon.aws.hooks.s3 import S3Hook  # noqa: F401 - the task imports it on first use

    from airflow_onnx.operators.verify_releases import VerifyReleasedVersionsOperator
    from onnx_release.verification import verify_release  # noqa: F401 - as above

    versions = _listed()[int(number)]
    operator = VerifyReleasedVersionsOperator(task_id="verify", versions=versions, buckets=[os.environ["S3_BUCKET"]])
    with meter.work():
        found = operator.execute(_context())
    return {"passed": sum(one["outcome"] == "passed" for one in found)}


def _listed() -> list[list[dict[str, Any]]]:
    from airflow_onnx.operators.verify_releases import ListReleasedVersionsOperator

    return ListReleasedVersionsOperator(task_id="list", all_versions=True).execute(_context())


def _context() -> Any:
    run = SimpleNamespace(dag_id="verify_releases", run_id="bench", conf={})
    ti = SimpleNamespace(try_number=1, max_tries=0, task=SimpleNamespace(retries=0))
    return {"dag_run": run, "ti": ti}
