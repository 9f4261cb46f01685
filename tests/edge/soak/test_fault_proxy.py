"""Every kind of fault on its way to a real store: the client sees it, and the next request passes."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from soak.fault_proxy import Fault, Plan, flipped, proxy
from stack.http import session
from stack.minio import S3_CONFIG, s3_client
from tests.edge.conftest import Services
from tests.edge.releasing import BUCKET

BODY = bytes(range(256)) * 40


@pytest.fixture
def plan() -> Plan:
    return Plan()


@pytest.fixture
def store(services: Services, plan: Plan) -> Iterator[Any]:
    """A client without retries, behind the proxy."""
    secrets = services.context.credentials
    config = Config(**S3_CONFIG, retries={"total_max_attempts": 1}, read_timeout=2)
    with proxy(services.context.minio_url, plan=plan) as address:
        yield boto3.client(
            "s3",
            endpoint_url=address,
            aws_access_key_id=secrets.minio_access_key,
            aws_secret_access_key=secrets.minio_secret_key,
            region_name="us-east-1",
            config=config,
        )


@pytest.mark.parametrize(
    ("fault", "is_done"),
    [
        (Fault(kind="refused"), False),
        (Fault(kind="status", status=503), False),
        (Fault(kind="clock", seconds=86400.0), False),
        (Fault(kind="cut upload", size=1000), False),
        (Fault(kind="flipped upload"), False),
        (Fault(kind="timeout", seconds=3), False),
        (Fault(kind="lost"), True),
        (Fault(kind="slow", seconds=0.2), True),
    ],
    ids=lambda one: one.kind if isinstance(one, Fault) else "",
)
def test_an_upload_with_a_fault(store: Any, plan: Plan, fault: Fault, is_done: bool) -> None:
    key = f"test/{uuid.uuid4().hex}"
    added = plan.add(dataclasses.replace(fault, method="PUT", about=(key,)))
    try:
        store.put_object(Bucket=BUCKET, Key=key, Body=BODY)
        assert fault.kind == "slow"
    except (ClientError, BotoCoreError):
        assert fault.kind != "slow"
    assert added.injected == 1
    assert ("Contents" in store.list_objects_v2(Bucket=BUCKET, Prefix=key)) is is_done
    store.put_object(Bucket=BUCKET, Key=key, Body=BODY)
    assert store.get_object(Bucket=BUCKET, Key=key)["Body"].read() == BODY


def test_a_download_with_a_fault(store: Any, plan: Plan) -> None:
    key = f"test/{uuid.uuid4().hex}"
    store.put_object(Bucket=BUCKET, Key=key, Body=BODY)
    plan.add(Fault(kind="flipped download", method="GET", path=key, after=1))
    plan.add(Fault(kind="cut download", method="GET", path=key, size=1000, after=1))
    read = [lambda: store.get_object(Bucket=BUCKET, Key=key)["Body"].read() for _ in range(4)]
    assert read[0]() == BODY, "the faults begin after one request"
    assert read[1]() == flipped(BODY) != BODY
    with pytest.raises((ClientError, BotoCoreError, OSError)):
        read[2]()
    assert read[3]() == BODY


def test_an_address_that_the_store_has_signed_passes(services: Services) -> None:
    direct = s3_client(services.context)
    key = f"signed-{uuid.uuid4().hex}"
    direct.put_object(Bucket=BUCKET, Key=key, Body=BODY)
    signed = direct.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key})
    with proxy(services.context.minio_url) as address:
        assert session().get(signed.replace(services.context.minio_url, address), timeout=60).content == BODY
