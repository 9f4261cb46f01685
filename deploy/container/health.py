"""Health check of a container: ``health.py http URL``, ``health.py airflow COMPONENT`` or ``health.py worker``.

Airflow's own command line takes seconds of CPU time for each check, which would disturb a measurement. These checks
take a tenth of that.
"""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Callable
from urllib.request import urlopen

TIMEOUT_S = 5


def http(url: str) -> bool:
    """Return True when the address answers without an error."""
    with urlopen(url, timeout=TIMEOUT_S) as response:  # noqa: S310 - the compose file names it
        return bool(response.status == 200)


def airflow(component: str) -> bool:
    """Return True after a recent heartbeat of `scheduler`, `dag_processor` or `triggerer`."""
    server = os.environ["AIRFLOW__CORE__EXECUTION_API_SERVER_URL"].removesuffix("/execution/")
    with urlopen(f"{server}/api/v2/monitor/health", timeout=TIMEOUT_S) as response:  # noqa: S310
        return bool(json.load(response)[component]["status"] == "healthy")


def worker() -> bool:
    """Return True when this host's Celery worker answers through the broker. A busy worker answers too."""
    from celery import Celery

    app = Celery(broker=os.environ["AIRFLOW__CELERY__BROKER_URL"])
    return bool(app.control.ping(destination=[f"celery@{socket.gethostname()}"], timeout=TIMEOUT_S))


CHECKS: dict[str, Callable[..., bool]] = {"http": http, "airflow": airflow, "worker": worker}

if __name__ == "__main__":
    name, *arguments = sys.argv[1:]
    try:
        healthy = CHECKS[name](*arguments)
    except (OSError, ValueError) as error:
        sys.exit(f"{name}: {error}")
    sys.exit(0 if healthy else f"{' '.join(sys.argv[1:])}: no heartbeat")
