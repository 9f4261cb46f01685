"""Time of the list of releases with ten thousand of them in MLflow, as a browser gets it from Airflow's API server."""

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import requests

from bench.figure import Figure, Result, Setting, part, progress
from bench.servers import EXPERIMENT, MODEL_NAME, embedded_stack
from bench.watch.airflow_runs import wait_for
from bench.watch.stores import HOUR_MS, OldRun, Store
from stack import mlflow_server, postgres, processes, supervisor
from stack.context import Context

LIST = Figure("page_list_s", "s", at_most=0.3, condition="opens without MLflow")
RELEASES, RELEASES_REHEARSED = 10_000, 200
REQUESTS, REQUESTS_IN_FULL = 60, 200
# Between two pages the index reads the newest releases.
PAUSE_S = 0.5
READ_MAX_S = 300.0
WITHOUT_MLFLOW_MAX_S = 60.0
# The metrics of a release at three batch sizes with two outputs.
METRICS = (
    "onnx_release/size_bytes",
    "onnx_release/export_wall_s",
    *(
        f"onnx_release/parity/{output}/{name}"
        for output in ("positions", "uncertainties")
        for name in ("mae", "max_abs", "max_rel", "cosine", "sqnr_db", "bias")
    ),
    *(
        f"onnx_release/latency/batch_{size}/{name}"
        for size in (1, 8, 32)
        for name in ("speedup", "speedup_low", "speedup_high", "cpu_wait_share")
    ),
    *(
        f"onnx_release/latency/batch_{size}/{side}_{name}"
        for size in (1, 8, 32)
        for side in ("reference", "candidate")
        for name in ("p50_ms", "p95_ms", "cpu_p50_ms", "throughput_per_s")
    ),
)
VIEWS = {
    "newest": "",
    "refused": "state=refused",
    "search": "q=positions",
    "model": f"model={MODEL_NAME}&experiment={EXPERIMENT}",
    "last_page": "page=200",
    "sorted": "sort=-speedup",
}


@part("pages", 4, LIST)
def measure(setting: Setting) -> Iterator[Result]:
    """Open the list of releases with each filter and order, again and again: 95th percentile of all requests.

    The index has read all releases before, and it goes on to read the newest ones. Then MLflow is stopped.
    """
    count = setting.choose(RELEASES, RELEASES, RELEASES_REHEARSED)
    with embedded_stack() as context:
        begin = time.monotonic()
        hour_ms = HOUR_MS * 100 * 24 // count
        store = Store(context, postgres.uri(context.layout, postgres.MLFLOW), METRICS)
        store.fill(count, last_ms=int(1000 * time.time()), step_ms=hour_ms)
        progress(f"{count} runs inserted in {time.monotonic() - begin:.0f} s")
        reader = Reader(context)
        # The other runs were skipped by the watch.
        releases = sum(OldRun("", number).kind != "skipped" for number in range(count))
        read_s = reader.await_all(releases)
        progress(f"all read {read_s:.1f} s after the first request")
        times = reader.views(setting.choose(REQUESTS, REQUESTS_IN_FULL, len(VIEWS)))
        detail: dict[str, Any] = {
            "runs": count,
            "releases": releases,
            "metrics_of_each": len(METRICS),
            "read_s": read_s,
        }
        detail["median_s"] = {name: statistics.median(found) for name, found in times.items()}
        detail["without_mlflow"] = reader.without_mlflow()
    all_times = sorted(time_s for found in times.values() for time_s in found)
    value = all_times[int(0.95 * (len(all_times) - 1))]
    progress(f"95 % of the requests within {1000 * value:.0f} ms")
    opens = bool(detail["without_mlflow"]["names_it"])
    yield LIST.result(value, detail, (all_times[0], all_times[-1]), n=len(all_times), condition=opens)


class Reader:
    """User who is signed in to Airflow and opens the list."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._session = requests.Session()
        secrets = context.credentials
        login = {"username": secrets.airflow_username, "password": secrets.airflow_password}
        answer = self._session.post(f"{context.airflow_url}/auth/token", json=login, timeout=60)
        self._session.cookies.set("_token", answer.json()["access_token"])

    def open(self, query: str = "") -> tuple[str, float]:
        """Return the list and the seconds until it was there."""
        begin = time.perf_counter()
        answer = self._session.get(f"{self._context.airflow_url}/onnx-release/releases?{query}", timeout=60)
        answer.raise_for_status()
        return answer.text, time.perf_counter() - begin

    def await_all(self, count: int) -> float:
        """Open the list until it has all releases; return the seconds."""
        begin = time.monotonic()
        wait_for(
            f"the list does not have {count} releases", lambda: f"All <b>{count}</b>" in self.open()[0], READ_MAX_S
        )
        return time.monotonic() - begin

    def views(self, requests_of_all: int) -> dict[str, list[float]]:
        """Open each view in turn; return the seconds of each."""
        times: dict[str, list[float]] = {name: [] for name in VIEWS}
        for number in range(requests_of_all):
            name = list(VIEWS)[number % len(VIEWS)]
            times[name].append(self.open(VIEWS[name])[1])
            time.sleep(PAUSE_S)
        return times

    def without_mlflow(self) -> dict[str, Any]:
        """Stop MLflow; return the seconds of the list, and True if it names the outage beside the known releases."""
        # The supervisor would start it again, and its process would outlive the stack.
        processes.stop(self._context.layout, [supervisor.NAME])
        processes.stop(self._context.layout, [mlflow_server.NAME])
        progress("MLflow stopped")
        slowest_s, names_it = 0.0, False
        deadline = time.monotonic() + WITHOUT_MLFLOW_MAX_S
        while not names_it and time.monotonic() < deadline:
            with suppress(requests.RequestException):
                text, time_s = self.open()
                slowest_s = max(slowest_s, time_s)
                names_it = "MLflow does not answer." in text and "old-" in text
            time.sleep(PAUSE_S)
        return {"names_it": names_it, "slowest_s": slowest_s}
