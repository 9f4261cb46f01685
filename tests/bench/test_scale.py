"""Counts, model and clean-up of the part on many machines; no Docker Engine is needed."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from airflow_onnx.storage import worker_cache
from bench import document
from bench.figure import NotMeasured, Result
from bench.parts import PARTS
from bench.scale import access_logs, counters, deployment, model, servers, tables
from bench.scale import figures as figures_of
from deploy import compose
from deploy.errors import DeployError
from onnx_release.artifact.cache import CacheRequest

WORKER, TRIGGERER, OURS = "172.21.0.8", "172.21.0.7", "172.21.0.1"
CALLERS = {WORKER: "airflow-worker", TRIGGERER: "airflow-triggerer"}

MLFLOW_LINE = '2026/11/26 11:30:07 INFO:     {}:44074 - "{} {} HTTP/1.1" 200 OK'
MLFLOW_LOG = [
    MLFLOW_LINE.format(TRIGGERER, "POST", "/api/2.0/mlflow/runs/search"),
    MLFLOW_LINE.format(WORKER, "GET", "/api/2.0/mlflow/model-versions/search?filter=name%3D%27x%27&max_results=100"),
    MLFLOW_LINE.format(WORKER, "GET", "/api/2.0/mlflow/logged-models/m-6081ed8016b3/artifacts/directories"),
    MLFLOW_LINE.format(WORKER, "GET", "/api/3.0/mlflow/server-info"),
    MLFLOW_LINE.format(WORKER, "GET", "/api/2.0/mlflow-artifacts/presigned/1/models/m-60/artifacts/MLmodel"),
    MLFLOW_LINE.format(WORKER, "GET", "/api/2.0/mlflow-artifacts/presigned/1/models/m-60/artifacts/data/model.pt2"),
    MLFLOW_LINE.format("127.0.0.1", "GET", "/health"),
    MLFLOW_LINE.format(OURS, "POST", "/api/2.0/mlflow/runs/create"),
    "a line of another kind",
]

AIRFLOW_LINE = (
    "2026-11-26T11:30:10Z [info] request finished [http.access] client_addr={}:5 duration_us=1 method={} path={}"
)
AIRFLOW_LOG = [
    AIRFLOW_LINE.format(WORKER, "GET", "/execution/connections/mlflow_default query= status_code=200"),
    AIRFLOW_LINE.format(WORKER, "PUT", "/execution/task-instances/01a2179e-befe-7332-b/heartbeat query="),
    AIRFLOW_LINE.format(WORKER, "PUT", "/execution/task-instances/01a2179e-beff-7b9a-a/heartbeat query="),
    AIRFLOW_LINE.format(WORKER, "POST", "/execution/xcoms/release_onnx/release__bf/export/return_value query="),
    AIRFLOW_LINE.format(OURS, "GET", "/api/v2/dags/release_onnx/dagRuns/release__bf query="),
    "2026-11-26T11:30:10Z [info ] Task instance state updated [airflow.api_fastapi] new_state=success",
]

NET = """\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls
    lo: 9999       1    0    0    0     0          0         0     9999       1    0    0    0     0       0          0
  eth0: 1000       5    0    0    0     0          0         0      200       5    0    0    0     0       0          0
  eth1:   30       5    0    0    0     0          0         0        4       5    0    0    0     0       0          0
