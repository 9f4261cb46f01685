"""What docker-compose.yaml must hold, read from the file: these need no engine."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from airflow_onnx import defaults
from airflow_onnx.provider import get_provider_info
from deploy.compose import REPO
from stack.minio import RELEASE_BUCKET

TEXT = (REPO / "docker-compose.yaml").read_text()
FILE: dict[str, Any] = yaml.safe_load(TEXT)
SERVICES: dict[str, dict[str, Any]] = FILE["services"]
ONCE = {"minio-setup", "airflow-init", "trainer"}


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_is_limited_checked_and_restarted(name: str) -> None:
    service = SERVICES[name]
    assert service["mem_limit"]
    assert service["cap_drop"] == ["ALL"]
    assert "no-new-privileges:true" in service["security_opt"]
    assert service["restart"] == ("no" if name in ONCE else "unless-stopped")
    assert name in ONCE or "healthcheck" in service
    for port in service.get("ports", ()):
        assert port.startswith("127.0.0.1:")


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_starts_after_what_it_needs_is_healthy(name: str) -> None:
    for needed, how in SERVICES[name].get("depends_on", {}).items():
        done = needed in ONCE
        assert how == {"condition": "service_completed_successfully" if done else "service_healthy"}


@pytest.mark.parametrize("name", SERVICES)
def test_an_image_is_pinned_and_can_be_another(name: str) -> None:
    image = re.fullmatch(r"\$\{[A-Z_]+:-([^}]+)\}", SERVICES[name]["image"])
    assert image, "every image's name can be set"
    assert ":" in image[1]
    assert not image[1].endswith(":latest")


def test_a_worker_keeps_nothing_and_knows_no_key_to_the_rest() -> None:
    worker = SERVICES["airflow-worker"]
    assert "volumes" not in worker
    environment = json.dumps(worker["environment"])
    for secret in ("FERNET", "JWT", "AIRFLOW_DB_PASSWORD", "POSTGRES_PASSWORD", "ROOT", "S3_SECRET", "ADMIN"):
        assert secret not in environment


def test_no_secret_is_on_a_command_line() -> None:
    for service in SERVICES.values():
        words = json.dumps([service.get("command"), service.get("entrypoint"), service.get("healthcheck")])
        assert not re.search(r"(?<!\$)\$\{?\w*(PASSWORD|SECRET)", words)


def test_nothing_uses_what_the_older_compose_cannot_read() -> None:
    """docker-compose 1.29 ends a variable at the first brace."""
    assert not re.search(r"\$\{[^}]*\$\{", TEXT)


def test_the_settings_are_those_that_the_package_knows() -> None:
    known = get_provider_info()["config"]["onnx_release"]["options"]
    prefix = "AIRFLOW__ONNX_RELEASE__"
    used = {name.removeprefix(prefix).lower() for name in FILE["x-worker-environment"] if name.startswith(prefix)}
    assert used <= set(known)


def test_the_buckets_accounts_and_the_pool_are_those_of_the_package() -> None:
    policy = json.loads((REPO / "deploy/minio/release-policy.json").read_text())
    assert f"arn:aws:s3:::{RELEASE_BUCKET}/*" in policy["Statement"][1]["Resource"]
    assert f"store/{RELEASE_BUCKET} " in (REPO / "deploy/minio/setup.sh").read_text()
    assert f"AIRFLOW__ONNX_RELEASE__BUCKET: {RELEASE_BUCKET}\n" in (REPO / "docker-compose.yaml").read_text()
    assert f'MEASURE_POOL = "{defaults.MEASURE_POOL}"' in (REPO / "deploy/container/set_up.py").read_text()


ARN = r"arn:aws:s3:::[a-z-]+((/[a-z]+)*/\*)?"


@pytest.mark.parametrize("path", sorted((REPO / "deploy/minio").glob("*.json")), ids=lambda path: path.name)
def test_a_policy_names_what_it_allows(path: Path) -> None:
    for statement in json.loads(path.read_text())["Statement"]:
        assert statement["Effect"] == "Allow"
        assert "*" not in json.dumps(statement["Action"])
        assert all(re.fullmatch(ARN, resource) for resource in statement["Resource"])


def test_the_image_takes_nothing_of_the_hosts_secrets() -> None:
    ignored = (REPO / ".dockerignore").read_text().splitlines()
    assert "*" in ignored
    assert not any(line in ("!.", "!.env", "!*") for line in ignored)
