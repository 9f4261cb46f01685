"""Reports beside versions of other releases, which carry their contracts."""

from __future__ import annotations

import uuid

from airflow.providers.amazon.aws.hooks.s3 import S3Hook

from onnx_release.records import Contract
from onnx_release.report.release_report import build_report
from onnx_release.training_runs import tags
from tests.core import records

BUCKET = "heimdall-models"
# The tag of a version that such a report belongs to.
RELEASED = {tags.VERSION_SHA256: records.artifact().sha256}


def put_report(contract: Contract, source: str = "") -> str:
    """Put a report with this contract into the store and return the URI of its folder.

    :param source: the URI of an existing folder, empty for another one.
    """
    uri = source or f"s3://{BUCKET}/test/{uuid.uuid4().hex}"
    artifact = records.artifact(inputs=contract.inputs, outputs=contract.outputs)
    report = build_report(records.TRAINING, artifact, records.check(), records.benchmark())
    text = report.model_dump_json()
    S3Hook("minio_default").load_string(
        text, f"{uri.removeprefix(f's3://{BUCKET}/')}/report.json", BUCKET, replace=True
    )
    return uri