"""


def test_requests_are_counted_by_caller_and_kind() -> None:
    assert access_logs.mlflow_requests(MLFLOW_LOG, CALLERS) == {
        "airflow-triggerer POST runs/search": 1,
        "airflow-worker GET model-versions/search": 1,
        "airflow-worker GET logged-models": 1,
        "airflow-worker GET server-info": 1,
        "airflow-worker GET mlflow-artifacts/presigned": 2,
    }
    assert access_logs.airflow_requests(AIRFLOW_LOG, CALLERS) == {
        "airflow-worker GET connections": 1,
        "airflow-worker PUT task-instances/heartbeat": 2,
        "airflow-worker POST xcoms": 1,
    }


def test_time_of_slots_is_read_from_the_log_of_a_worker() -> None:
    line = "2026-11-26T11:47:37Z [info] Task execute_workload[df674c2a-f9d4] {} in 3.25s: None [celery.app.trace]"
    assert access_logs.workloads([line.format("succeeded"), line.format("received")]) == {"ended": 1, "slot_s": 3.25}


@pytest.mark.parametrize("usage", ["2500000000\n", "usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n"])
def test_a_containers_counters_are_read_from_either_kind_of_control_group(usage: str) -> None:
    assert servers.container(NET + usage) == {"net_in_bytes": 1030, "net_out_bytes": 204, "cpu_s": 2.5}


def test_a_container_without_cpu_time_is_not_measured() -> None:
    with pytest.raises(NotMeasured, match="control groups"):
        servers.container(NET)


def test_counters_of_the_servers_are_read() -> None:
    info = "connected_clients:19\r\ntotal_net_input_bytes:200\r\ntotal_net_output_bytes:80\r\n"
    info += "cmdstat_brpop:calls=105,usec=1924\r\ncmdstat_script|load:calls=3,usec=289\r\n"
    assert servers.redis(info) == {
        "redis/command/brpop": 105, "redis/command/script|load": 3, "redis/in_bytes": 200, "redis/out_bytes": 80,
    }  # fmt: skip
    assert servers.redis_clients(info) == 19
    text = 'minio_s3_requests_total{api="getobject",server="0.0.0.0:9000"} 12\n# HELP minio_s3_traffic_sent_bytes x\n'
    text += (
        'minio_s3_traffic_sent_bytes{server="0.0.0.0:9000"} 5.5e+06\nminio_s3_requests_4xx_errors_total{api="x"} 3\n'
    )
    assert servers.minio(text) == {"minio/request/getobject": 12, "minio/sent_bytes": 5.5e6}
    server = {
        "wal_bytes": 70,
        "databases": {"mlflow": {"transactions": 3}},
        "connections": [["celery", WORKER], ["celery", WORKER], ["airflow", "172.21.0.99"]],
    }
    found = servers.postgres(server, {"mlflow": {"tags": {"inserted": 2}}, "celery": None})  # type: ignore[dict-item]
    assert found == {"postgres/wal_bytes": 70, "postgres/mlflow/transactions": 3, "table/mlflow/tags/inserted": 2}
    assert servers.connections(server, CALLERS) == {"airflow-worker celery": 2, "172.21.0.99 airflow": 1}


def test_counts_of_an_idle_deployment_are_subtracted() -> None:
    before = counters.Snapshot(at_s=100.0, counts={"a": 10.0, "c": 5.0})
    after = counters.Snapshot(at_s=150.0, counts={"a": 110.0, "b": 8.0, "c": 5.0})
    seconds, risen = counters.between(before, after)
    assert (seconds, risen) == (50.0, {"a": 100.0, "b": 8.0})
    assert counters.rates(before, after) == {"a": 2.0, "b": 0.16}
    assert counters.of_each(seconds, risen, {"a": 1.0}, 4) == {"a": 12.5, "b": 2.0}
    assert counters.on_line((1, {"a": 1.0}), (4, {"a": 4.0, "b": 3.0}), 2) == {"a": 2.0, "b": 1.0}


def task(name: str, seconds: float | None, host: str = "one") -> dict[str, Any]:
    return {"task_id": name, "duration": seconds, "hostname": host if seconds else "", "try_number": 1}


def test_the_rate_is_from_the_first_start_to_the_last_end() -> None:
    rows = [
        {"start_date": "2026-01-01T00:00:00Z", "end_date": "2026-01-01T00:00:40Z"},
        {"start_date": "2026-01-01T00:00:10Z", "end_date": "2026-01-01T00:01:00Z"},
    ]
    tasks = [task("export", 10.0), task("export", 14.0, "two"), task("parity_latency", 12.0), task("tune", None)]
    found = figures_of.summary(rows, tasks)
    assert (found["wall_s"], found["per_hour"]) == (60.0, 120.0)
    assert found["task_s"] == {"export": 12.0, "parity_latency": 12.0}
    assert found["tasks_by_host"] == {"one": 2, "two": 1}
    assert found["measuring_share"] == 0.2


def test_cache_use_is_counted_from_the_lines_that_tasks_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("AIRFLOW__ONNX_RELEASE__CACHE_FOLDER", str(tmp_path / "cache"))
    small, large = (
        CacheRequest(name=f"The artifact {size}", fill=partial(_fill, size), key=str(size)) for size in (100, 300_000)
    )
    for request in (large, small, large):
        with caplog.at_level(logging.INFO), worker_cache.cached_folder(request):
            logging.getLogger().info("another line, 5 kB, of the task.")
    used = access_logs.cache_use([{"event": message} for message in [*caplog.messages, "::endgroup::"]])
    assert used == {"misses": 2, "miss_bytes": 300_100, "hits": 1, "hit_bytes": 300_000}
    assert figures_of.hit_rate([used]) == 1 / 3
    assert figures_of.hit_rate([used], "_bytes") == 300_000 / 600_100
    assert figures_of.hit_rate([]) == 0.0


def _fill(size_bytes: int, folder: Path) -> None:
    (folder / "weights").write_bytes(bytes(size_bytes))


def batch(number: int, per_hour: float, scale: float = 1.0) -> dict[str, Any]:
    each = {
        "cpu_s/airflow-worker": 20.0,
        "cpu_s/airflow-scheduler": 2.0,
        "cpu_s/airflow-api-server": 1.0,
        "cpu_s/mlflow": 0.5,
        "cpu_s/postgres": 0.4,
        "cpu_s/minio": 0.01,
        "airflow/request/airflow-worker PUT task-instances/run": 100.0,
        "mlflow/request/airflow-worker POST runs/search": 30.0,
        "postgres/airflow/transactions": 200.0,
        "table/airflow/xcom/inserted": 60.0,
        "table/airflow/dag_run/updated": 40.0,
        "table/airflow/xcom/size_bytes": 9e4,
        "worker/slot_s": 40.0,
        "minio/sent_bytes": 5e8 * scale,
    }
    return {
        "workers": number,
        "releases": 4,
        "seconds": 100.0,
        "risen": {name: 4 * count + 100.0 * idle(number)["rates"].get(name, 0.0) for name, count in each.items()},
        "wall_s": 80.0,
        "per_hour": per_hour,
        "task_s": {"export": 8.0, "parity_latency": 6.0 * scale},
        "measuring_share": 0.3,
        "artifact_bytes": 4 * 100_000_000,
        "cache": [{"hits": 1, "misses": 3, "hit_bytes": 100, "miss_bytes": 300}] * 4,
        "connections_max": {"redis": 5 + 10 * number},
    }


def idle(number: int) -> dict[str, Any]:
    rates = {"redis/command/brpop": 1.0 + number, "cpu_s/redis": 0.001 * number, "cpu_s/airflow-scheduler": 0.1}
    connections = {"redis": 4 + 3 * number, "airflow-worker celery": number, "airflow-scheduler airflow": 2}
    return {"seconds": 30.0, "workers": number, "rates": rates, "connections": connections}


@pytest.fixture
def figures() -> list[Result]:
    found = {
        "plan": {"releases": 4},
        "idle": {1: idle(1), 4: idle(4)},
        "batches": {1: batch(1, 100.0), 2: batch(2, 180.0), 4: batch(4, 200.0)},
        "large": batch(2, 60.0, scale=2.0),
        "images": {"redis": "sha256:1"},
    }
    return list(figures_of.results(found))


@pytest.fixture
def entries(figures: list[Result]) -> list[dict[str, Any]]:
    """The results as they are read from their file."""
    return [{"name": one.name, "detail": json.loads(json.dumps(one.detail))} for one in figures]


def test_one_deployment_gives_every_figure_of_the_part(figures: list[Result]) -> None:
    (part,) = (part for part in PARTS if part.name == "workers")
    found = {one.name: one for one in figures}
    assert tuple(found) == tuple(figure.name for figure in part.figures)
    assert found["workers_ratio_w2"].value == pytest.approx(1.8)
    assert found["moved_over_artifact"].value == pytest.approx(10.0)
    assert found["cache_hit_rate"].value == 0.25
    assert found["releases_per_hour_w2"].n == 4


def test_the_limit_is_in_the_detail(figures: list[Result]) -> None:
    first = figures[0].detail
    # Four releases of 23.91 s and 80 s of an idle deployment.
    used_s = 4 * 23.91 + 80 * 0.101
    assert first["cpu_share"] * 80.0 * (os.cpu_count() or 1) == pytest.approx(used_s)
    assert first["of_each_release"]["cpu_s/airflow-scheduler"] == pytest.approx(2.0)


def test_the_lesser_idle_count_of_postgres_is_subtracted() -> None:
    busy, calm = idle(1), idle(4)
    busy["rates"] |= {"postgres/wal_bytes": 900.0, "cpu_s/postgres": 0.4}
    calm["rates"] |= {"postgres/wal_bytes": 20.0, "cpu_s/postgres": 0.1}
    found = figures_of.idle_with(2, {1: busy, 4: calm})
    assert found["postgres/wal_bytes"] == 20.0
    assert found["cpu_s/postgres"] == pytest.approx(0.3)
    assert figures_of.idle_with(2, {1: busy})["redis/command/brpop"] == 2.0


def test_the_model_multiplies_the_counts(entries: list[dict[str, Any]]) -> None:
    found = model.measured(entries)
    assert (found.small["rows_written/airflow"], found.small["growth_bytes/airflow"]) == (100.0, 9e4)
    assert found.each_worker["redis/command/brpop"] == pytest.approx(1.0)
    assert found.connections["redis"] == 15.0
    assert found.connections_each_worker["redis"] == pytest.approx(10.0)
    of = {(one.name, one.one): one for one in model.resources(found)}
    year, week, many = of["measuring", "slot, one host each"].needs
    assert week == many == pytest.approx(1e6 / (7 * 86400) * 6.0)
    assert year == pytest.approx(1e6 / (365 * 86400) * 6.0)
    _, week, many = of["Airflow's API server", "processor"].needs
    assert week == pytest.approx(1e6 / (7 * 86400))
    # Ten thousand heartbeats every five seconds, at a hundredth of a second each.
    assert many - week == pytest.approx(2000 * 0.01)
    assert of["PostgreSQL", "server of 200 connections"].needs[2] == pytest.approx((3 + 10_000) / 200)
    active = next(one for one in of.values() if "release_onnx" in one.name)
    assert active.needs == pytest.approx((1e6 / (365 * 86400) * 40 / 64, 1e6 / (7 * 86400) * 40 / 64, 10_000 / 64))
    needs = [one.needs[2] for one in model.resources(found)]
    assert needs == sorted(needs, reverse=True)


def test_the_tables_go_into_the_page_between_its_marks(entries: list[dict[str, Any]]) -> None:
    before = tables.PAGE.read_text(encoding="utf-8")
    page = document.with_scale(before, entries)
    assert "| requests to MLflow | 30 | 30 | 30 M |" in page
    assert "| commands in Redis, a second | 2 | 1 | 10 k |" in page
    assert "| connections to Redis | 15 | 10 | 100 k |" in page
    assert "| bytes in and out of MinIO | 500 MB | 1 GB | 500 TB |" in page
    assert "| measuring | slot, one host each | 0.17 | 0.19 | 9.9 | 9.9 |" in page
    assert document.with_scale(before, entries[1:]) == before


@pytest.mark.parametrize(
    ("number", "unit", "text"),
    [
        (0.0, "", "0"),
        (0.0123, "s", "0.012 s"),
        (3.25, "", "3.2"),
        (1234.0, "", "1234"),
        (1234.0, "B", "1.23 kB"),
        (56_780.0, "", "56.8 k"),
        (3e7, "s", "8333 h"),
        (3e7, "", "30 M"),
        (5.69e14, "B", "569 TB"),
    ],
)
def test_numbers_are_short(number: float, unit: str, text: str) -> None:
    assert tables.short(number, unit) == text


class Engine:
    """Program in place of docker that records its calls."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self._folder = folder
        monkeypatch.setenv("DOCKER", str(folder / "docker"))

    def answers(self, cases: str) -> None:
        program = self._folder / "docker"
        program.write_text(f'#!/bin/sh\necho "$*" >> {self._folder}/asked\ncase "$*" in\n{cases}\nesac\n')
        program.chmod(0o755)

    @property
    def asked(self) -> list[str]:
        return (self._folder / "asked").read_text().splitlines()


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Engine]:
    compose.docker.cache_clear()
    compose.compose.cache_clear()
    yield Engine(tmp_path, monkeypatch)
    compose.docker.cache_clear()
    compose.compose.cache_clear()


CONFIG = (
    "*config) printf \"services:\\n  redis:\\n    image: redis:7\\n  mlflow:\\n    image: 'our/image:local'\\n\" ;;"
)


def test_without_an_engine_it_is_not_measured(engine: Engine, tmp_path: Path) -> None:
    engine.answers("info) echo 'is the daemon running?' >&2; exit 1 ;;")
    with pytest.raises(NotMeasured, match="is the daemon running"), deployment.deployment(tmp_path):
        pass


def test_missing_images_are_named_and_not_built(engine: Engine, tmp_path: Path) -> None:
    engine.answers(f"{CONFIG}\n'image inspect our/image:local') exit 1 ;;")
    with (
        pytest.raises(NotMeasured, match=r"not on this machine: our/image:local\. .*build"),
        deployment.deployment(tmp_path),
    ):
        pass
    assert not [line for line in engine.asked if " up " in line or " build" in line]


def test_a_failed_deployment_is_removed_with_its_volumes(engine: Engine, tmp_path: Path) -> None:
    engine.answers(f"{CONFIG}\n*' up '*) exit 1 ;;")
    with pytest.raises(DeployError, match="ended with status 1"), deployment.deployment(tmp_path):
        pass
    (name,) = {line.split("--project-name ")[1].split()[0] for line in engine.asked if "--project-name" in line}
    assert name.startswith("onnx-bench-")
    up, down, image = engine.asked[-3:]
    assert " up " in up
    assert down.endswith(f"--project-name {name} down --volumes --remove-orphans")
    assert image == f"rmi {name}:measured"


def test_later_workers_have_the_image_of_the_first(engine: Engine, tmp_path: Path) -> None:
    engine.answers(f'{CONFIG}\n*" up "*) echo "image $AIRFLOW_ONNX_IMAGE" >> {tmp_path}/asked; exit 1 ;;')
    with pytest.raises(DeployError), deployment.deployment(tmp_path):
        pass
    (own,) = (line.split()[1] for line in engine.asked if line.startswith("image onnx-"))
    assert f"tag {deployment.IMAGE} {own}" in engine.asked
    # The default of the file.
    assert f":-{deployment.IMAGE}}}" in (compose.REPO / "docker-compose.yaml").read_text()
